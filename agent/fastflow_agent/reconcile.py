"""What to do, from what is known: pure functions of journals, containers and desired state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from fastflow_agent.desired import Action, Desired
from fastflow_agent.facts import ContainerGone, Ended, Fact, StateChanged
from fastflow_agent.model import AttemptKey, Reason, State, StopCause
from fastflow_agent.records import History
from fastflow_agent.runtime.base import Observation, SlotState

DRAINED = "it is being drained"
AttemptNumber = tuple[str, int]
"""Run id and number of the attempt. At most one claim token of it lives here: acknowledgements name no token."""


class Resumption(Enum):
    """How an agent that was started anew goes on with an attempt from its journal."""

    FINISH = "finish"
    """The result is known: report it and clean up."""
    WITHHELD = "withheld"
    """User code never ran. Wait for the control plane's word before anything is started."""
    ATTACH = "attach"
    """It runs: watch it."""
    CONCLUDE = "conclude"
    """It ended, or its container is gone: draw the verdict from what is left."""
    FORGOTTEN = "forgotten"
    """It was started, and the engine forgot so when the host lost power: its container will never end."""


def resume(history: History, observation: Observation, was_released: bool, boot_id: str) -> Resumption:
    """Decide how to go on with the attempt of `history`, whose container the engine sees as `observation`.

    Without RELEASING in its journal user code never ran. With it, `was_released` is the runtime's word on whether the
    wrapper took its environment; where the slot is gone or the host was restarted nobody can tell, and in doubt user
    code ran: no run is started twice.
    """
    if history.settled:
        return Resumption.FINISH
    unknown = rebooted(history, boot_id) or observation.state is SlotState.ABSENT
    ran = history.releasing is not None and (history.released or was_released or unknown)
    if not ran:
        return Resumption.WITHHELD
    how = {SlotState.RUNNING: Resumption.ATTACH, SlotState.CREATED: Resumption.FORGOTTEN}
    return how.get(observation.state, Resumption.CONCLUDE)


def rebooted(history: History, boot_id: str) -> bool:
    """Whether the host was restarted since the attempt's release."""
    return history.releasing is not None and history.releasing.boot_id != boot_id


@dataclass(frozen=True)
class Begin:
    """Start the attempt: bind a slot to it."""

    desired: Desired


@dataclass(frozen=True)
class Tell:
    """Pass the control plane's word on to the attempt that is here."""

    desired: Desired


@dataclass(frozen=True)
class Refuse:
    """Do not start the attempt; report `facts` instead, and that no container of it is left, once none is."""

    desired: Desired
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Orphan:
    """The control plane does not know the attempt: say so, stop nothing yet."""

    key: AttemptKey


@dataclass(frozen=True)
class Abandon:
    """The control plane did not know the attempt for longer than its grace: stop and drop it."""

    key: AttemptKey


Step = Begin | Tell | Refuse | Orphan | Abandon


@dataclass(frozen=True)
class Local:
    """An attempt that is here. `orphaned` is the monotonic time (seconds) since when nobody wants it."""

    key: AttemptKey
    orphaned: float | None = None


def number(key: AttemptKey) -> AttemptNumber:
    """The attempt without its token."""
    return key.run_id, key.attempt


def converge(
    desired: Mapping[AttemptNumber, Desired], local: Iterable[Local], now: float, orphan_grace: float
) -> list[Step]:
    """Compare all that is desired with all that is here. Absence kills nothing before `orphan_grace` (seconds).

    An attempt desired under another token than the one here waits until the one here is gone.
    """
    steps: list[Step] = []
    here = {number(entry.key): entry for entry in local}
    for key, entry in here.items():
        word = desired.get(key)
        if word is not None and word.key == entry.key and word.action is not Action.ORPHAN:
            steps.append(Tell(word))
        elif entry.orphaned is None:
            steps.append(Orphan(entry.key))
        elif now - entry.orphaned >= orphan_grace:
            steps.append(Abandon(entry.key))
    for key, word in desired.items():
        if key not in here and word.action in (Action.RUN, Action.STOP):
            steps.append(_unknown_here(word))
    return steps


def _unknown_here(word: Desired) -> Begin | Refuse:
    if word.ended:
        return Refuse(word, ())
    if word.known_seq > 0:
        message = (
            "the agent's record of this attempt is lost, so it is not started a second time; what is left of it there "
            "is stopped. Start the run again: `ffctl runs rerun`"
        )
        return Refuse(word, (Ended(State.FAILED, Reason.STATE_LOST, message),))
    if word.action is Action.RUN:
        return Begin(word)
    return Refuse(word, (unbegun(word.stop_cause), ContainerGone()))


def unbegun(cause: StopCause) -> Ended | StateChanged:
    """What becomes of an attempt that was stopped before user code ran; one that was only in the way goes elsewhere."""
    if cause is StopCause.DRAIN:
        return StateChanged(State.QUEUED, Reason.AGENT_DRAINED, DRAINED)
    messages = {
        StopCause.CANCEL: "cancelled before the program began",
        StopCause.SUPERSEDED: "given up as lost before the program began",
        StopCause.ORPHAN: "stopped before the program began: the control plane does not know this attempt",
        StopCause.TIMEOUT: "stopped before the program began",
    }
    return Ended(State.CANCELLED, Reason.CANCEL_REQUESTED, messages[cause])
