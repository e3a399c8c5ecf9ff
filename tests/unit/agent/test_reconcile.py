import itertools
from dataclasses import replace

import pytest
from fastflow_agent.desired import Action, Desired
from fastflow_agent.facts import Ended, Event, StateChanged
from fastflow_agent.model import AttemptKey, Reason, State, StopCause
from fastflow_agent.reconcile import (
    Abandon,
    Begin,
    Local,
    Orphan,
    Refuse,
    Resumption,
    Tell,
    converge,
    number,
    resume,
)
from fastflow_agent.records import History, Noted, Released, Releasing, Started
from fastflow_agent.runtime.base import Observation, SlotState

from tests.unit.agent.world import INTENT, NOW

KEY = AttemptKey("run", 1, "token")
GRACE = 300.0
CREATED = Observation(SlotState.CREATED)
EXITED = Observation(SlotState.EXITED, 0)
RUNNING = Observation(SlotState.RUNNING)
ABSENT = Observation(SlotState.ABSENT)
RELEASING = (Started(), Releasing(NOW, 1.0, "boot-1"))


def _history(*records: object) -> History:
    history = History.of([INTENT, *records])
    assert history is not None
    return history


@pytest.mark.parametrize(
    ("records", "seen", "was_released", "boot", "expected"),
    [
        ((), ABSENT, False, "boot-1", Resumption.WITHHELD),
        ((Started(),), RUNNING, False, "boot-1", Resumption.WITHHELD),
        # Nobody but the journal knows after a reboot, and it says that nothing was released.
        ((Started(),), EXITED, True, "boot-2", Resumption.WITHHELD),
        (RELEASING, RUNNING, False, "boot-1", Resumption.WITHHELD),
        (RELEASING, EXITED, False, "boot-1", Resumption.WITHHELD),
        (RELEASING, RUNNING, True, "boot-1", Resumption.ATTACH),
        ((*RELEASING, Released()), RUNNING, True, "boot-1", Resumption.ATTACH),
        ((*RELEASING, Released()), EXITED, True, "boot-1", Resumption.CONCLUDE),
        # In doubt it ran.
        (RELEASING, ABSENT, False, "boot-1", Resumption.CONCLUDE),
        (RELEASING, ABSENT, False, "boot-2", Resumption.CONCLUDE),
        (RELEASING, EXITED, False, "boot-2", Resumption.CONCLUDE),
        # What the engine had not yet on disk is gone with the power, its start of the container too.
        (RELEASING, CREATED, False, "boot-2", Resumption.FORGOTTEN),
        ((*RELEASING, Released()), CREATED, False, "boot-2", Resumption.FORGOTTEN),
        ((Started(),), CREATED, False, "boot-2", Resumption.WITHHELD),
    ],
)
def test_how_an_attempt_goes_on_after_a_restart(
    records: tuple[object, ...], seen: Observation, was_released: bool, boot: str, expected: Resumption
) -> None:
    assert resume(_history(*records), seen, was_released, boot) is expected


@pytest.mark.parametrize("fact", [Ended(State.SUCCEEDED), StateChanged(State.QUEUED, Reason.RUNTIME)])
def test_a_known_result_is_never_changed_by_what_the_engine_shows(fact: Ended | StateChanged) -> None:
    history = _history(*RELEASING, Released(), Noted(Event(1, NOW, fact)))
    for seen, released, boot in itertools.product((RUNNING, EXITED, ABSENT), (True, False), ("boot-1", "boot-2")):
        assert resume(history, seen, released, boot) is Resumption.FINISH


def _converge(word: Desired | None, *local: Local, now: float = 0.0) -> list[object]:
    return list(converge({number(word.key): word} if word else {}, local, now, GRACE))


def test_a_new_run_begins() -> None:
    word = Desired(KEY, Action.RUN)
    assert _converge(word) == [Begin(word)]


def test_a_known_run_is_told_and_not_begun_again() -> None:
    word = Desired(KEY, Action.RUN, known_seq=3)
    assert _converge(word, Local(KEY)) == [Tell(word)]


def test_a_run_that_began_elsewhere_in_time_is_refused_as_lost() -> None:
    word = Desired(KEY, Action.RUN, known_seq=1)
    (refuse,) = _converge(word)
    assert isinstance(refuse, Refuse)
    # That its container is gone is not known before all that no journal is bound to are.
    (ended,) = refuse.facts
    assert isinstance(ended, Ended)
    assert (ended.state, ended.reason) == (State.FAILED, Reason.STATE_LOST)


@pytest.mark.parametrize("action", [Action.RUN, Action.STOP])
@pytest.mark.parametrize("known_seq", [0, 3])
def test_of_what_ended_and_is_not_here_nothing_is_told_but_that_no_container_is_left(
    action: Action, known_seq: int
) -> None:
    word = Desired(KEY, action, known_seq=known_seq, ended=True)
    assert _converge(word) == [Refuse(word, ())]
    assert _converge(word, Local(KEY)) == [Tell(word)]


@pytest.mark.parametrize("cause", [StopCause.CANCEL, StopCause.SUPERSEDED])
def test_a_stop_of_what_never_came_is_answered_as_cancelled(cause: StopCause) -> None:
    (refuse,) = _converge(Desired(KEY, Action.STOP, stop_cause=cause))
    assert isinstance(refuse, Refuse)
    ended = refuse.facts[0]
    assert isinstance(ended, Ended)
    assert ended.state is State.CANCELLED


def test_what_waits_for_its_word_is_no_orphan_and_is_not_begun() -> None:
    word = Desired(KEY, Action.WAIT, known_seq=3)
    assert _converge(word, Local(KEY)) == [Tell(word)]
    assert _converge(word, Local(KEY, orphaned=5.0), now=5.0 + GRACE) == [Tell(word)]
    assert _converge(word) == []


@pytest.mark.parametrize("action", [Action.FORGET, Action.ORPHAN])
def test_there_is_nothing_to_forget_of_what_is_not_here(action: Action) -> None:
    assert _converge(Desired(KEY, action, known_seq=9)) == []


@pytest.mark.parametrize("word", [None, Desired(KEY, Action.ORPHAN)])
def test_an_orphan_is_said_at_once_and_abandoned_only_after_its_grace(word: Desired | None) -> None:
    assert _converge(word, Local(KEY), now=5.0) == [Orphan(KEY)]
    assert _converge(word, Local(KEY, orphaned=5.0), now=5.0 + GRACE - 0.1) == []
    assert _converge(word, Local(KEY, orphaned=5.0), now=5.0 + GRACE) == [Abandon(KEY)]


def test_the_same_attempt_under_another_token_waits_until_the_one_here_is_gone() -> None:
    word = Desired(replace(KEY, claim_token="newer"), Action.RUN)
    assert _converge(word, Local(KEY)) == [Orphan(KEY)]
    assert _converge(word) == [Begin(word)]
