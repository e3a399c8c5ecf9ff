"""What an agent said of its cluster at its last Hello, and what an operator accepted of it."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Adds columns to agents."""
    for name in ("hello_cluster_id", "accepted_cluster_id"):
        op.add_column("agents", sa.Column(name, sa.String(length=255), server_default=sa.text("''"), nullable=False))
    for name in ("hello_revision", "doubtful_revision"):
        op.add_column("agents", sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False))
