"""What the log path asks and tells about attempts."""

from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.logs.uploads import Rejection
from fastflow_controlplane.runs.changes import Changes
from fastflow_controlplane.runs.model import AttemptKey
from fastflow_controlplane.store import Connection
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries import attempts
from fastflow_controlplane.store.queries.transitions import note


class AttemptLogRecords:
    """The rows' side of the log path; see `logs.ingest.AttemptLogs`."""

    def __init__(self, store: Store, changes: Changes, registry: AgentRegistry) -> None:
        self._store = store
        self._changes = changes
        self._registry = registry

    async def admit(self, key: AttemptKey) -> Rejection:
        """Returns whether bytes of this attempt are taken: not of one whose log was removed.

        One that ended is no reason to refuse them.
        """
        row = await self._store.read(lambda connection: attempts.read_attempt(connection, key.run_id, key.attempt))
        if row is None or (row.log_removed and row.key == key):
            return Rejection.UNKNOWN_ATTEMPT
        return Rejection.NONE if row.key == key else Rejection.BAD_TOKEN

    async def sealed(self, key: AttemptKey, end: int) -> None:
        """Records that the log is complete with `end` bytes. May be called again. Raises Unavailable."""

        def seal(connection: Connection) -> str:
            note(connection, key, {"log_sealed": True, "log_bytes": end})
            attempts.touch_run(connection, key.run_id)
            return attempts.settle(connection, key)

        def tell(agent_id: str) -> None:
            self._changes.notify(key.run_id)
            if agent_id:
                self._registry.desired_changed(agent_id)

        await self._store.write(seal, tell)
