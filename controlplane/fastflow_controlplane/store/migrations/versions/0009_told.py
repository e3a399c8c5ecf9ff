"""How much agents can have been told before a control plane took over."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Adds the column."""
    op.add_column("agents", sa.Column("told_revision", sa.BigInteger()))
