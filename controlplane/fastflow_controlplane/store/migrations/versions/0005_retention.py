"""Logs that retention removed."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Adds what became of a log, and the table of files that are to go."""
    op.add_column("attempts", sa.Column("log_remove_time", sa.BigInteger(), nullable=True))
    removed_by = sa.Column("log_removed_by", sa.String(length=40), server_default=sa.text("''"), nullable=False)
    op.add_column("attempts", removed_by)
    op.create_index(
        "ix_attempts_kept_logs",
        "attempts",
        ["run_id", "number", "log_bytes"],
        unique=False,
        sqlite_where=sa.text("log_remove_time IS NULL"),
        postgresql_where=sa.text("log_remove_time IS NULL"),
    )
    op.create_table(
        "log_removals",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "attempt", name=op.f("pk_log_removals")),
    )
