"""When an agent could not be reached because of what the script did, and so when its attempts may be LOST."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.chaos.script import CONTROLPLANE, UNDOES, Act, layer
from tests.chaos.settings import HEARTBEAT_SECONDS, LOST_SECONDS, OFFLINE_SECONDS, RECOVERY_SECONDS

RETURN_SECONDS = 15.0
"""An agent that has begun and that nothing keeps away is connected by then to a control plane that has begun, too."""
STALL_SECONDS = 6.0
"""A control plane that stood still for this long notices it; somewhat shorter, it may."""
LATE_SECONDS = 1.5
"""By so much a heartbeat is late where the whole machine stood still, for a second and more where its host is busy."""
AWAY_SECONDS = OFFLINE_SECONDS + LOST_SECONDS - HEARTBEAT_SECONDS - LATE_SECONDS
"""An agent is away for at least so long when it is lost: it was last heard of up to a late heartbeat earlier."""

Deed = Mapping[str, Any]


@dataclass(frozen=True)
class Absence:
    """From when to when something was away, in seconds of the wall clock."""

    begin: float
    end: float


class Absences:
    """Those of all agents in one chaos run.

    `deeds` is what was done, in order; `seen` the moments at which each agent connected, as the control plane says; and
    `ready` those at which each program had begun, as it says itself: how long that takes is up to the machine.
    """

    def __init__(
        self, deeds: Iterable[Deed], seen: Mapping[str, Sequence[float]], ready: Mapping[str, Sequence[float]]
    ) -> None:
        self._seen = seen
        self._ready = ready
        self._outages: defaultdict[str, list[Absence]] = defaultdict(list)
        self._starts: list[float] = []
        self._thaws: list[float] = []
        hurts: dict[tuple[str, str], Deed] = {}
        for deed in deeds:
            if deed["what"] in UNDOES:
                hurts[deed["target"], layer(deed["what"])] = deed
            elif deed["what"] in UNDOES.values():
                hurt = hurts.pop((deed["target"], layer(deed["what"])))
                self._note(hurt, deed)

    def of(self, agent: str) -> list[Absence]:
        """The agent's own; two of them are one where it was not seen in between and had little time to come back."""
        joined: list[Absence] = []
        for outage in sorted(self._outages[agent], key=lambda outage: outage.begin):
            if joined and not self._came_back(agent, joined[-1].end, outage.begin):
                joined[-1] = Absence(joined[-1].begin, max(joined[-1].end, outage.end))
            else:
                joined.append(outage)
        return joined

    def at(self, agent: str, moment: float) -> Absence | None:
        """The absence that an agent is in at a moment, or has not come back from."""
        found = [absence for absence in self.of(agent) if absence.begin <= moment <= self._back_by(absence.end)]
        return found[-1] if found else None

    def against_loss(self, agent: str, moment: float) -> str:
        """Why what is on the agent could not be declared LOST at a moment; "" = it could."""
        start = max((start for start in self._starts if start <= moment), default=float("-inf"))
        thaw = max((thaw for thaw in self._thaws if thaw <= moment), default=float("-inf"))
        if moment < max(start, thaw) + RECOVERY_SECONDS:
            return f"the control plane had only been back for {moment - max(start, thaw):.1f} s"
        absence = self.at(agent, moment)
        if absence is None:
            return "its agent was not away"
        seen = max((seen for seen in self._seen.get(agent, []) if seen <= moment), default=float("-inf"))
        if seen < start:
            # What a control plane has not seen since it began counts as away since then.
            free = absence.begin > self._back_by(start)
            return "its agent had not come back, though nothing kept it away" if free else ""
        away = moment - max(absence.begin, seen)
        return "" if away >= AWAY_SECONDS else f"its agent had only been away for {away:.1f} s"

    def _note(self, hurt: Deed, undone: Deed) -> None:
        if layer(hurt["what"]) == "operator":
            return
        program, end = hurt["target"], float(undone["wall"])
        if undone["what"] == Act.START:
            # One that is killed before it has begun is away until another has.
            end = next((ready for ready in self._ready.get(program, ()) if ready >= end), end)
        self._outages[program].append(Absence(began(hurt), end))
        if program == CONTROLPLANE:
            if undone["what"] == Act.START:
                self._starts.append(undone["wall"])
            elif began(undone) - hurt["wall"] >= STALL_SECONDS:
                self._thaws.append(began(undone))

    def _came_back(self, agent: str, end: float, begin: float) -> bool:
        return begin > self._back_by(end) or self._is_seen(agent, end, begin)

    def _back_by(self, end: float) -> float:
        """When an agent is connected again that from `end` on nothing keeps away but that nobody answers it."""
        by = end + RETURN_SECONDS
        for outage in self._outages[CONTROLPLANE]:
            if outage.begin <= by and outage.end >= end:
                by = outage.end + RETURN_SECONDS
        return by

    def _is_seen(self, agent: str, begin: float, end: float) -> bool:
        return any(begin <= moment <= end for moment in self._seen.get(agent, []))


def began(deed: Deed) -> float:
    """When a deed began, by the wall clock."""
    return float(deed["wall"] - (deed["monotonic"] - deed["begun"]))
