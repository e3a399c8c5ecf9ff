"""An operator's word that an agent and this database belong together, however they contradict each other."""

import hashlib

import structlog

from fastflow_controlplane.agents.model import AgentView
from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.clock import Clock
from fastflow_controlplane.errors import FailedPrecondition, not_found
from fastflow_controlplane.store import Connection
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries import agents, registration, requests
from fastflow_controlplane.store.queries.agents import AgentRow

log = structlog.get_logger(__name__)

ACCEPT_AGENT = "AcceptAgent"


class Acceptance:
    """Ends quarantines."""

    def __init__(self, store: Store, clock: Clock, registry: AgentRegistry, cluster_id: str) -> None:
        self._store = store
        self._clock = clock
        self._registry = registry
        self._cluster_id = cluster_id

    async def accept(self, name: str, request_id: str = "") -> AgentView:
        """Accepts the agent as it is, and lets one that is away come back from another machine.

        Raises NotFound, and FailedPrecondition for one that is connected and not in quarantine.
        """
        connected = self._registry.connected()
        fingerprint = hashlib.sha256(name.encode()).hexdigest()

        def write(connection: Connection) -> AgentRow | None:
            if requests.answered(connection, ACCEPT_AGENT, request_id, fingerprint) is not None:
                return None
            found = agents.read_agents(connection, name=name)
            if not found:
                raise not_found("agent", name, agents.read_names(connection))
            agent_id = found[0].facts.agent_id
            if agent_id in connected and not found[0].quarantine_reason:
                raise FailedPrecondition(
                    f'agent "{name}" is connected and not in quarantine: there is nothing to accept',
                    reason="AGENT_NOT_QUARANTINED",
                )
            registration.accept(connection, agent_id, self._cluster_id)
            requests.remember(connection, ACCEPT_AGENT, request_id, fingerprint, agent_id, self._clock.now())
            return agents.read_agents(connection, agent_id=agent_id)[0]

        def accepted(row: AgentRow | None) -> None:
            if row is not None:
                log.warning("agent is accepted by an operator", agent=name)
                self._registry.accepted(row)

        await self._store.write(write, accepted)
        return await self._registry.get(name)
