"""After which endings, and how often at most, a run is queued again."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Adds columns to runs."""
    op.add_column("runs", sa.Column("retry_on", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("runs", sa.Column("retry_attempts", sa.Integer(), server_default=sa.text("0"), nullable=False))
