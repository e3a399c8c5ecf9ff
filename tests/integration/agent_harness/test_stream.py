"""The agent's side of the protocol, against a scripted control plane."""

import asyncio
from pathlib import Path

import pytest
import structlog
from fastflow.agent.v1 import desired_pb2, gateway_pb2
from fastflow_agent.stream import link, session
from google.protobuf.duration_pb2 import Duration

from tests.integration.agent_harness.conftest import RunningAgent
from tests.integration.agent_harness.controlplane import ScriptedControlPlane, facts, forget, stop

HELLO = "print('hello')\n"
SLEEPER = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
print('sleeping', flush=True)
while True:
    time.sleep(0.05)
"""
WAITS_FOR_FILE = """
import pathlib, time
print('waiting', flush=True)
while not pathlib.Path('{path}').exists():
    time.sleep(0.02)
print('done', flush=True)
raise SystemExit(5)
"""


def _conditions(heartbeat: gateway_pb2.Heartbeat) -> dict[str, str]:
    return {held.type: held.message for held in heartbeat.conditions}


async def test_hello_says_who_the_agent_is_and_what_it_has(
    controlplane: ScriptedControlPlane, agent: RunningAgent
) -> None:
    stream = await controlplane.stream()
    hello = await stream.welcome()
    assert (hello.protocol_min, hello.protocol_max) == (1, 2)
    assert hello.agent_name == "worker-1"
    assert hello.agent_id == (agent.folder / "agent-id").read_text().strip()
    assert hello.instance_id
    assert hello.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert hello.capacity.cpu_milli_cores >= 1000
    assert hello.capacity.slots == 3
    assert dict(hello.labels) == {"zone": "a"}
    assert hello.runtime.runtime == "process"
    assert hello.runtime.python_versions
    assert hello.cluster_id == ""


async def test_heartbeats_count_up_and_tell_conditions_and_the_revision_taken_over(
    controlplane: ScriptedControlPlane, agent: RunningAgent
) -> None:
    stream = await controlplane.stream()
    await stream.welcome()
    await stream.full(revision=4)
    first = await stream.until_applied(4)
    second = await stream.next("heartbeat")
    assert second.number == first.number + 1
    assert "Unconfined" in _conditions(first)
    await stream.delta(previous=4, revision=6)
    await stream.until_applied(6)


async def test_a_run_goes_from_assignment_to_forgotten(controlplane: ScriptedControlPlane, agent: RunningAgent) -> None:
    stream = await controlplane.stream()
    await stream.welcome()
    await stream.full()
    word = controlplane.run("import os\nprint(os.environ['GREETING'])\nraise SystemExit(7)\n")
    word.spec.environment["GREETING"] = "good day"
    await stream.delta(word, previous=1, revision=2)
    events = await stream.until_fact("container_gone")
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert facts(events) == [
        *["state_changed"] * 2,
        "provenance_known",
        *["state_changed"] * 2,
        "ended",
        "container_gone",
    ]
    said = [event.state_changed.message for event in events if event.HasField("state_changed")]
    assert said == ["", "its environment is being prepared", "its environment is ready", ""]
    ended = events[5].ended
    assert (ended.exit_code, ended.reason) == (7, 1)
    run = word.key.run_id
    await agent.until(lambda: run in controlplane.sealed)
    assert controlplane.logs[run] == b"good day\n"
    assert controlplane.sealed[run] == len(controlplane.logs[run])
    await stream.delta(forget(word), previous=2, revision=3)
    await agent.until(lambda: not agent.slots())


async def test_a_full_set_in_pages_counts_only_when_it_is_whole(
    controlplane: ScriptedControlPlane, agent: RunningAgent
) -> None:
    stream = await controlplane.stream()
    await stream.welcome()
    words = [controlplane.run(HELLO) for _ in range(3)]
    await stream.send(desired=desired_pb2.DesiredPage(revision=5, full=True, attempts=words[:2]))
    await asyncio.sleep(0.5)
    assert agent.slots() == []
    await stream.send(desired=desired_pb2.DesiredPage(revision=5, full=True, last_page=True, attempts=words[2:]))
    started = {event.key.run_id for event in await stream.events(1)}
    while len(started) < 3:
        started |= {event.key.run_id for event in (await stream.next("events")).events}
    assert started == {word.key.run_id for word in words}


async def test_a_difference_that_does_not_follow_opens_the_stream_anew(
    controlplane: ScriptedControlPlane, agent: RunningAgent
) -> None:
    stream = await controlplane.stream()
    await stream.welcome()
    await stream.full(revision=1)
    await stream.delta(controlplane.run(HELLO), previous=2, revision=3)
    again = await controlplane.stream()
    hello = await again.welcome()
    assert hello.last_revision == 1
    assert agent.slots() == []


async def test_events_are_sent_until_they_are_acknowledged(
    controlplane: ScriptedControlPlane, agent: RunningAgent
) -> None:
    stream = await controlplane.stream()
    await stream.welcome()
    word = controlplane.run(HELLO)
    await stream.full(word)
    await stream.hear_of(word)
    await stream.events(5)
    await stream.ack(word.key, 2)
    stream.end()

    again = await controlplane.stream()
    await again.welcome()
    word.known_seq = 3
    await again.full(word)
    assert [event.sequence for event in await again.events(7)] == [4, 5, 6, 7]


async def test_the_inventory_tells_what_is_here(controlplane: ScriptedControlPlane, agent: RunningAgent) -> None:
    stream = await controlplane.stream()
    assert await stream.inventory() == []
    stream.end()
    stream = await controlplane.stream()
    await stream.welcome()
    word = controlplane.run(HELLO)
    await stream.full(word)
    await stream.until_fact("container_gone")
    stream.end()
    stream = await controlplane.stream()
    (found,) = await stream.inventory()
    assert found.key == word.key
    assert found.state == 6  # SUCCEEDED
    assert found.last_event == 7
    assert found.container_gone
    assert len(found.slot) == 16
    assert found.pipeline == "p"


async def test_a_gap_is_filled_from_where_the_control_plane_stands(
    controlplane: ScriptedControlPlane, agent: RunningAgent, tmp_path: Path
) -> None:
    stream = await controlplane.stream()
    await stream.welcome()
    # Nothing more is told of it meanwhile.
    word = controlplane.run(WAITS_FOR_FILE.format(path=tmp_path / "go"))
    await stream.full(word)
    await stream.hear_of(word)
    await stream.events(5)
    await stream.ack(word.key, 1, "GAP")
    assert [event.sequence for event in await stream.events(5)] == [2, 3, 4, 5]
    (tmp_path / "go").touch()
    await stream.until_fact("container_gone")


@pytest.mark.parametrize("rejection", ["STALE_ATTEMPT", "ALREADY_TERMINAL", "UNKNOWN_ATTEMPT", "BAD_TOKEN"])
async def test_a_rejection_settles_an_event(
    controlplane: ScriptedControlPlane, agent: RunningAgent, rejection: str
) -> None:
    stream = await controlplane.stream()
    await stream.welcome()
    word = controlplane.run(HELLO)
    await stream.full(word)
    await stream.hear_of(word)
    await stream.events(7)
    await stream.ack(word.key, 7, rejection)
    await stream.delta(previous=1, revision=2)
    await stream.until_applied(2)
    stream.end()
    again = await controlplane.stream()
    await again.welcome()
    # Without the attempt: a word for it tells what the control plane has, and the agent sends the rest again.
    await again.full(revision=2)
    heartbeats = 0
    while heartbeats < 3:
        message = await again.next("events", "heartbeat")
        assert isinstance(message, gateway_pb2.Heartbeat), message
        heartbeats += message.applied_revision == 2
    assert len(agent.slots()) == 1


async def test_a_stop_ends_the_program(controlplane: ScriptedControlPlane, agent: RunningAgent) -> None:
    stream = await controlplane.stream()
    await stream.welcome()
    word = controlplane.run(SLEEPER)
    await stream.full(word)
    await stream.hear_of(word)
    await agent.until(lambda: b"sleeping" in controlplane.logs.get(word.key.run_id, b""))
    await stream.delta(stop(word), previous=1, revision=2)
    events = await stream.until_fact("container_gone")
    assert facts(events)[-3:] == ["state_changed", "ended", "container_gone"]
    ended = events[-2].ended
    assert (ended.state, ended.exit_code) == (8, 3)  # CANCELLED, with the program's own code


async def test_what_runs_goes_on_while_the_control_plane_is_away(
    controlplane: ScriptedControlPlane, agent: RunningAgent, tmp_path: Path
) -> None:
    stream = await controlplane.stream()
    await stream.welcome()
    word = controlplane.run(WAITS_FOR_FILE.format(path=tmp_path / "go"))
    await stream.full(word)
    await stream.hear_of(word)
    await agent.until(lambda: b"waiting" in controlplane.logs.get(word.key.run_id, b""))
    await controlplane.stop()
    (tmp_path / "go").touch()
    await asyncio.sleep(0.5)
    await controlplane.start()
    again = await controlplane.stream()
    await again.welcome()
    await again.full(word)
    events = await again.until_fact("container_gone")
    assert events[-2].ended.exit_code == 5
    await agent.until(lambda: word.key.run_id in controlplane.sealed)
    assert controlplane.logs[word.key.run_id] == b"waiting\ndone\n"


async def test_a_stopped_agent_says_goodbye_and_its_successor_takes_over_what_runs(
    controlplane: ScriptedControlPlane, agent: RunningAgent, tmp_path: Path
) -> None:
    stream = await controlplane.stream()
    first = await stream.welcome()
    word = controlplane.run(WAITS_FOR_FILE.format(path=tmp_path / "go"))
    await stream.full(word)
    await stream.hear_of(word)
    await agent.until(lambda: b"waiting" in controlplane.logs.get(word.key.run_id, b""))
    stopping = asyncio.create_task(agent.stop())
    assert await stream.next("goodbye") is not None
    assert await stream.next("hello") is None
    stream.end()
    await stopping
    (tmp_path / "go").touch()

    agent.start()
    stream = await controlplane.stream()
    second = await stream.welcome()
    assert second.agent_id == first.agent_id
    assert second.instance_id != first.instance_id
    assert (second.cluster_id, second.last_revision) == ("cluster-1", 1)
    await stream.full(word)
    events = await stream.until_fact("container_gone")
    assert events[-2].ended.exit_code == 5
    await agent.until(lambda: word.key.run_id in controlplane.sealed)
    assert controlplane.logs[word.key.run_id] == b"waiting\ndone\n"


async def test_another_clusters_control_plane_changes_nothing_here(
    controlplane: ScriptedControlPlane, agent: RunningAgent
) -> None:
    stream = await controlplane.stream()
    await stream.welcome()
    word = controlplane.run(SLEEPER)
    await stream.full(word)
    await stream.hear_of(word)
    await agent.until(lambda: b"sleeping" in controlplane.logs.get(word.key.run_id, b""))
    stream.end()

    stream = await controlplane.stream()
    await stream.welcome(cluster_id="cluster-2", orphan_grace=Duration(nanos=1))
    await stream.full(controlplane.run(HELLO))
    heartbeats = [await stream.next("heartbeat") for _ in range(3)]
    assert "cluster-2" in _conditions(heartbeats[-1])["Quarantined"]
    assert heartbeats[-1].conditions[0].blocks_placement or heartbeats[-1].conditions[1].blocks_placement
    assert heartbeats[-1].applied_revision == 0
    assert len(agent.slots()) == 1
    stream.end()

    stream = await controlplane.stream()
    await stream.welcome()
    await stream.full(stop(word), revision=2)
    heartbeat = await stream.until_applied(2)
    assert "Quarantined" not in _conditions(heartbeat)
    await stream.until_fact("container_gone")


async def test_a_restored_database_is_noticed_by_its_older_revision(
    controlplane: ScriptedControlPlane, agent: RunningAgent
) -> None:
    stream = await controlplane.stream()
    await stream.welcome()
    await stream.full(revision=9)
    await stream.until_applied(9)
    stream.end()
    stream = await controlplane.stream()
    await stream.welcome()
    await stream.full(controlplane.run(HELLO), revision=8)
    while "Quarantined" not in _conditions(await stream.next("heartbeat")):
        pass
    assert agent.slots() == []


async def test_orphans_are_said_and_live_until_their_grace_is_over(
    controlplane: ScriptedControlPlane, agent: RunningAgent
) -> None:
    stream = await controlplane.stream()
    await stream.welcome()
    word = controlplane.run(SLEEPER)
    await stream.full(word)
    await stream.hear_of(word)
    await agent.until(lambda: b"sleeping" in controlplane.logs.get(word.key.run_id, b""))
    stream.end()

    stream = await controlplane.stream()
    await stream.welcome(orphan_grace=Duration(seconds=1))
    await stream.full(desired_pb2.DesiredAttempt(key=word.key, action=desired_pb2.DESIRED_ACTION_ORPHAN))
    heartbeat = await stream.until_applied(1)
    while "OrphanedAttempts" not in _conditions(heartbeat):
        heartbeat = await stream.next("heartbeat")
    assert word.key.run_id in _conditions(heartbeat)["OrphanedAttempts"]
    assert len(agent.slots()) == 1
    await stream.until_fact("container_gone")
    await agent.until(lambda: not agent.slots())
    while "OrphanedAttempts" in _conditions(await stream.next("heartbeat")):
        pass


async def test_messages_of_a_newer_protocol_are_passed_over(
    controlplane: ScriptedControlPlane, agent: RunningAgent
) -> None:
    stream = await controlplane.stream()
    await stream.welcome()
    await stream.send_bytes(b"\xa2\x06\x03new")  # field 100 of the oneof
    word = controlplane.run(HELLO)
    word.action = 99
    await stream.full(word, revision=2)
    await stream.until_applied(2)
    assert agent.slots() == []


async def test_a_refused_agent_keeps_quiet_for_a_while(controlplane: ScriptedControlPlane, agent: RunningAgent) -> None:
    stream = await controlplane.stream()
    await stream.next("hello")
    await stream.send(
        rejection=gateway_pb2.Rejection(code=gateway_pb2.REJECTION_CODE_DUPLICATE_AGENT, message="it is taken")
    )
    stream.end()
    await asyncio.sleep(2.0)
    assert controlplane.waiting_streams == 0


async def test_an_agent_says_that_it_and_the_control_plane_are_too_far_apart_and_goes_on_asking(
    controlplane: ScriptedControlPlane, agent: RunningAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "REFUSED_SECONDS", 0.5)
    with structlog.testing.capture_logs() as logged:
        stream = await controlplane.stream()
        await stream.next("hello")
        why = "the agent is too old; upgrade Fast-Flow on its host"
        await stream.send(rejection=gateway_pb2.Rejection(code=gateway_pb2.REJECTION_CODE_PROTOCOL, message=why))
        stream.end()
        newer = await controlplane.stream()
        await newer.welcome(protocol=7)
        again = await controlplane.stream()
    held = {entry["condition"]: entry["message"] for entry in logged if entry["event"] == "condition holds"}
    assert why in held["ProtocolMismatch"]
    await again.welcome()
    await again.full()
    assert "ProtocolMismatch" not in _conditions(await again.next("heartbeat"))


async def test_a_control_plane_that_answers_nothing_is_left(
    controlplane: ScriptedControlPlane, agent: RunningAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "WELCOME_SECONDS", 0.5)
    stuck = await controlplane.stream()
    await stuck.next("hello")
    again = await controlplane.stream()
    await again.welcome()


async def test_telemetry_and_heartbeats_need_no_answer(controlplane: ScriptedControlPlane, agent: RunningAgent) -> None:
    stream = await controlplane.stream()
    await stream.welcome()
    await stream.full()
    numbers = [(await stream.next("heartbeat")).number for _ in range(5)]
    assert numbers == sorted(set(numbers))
