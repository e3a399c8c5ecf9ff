"""When the control plane worked, kept over its restarts."""

from sqlalchemy import Connection, delete, insert, select, update

from fastflow_controlplane.runs.uptime import Uptime
from fastflow_controlplane.store.models import uptimes


def note(connection: Connection, now: int, pause: int) -> list[Uptime]:
    """Notes that all works at this moment; returns the uptimes, newest first.

    The newest one goes on if it was noted at most `pause` microseconds ago.
    """
    # A clock that was set back has been ahead: what it told then never was.
    connection.execute(delete(uptimes).where(uptimes.c.start_time > now))
    goes_on = (uptimes.c.end_time >= now - pause,)
    if not connection.execute(update(uptimes).where(*goes_on).values(end_time=now)).rowcount:
        connection.execute(insert(uptimes).values(start_time=now, end_time=now))
    rows = connection.execute(select(uptimes).order_by(uptimes.c.start_time.desc()))
    return [Uptime(row.start_time, row.end_time) for row in rows]


def forget(connection: Connection, before: int) -> None:
    """Forgets uptimes that ended before `before`."""
    connection.execute(delete(uptimes).where(uptimes.c.end_time < before))
