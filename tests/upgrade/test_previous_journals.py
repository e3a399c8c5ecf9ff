"""Today's agent takes up what an agent of the previous version had in hand, from the journal that one wrote."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
from fastflow_agent.clock import Clock
from fastflow_agent.desired import Action, Desired
from fastflow_agent.journal import Journal
from fastflow_agent.model import AttemptKey, Reason, State
from fastflow_agent.runtime.base import SlotState

from tests.unit.agent.doubles import Container
from tests.unit.agent.world import SPEC, Known, World

JOURNALS = Path(__file__).parent / "previous/journals"
LOG = b"written under the previous agent\n"


@pytest.mark.parametrize("journal", [path.stem for path in sorted(JOURNALS.iterdir())])
async def test_each_record_of_a_previous_journal_is_understood_and_kept(tmp_path: Path, journal: str) -> None:
    written = (JOURNALS / f"{journal}.journal").read_bytes()
    path = tmp_path / "journal"
    path.write_bytes(written)
    with ThreadPoolExecutor(1) as disk:
        opened = await Journal.open(path, disk, Clock())
        assert opened is not None
        await opened.close()
    assert path.read_bytes().rstrip(b"\0") == written
    events = [record["event"] for record in records(written) if record["step"] == "EVENT"]
    assert [event.sequence for event in opened.history.events] == [event["sequence"] for event in events]
    assert [event.fact.fact for event in opened.history.events] == [event["fact"]["fact"] for event in events]


async def test_what_every_step_of_a_previous_journal_says_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes((JOURNALS / "every-record.journal").read_bytes())
    with ThreadPoolExecutor(1) as disk:
        opened = await Journal.open(path, disk, Clock())
        assert opened is not None
        await opened.close()
    history = opened.history
    assert (history.generation, history.log_inode, history.released, history.oom_kills) == ("generation-1", 9, True, 1)
    assert history.stopping is not None
    assert history.signalled is not None
    assert history.ended is not None
    assert (history.ended.state, history.ended.exit_code, history.ended.signal) == (State.TIMED_OUT, 137, 9)
    assert history.ended.out_of_memory is not None
    assert history.ended.out_of_memory.process == "python3"
    assert history.crossings[1].clear_time is not None
    assert history.losses == {("TRUNCATED", 5)}
    assert (history.acked, history.container_gone, history.end_offset, history.forgotten) == (20, True, 4711, True)


async def test_a_run_in_flight_is_watched_to_its_end(world: World) -> None:
    key = await taken_up(world, "running", Container(SlotState.RUNNING, environment={}))
    await world.start()
    await world.running(key)
    world.write(key, b"and under this one\n")
    world.runtime.end(world.slot(key), 5)
    await world.forgotten(key)
    assert world.ended(key).exit_code == 5
    assert world.shipper.logs[key] == LOG + b"and under this one\n"
    assert world.runtime.releases == []
    assert world.known[key].word.action is Action.FORGET


async def test_a_run_that_a_reboot_ended_has_that_reason(world: World) -> None:
    key = await taken_up(world, "running", Container(SlotState.RUNNING, environment={}))
    await world.reboot()
    await world.start()
    await world.forgotten(key)
    assert world.ended(key).reason is Reason.HOST_REBOOT


async def test_a_stop_that_had_begun_ends_as_one(world: World) -> None:
    key = await taken_up(world, "stopping", Container(SlotState.EXITED, 143, environment={}))
    await world.start()
    await world.forgotten(key, passing=0.5)
    assert world.ended(key).state is State.CANCELLED


@pytest.mark.parametrize(("journal", "code"), [("ended", 7), ("ended-unknown", None)])
async def test_an_end_that_was_written_is_told_once_as_it_was(world: World, journal: str, code: int | None) -> None:
    key = await taken_up(world, journal, Container(SlotState.EXITED, code, environment={}))
    await world.start()
    await world.forgotten(key)
    end = world.ended(key)
    assert (end.state, end.reason, end.exit_code) == (State.FAILED, Reason.EXIT_CODE, code)
    assert world.shipper.logs[key] == LOG


async def test_what_waited_for_its_release_is_released_once(world: World) -> None:
    key = await taken_up(world, "waiting", Container(SlotState.RUNNING))
    await world.start()
    await world.running(key)
    world.runtime.end(world.slot(key), 0)
    await world.forgotten(key)
    assert world.ended(key).state is State.SUCCEEDED
    assert len(world.runtime.releases) == 1


async def taken_up(world: World, name: str, container: Container) -> AttemptKey:
    """Lay a previous agent's attempt on this host, and what the control plane had acknowledged of it beside it."""
    written = (JOURNALS / f"{name}.journal").read_bytes()
    intent = records(written)[0]
    key, slot = AttemptKey(intent["run_id"], intent["attempt"], intent["claim_token"]), intent["slot"]
    paths = world.paths(slot)
    paths.root.mkdir(parents=True)
    paths.log.write_bytes(LOG)
    paths.journal.write_bytes(with_inode(written, paths.log.stat().st_ino))
    world.runtime.containers[slot] = container
    journal = await Journal.open(paths.journal, world.disk, world.clock)
    assert journal is not None
    await journal.close()
    history = journal.history
    settled = [event for event in history.events if event.sequence <= history.acked]
    world.known[key] = Known(Desired(key, Action.RUN, spec=SPEC), settled)
    return key


def with_inode(journal: bytes, inode: int) -> bytes:
    """The journal with the number of the log's file, which no file can be given, and the sum of that line."""
    lines = []
    for line in journal.splitlines():
        record = json.loads(line[9:])
        if record["step"] == "CREATED":
            body = json.dumps({**record, "log_inode": inode}, separators=(",", ":")).encode()
            line = b"%08x %s" % (google_crc32c.value(body), body)
        lines.append(line + b"\n")
    return b"".join(lines)


def records(journal: bytes) -> list[dict[str, Any]]:
    """What stands in a journal, as JSON says it."""
    return [json.loads(line[9:]) for line in journal.splitlines()]
