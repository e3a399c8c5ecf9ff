"""What this database is, and who may write to it."""

from dataclasses import dataclass

from fastflow.ids import new_id
from sqlalchemy import Connection, bindparam, insert, inspect, select, update

from fastflow_controlplane.store.models import agents, cluster, last_commit

_ROW = 1
_NOTE = update(last_commit).where(last_commit.c.id == _ROW).values(commit_id=bindparam("commit"))


@dataclass(frozen=True, slots=True)
class Leadership:
    """One control plane's hold of the database; `leader_epoch` fences writes of earlier ones."""

    cluster_id: str
    leader_epoch: int


def take_over(connection: Connection, now: int) -> Leadership:
    """Raises the leader epoch, and gives a new database its cluster id.

    All streams of before are over: an agent that saw more than there is at this moment did not see it in this database.
    """
    raised = connection.execute(
        update(cluster).where(cluster.c.id == _ROW).values(leader_epoch=cluster.c.leader_epoch + 1)
    )
    if not raised.rowcount:
        connection.execute(insert(cluster).values(id=_ROW, cluster_id=new_id(), leader_epoch=1, create_time=now))
    connection.execute(update(agents).where(agents.c.told_revision.is_(None)).values(told_revision=agents.c.revision))
    row = connection.execute(select(cluster.c.cluster_id, cluster.c.leader_epoch)).one()
    return Leadership(row.cluster_id, row.leader_epoch)


def note_commit(connection: Connection, commit_id: str) -> None:
    """Stores the id of the commit that is about to be made."""
    if not connection.execute(_NOTE, {"commit": commit_id}).rowcount:
        connection.execute(insert(last_commit).values(id=_ROW, commit_id=commit_id))


def read_last_commit(connection: Connection) -> str:
    """Returns the id of the last commit; "" = there was none yet, or this is no database of this schema."""
    if not inspect(connection).has_table(last_commit.name):
        return ""
    return connection.execute(select(last_commit.c.commit_id)).scalar_one_or_none() or ""
