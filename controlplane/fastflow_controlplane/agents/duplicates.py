"""Two processes under one agent id or one name: whoever is connected and alive stays, the newcomer is refused."""

from fastflow_controlplane.agents.live import LiveAgent
from fastflow_controlplane.agents.model import AgentFacts
from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.clock import Clock
from fastflow_controlplane.settings import ControlPlaneSettings
from fastflow_controlplane.store.queries.registration import id_in_use, name_taken

LOOK_SECONDS = 0.1
"""How often a probed stream is looked at: its answer takes a network's round trip."""
MARGIN_SECONDS = 1.0
MAX_SECONDS = 10.0
"""An agent that lives says so within a heartbeat interval, probed or not, and this margin; but a newcomer does not wait
longer than this: agents give up on a Welcome after 15 s."""


class Duplicates:
    """Decides whether a newcomer may have a stream."""

    def __init__(self, registry: AgentRegistry, clock: Clock, settings: ControlPlaneSettings) -> None:
        self._registry = registry
        self._clock = clock
        self._patience = min(settings.heartbeat_interval + MARGIN_SECONDS, MAX_SECONDS)

    async def refusal(self, newcomer: AgentFacts) -> str:
        """Returns why the newcomer is refused; "" = nobody who lives is in its way."""
        probed: set[int] = set()
        while rivals := [rival for rival in self._registry.rivals(newcomer) if id(rival.stream) not in probed]:
            for rival in rivals:
                probed.add(id(rival.stream))
                if await self._lives(rival):
                    return self._refuse(rival, newcomer)
                if rival.facts.agent_id != newcomer.agent_id:
                    # Else its name could not be had; the stream of the same agent is taken over.
                    self._registry.give_up(rival)
        return ""

    async def _lives(self, rival: LiveAgent) -> bool:
        stream, asked = rival.stream, self._clock.monotonic()
        if stream is None:
            return False
        stream.probe()
        while rival.stream is stream and self._clock.monotonic() - asked < self._patience:
            await self._clock.sleep(LOOK_SECONDS)
            if rival.heard > asked:
                return True
        return False

    def _refuse(self, rival: LiveAgent, newcomer: AgentFacts) -> str:
        same = rival.facts.agent_id == newcomer.agent_id
        message = (id_in_use if same else name_taken)(rival.facts.name, rival.facts.host_name)
        self._registry.note_refusal(newcomer, message)
        return message
