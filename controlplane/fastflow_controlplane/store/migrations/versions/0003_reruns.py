"""Whose commit a run executes, and which run it repeats."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0001"


def upgrade() -> None:
    """Adds columns to runs."""
    op.add_column("runs", sa.Column("commit_author", sa.Text(), server_default=sa.text("''"), nullable=False))
    op.add_column("runs", sa.Column("commit_subject", sa.Text(), server_default=sa.text("''"), nullable=False))
    op.add_column("runs", sa.Column("ref", sa.String(length=255), server_default=sa.text("''"), nullable=False))
    op.add_column("runs", sa.Column("rerun_of", sa.String(length=36), nullable=True))
    op.add_column("runs", sa.Column("rerun_latest", sa.Boolean(), nullable=True))
    op.add_column("runs", sa.Column("pinned_packages", sa.JSON(none_as_null=True), nullable=True))
