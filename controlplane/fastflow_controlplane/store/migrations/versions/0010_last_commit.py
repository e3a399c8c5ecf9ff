"""The id of the last commit."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Adds the table."""
    op.create_table(
        "last_commit",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("commit_id", sa.String(length=36), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_last_commit")),
    )
