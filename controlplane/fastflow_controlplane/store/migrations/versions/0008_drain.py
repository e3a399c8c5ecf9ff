"""How an agent is emptied and taken off the list, and how long a stop leaves a program."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Adds the columns."""
    op.add_column("agents", sa.Column("drain_time", sa.BigInteger()))
    op.add_column("agents", sa.Column("remove_time", sa.BigInteger()))
    op.add_column("attempts", sa.Column("stop_grace_usec", sa.BigInteger()))
