"""What a person sees of an agent that is emptied, and what is asked before something is given up."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastflow.v1 import agents_pb2, runs_pb2
from ffctl import draining

from .conftest import RUN_ID, SHORT_ID, Ffctl, ScriptedServer, run_of
from .terminal import Terminal


def agent_of(attempts: int, logs: int = 0) -> agents_pb2.Agent:
    drain = agents_pb2.Drain(attempts=attempts, logs=logs, complete=not attempts and not logs)
    drain.deadline_time.FromSeconds(1_763_900_000)
    agent = agents_pb2.Agent(name="worker-1", state=agents_pb2.AGENT_STATE_DRAINING, drain=drain)
    for _ in range(attempts):
        agent.attempts.add(run_id=RUN_ID, attempt=1, pipeline="etl")
    return agent


@pytest.fixture
def answers(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets the server answer with these agents, one after the other."""
    monkeypatch.setattr(draining, "POLL_S", 0.01)

    def answer(first: agents_pb2.Agent, *then: agents_pb2.Agent) -> None:
        rest: Iterator[agents_pb2.Agent] = iter(then)
        server.answers["DrainAgent"] = lambda request, context: agents_pb2.DrainAgentResponse(agent=first)
        server.answers["GetAgent"] = lambda request, context: agents_pb2.GetAgentResponse(agent=next(rest))

    return answer


def test_it_is_told_what_is_left_until_nothing_is(
    server: ScriptedServer, ffctl: Ffctl, answers: Callable[..., None]
) -> None:
    answers(agent_of(2), agent_of(1), agent_of(0, logs=1), agent_of(0))
    ended = ffctl("agents", "drain", "worker-1", "--deadline", "1.5h")
    assert ended.code == 0
    assert ended.err.splitlines() == [
        f"worker-1: 2 runs left, stopped at 12:13:20 (etl {SHORT_ID}, etl {SHORT_ID})",
        f"worker-1: 1 run left, stopped at 12:13:20 (etl {SHORT_ID})",
        "worker-1: the rest of 1 log is on its way",
        "worker-1 is empty. It takes runs again after: ffctl agents resume worker-1",
    ]
    (request,) = server.asked(agents_pb2.DrainAgentRequest)
    assert (request.name, request.deadline.seconds, len(request.request_id)) == ("worker-1", 5400, 36)


def test_what_keeps_an_agent_in_quarantine_from_being_called_empty_is_told(
    ffctl: Ffctl, answers: Callable[..., None]
) -> None:
    unknown = agent_of(0)
    unknown.drain.complete = False
    unknown.state = agents_pb2.AGENT_STATE_QUARANTINED
    unknown.message = "is in quarantine: run ffctl agents accept worker-1"
    answers(unknown, agent_of(0))
    ended = ffctl("agents", "drain", "worker-1")
    assert ended.err.splitlines() == [
        "worker-1: nobody knows what runs there; it is in quarantine: run ffctl agents accept worker-1",
        "worker-1 is empty. It takes runs again after: ffctl agents resume worker-1",
    ]


def test_without_waiting_it_is_told_how_to_see_more(ffctl: Ffctl, answers: Callable[..., None]) -> None:
    answers(agent_of(1))
    ended = ffctl("agents", "drain", "worker-1", "--no-wait")
    assert ended.code == 0
    assert "1 run left" in ended.err
    assert "ffctl agents show worker-1" in ended.err


def test_an_agent_that_somebody_resumed_meanwhile_is_not_empty(ffctl: Ffctl, answers: Callable[..., None]) -> None:
    answers(agent_of(1), agents_pb2.Agent(name="worker-1"))
    ended = ffctl("agents", "drain", "worker-1")
    assert ended.code == 1
    assert "take runs again" in ended.err


@pytest.mark.parametrize(("given", "seconds"), [("30s", 30), ("0", 0), ("2m", 120), ("1.5h", 5400), ("2d", 172800)])
def test_a_cancel_names_its_grace(server: ScriptedServer, ffctl: Ffctl, given: str, seconds: int) -> None:
    server.answers["CancelRun"] = lambda request, context: runs_pb2.CancelRunResponse(run=run_of("RUNNING"))
    assert ffctl("runs", "cancel", SHORT_ID, "--grace", given).code == 0
    (request,) = server.asked(runs_pb2.CancelRunRequest)
    assert request.HasField("grace")
    assert request.grace.seconds == seconds


def test_a_time_that_is_none_is_refused_with_examples(ffctl: Ffctl) -> None:
    ended = ffctl("runs", "cancel", SHORT_ID, "--grace", "soon")
    assert ended.code == 2
    assert "30s, 10m, 1.5h or 2d" in ended.err


@pytest.mark.parametrize(("typed", "code", "asked"), [("y\n", 0, 1), ("n\n", 130, 0)])
def test_giving_a_run_up_is_asked_for_on_a_terminal(
    server: ScriptedServer, spawn: Any, typed: str, code: int, asked: int
) -> None:
    run = run_of("RUNNING", attempt=1, attempts=[runs_pb2.Attempt(number=1, agent="worker-1")])
    server.answers["GetRun"] = lambda request, context: runs_pb2.GetRunResponse(run=run)
    lost = run_of("LOST", reason=runs_pb2.REASON_ABANDONED)
    server.answers["AbandonRun"] = lambda request, context: runs_pb2.AbandonRunResponse(run=lost)
    terminal = Terminal(spawn, "runs", "abandon", SHORT_ID, columns=120)
    terminal.until("may still run on worker-1")
    terminal.type(typed)
    assert terminal.end() == code
    assert len(server.asked(runs_pb2.AbandonRunRequest)) == asked
