"""What is removed because it need not be kept: by age, by number, by bytes; and what never is."""

from pathlib import Path

import pytest
from fastflow.ids import new_id
from fastflow_controlplane.agents.model import AgentFacts, Capacity
from fastflow_controlplane.errors import NotFound
from fastflow_controlplane.logs.follow import LogFollower
from fastflow_controlplane.logs.retention import StoredLog, surplus
from fastflow_controlplane.logs.store import LogKey, StoreUnavailable
from fastflow_controlplane.logs.uploads import Rejection
from fastflow_controlplane.runs.attempt_logs import AttemptLogRecords
from fastflow_controlplane.runs.model import AttemptKey, NewRun
from fastflow_controlplane.runs.retention import REQUESTS_KEPT_SECONDS, Bounds, Retention, may_go
from fastflow_controlplane.runs.states import Actor, Reason, RunState
from fastflow_controlplane.scheduler.placement import Offer
from fastflow_controlplane.store import Connection
from fastflow_controlplane.store.models import metadata
from fastflow_controlplane.store.queries import agents, attempts
from fastflow_controlplane.store.queries.attempts import Ending
from fastflow_controlplane.store.queries.lost_attempts import lose_all
from fastflow_controlplane.store.queries.registration import Belonging, register
from fastflow_controlplane.store.queries.retention import KeptAttempt, KeptRun
from fastflow_controlplane.store.queries.transitions import Epochs, note
from sqlalchemy import func, select

from tests.contract.databases import DATABASES
from tests.unit.runs.conftest import World

DAY = 24 * 3600.0
OUTPUT = b"what the program said\n"
SETTLED = KeptAttempt("agent", settled=True, revision=3)


@pytest.fixture(params=DATABASES)
def database_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def everybody_is_told(agent_id: str, revision: int) -> bool:
    return True


def retention(world: World, told: bool = True) -> Retention:
    return Retention(
        world.store, world.clock, world.settings, world.logs, lambda agent_id, revision: told, world.scheduler.forget
    )


async def ended_run(world: World, pipeline: str = "hello", log: bytes = OUTPUT, settled: bool = True) -> AttemptKey:
    """A run that ended, with its log; `settled` = its agent may forget it."""
    run = await world.service.create(NewRun(pipeline, environment={"A": "1"}))
    facts = AgentFacts("agent", "w", new_id(), capacity=Capacity(4000, 2**33))
    now, epochs = world.clock.now(), Epochs(0, 1)
    ending = Ending(RunState.SUCCEEDED, Reason.NONE, "", now, 0)

    def end(connection: Connection) -> AttemptKey:
        register(connection, facts, [], Belonging(), "c", now)
        key = attempts.assign(connection, run.id, facts.agent_id, "token", {}, epochs, now)
        assert key is not None
        assert attempts.advance(connection, key, RunState.RUNNING, Reason.NONE, "", "slot", 1, Epochs(1, 1), now)
        assert attempts.end(connection, key, Actor.AGENT, ending, Epochs(1, 1), {})
        if settled:
            note(connection, key, {"log_sealed": True, "log_bytes": len(log), "released": True})
            assert attempts.settle(connection, key) == "agent"
        return key

    async with world.logs.open(LogKey(run.id, 1)) as opened:
        await opened.append(0, [log])
        await opened.seal(len(log))
    return await world.store.write(end)


async def lost_run(world: World, log: bytes = OUTPUT) -> AttemptKey:
    """A run that was lost with the agent "away", which delivered some of its log."""
    run = await world.service.create(NewRun("hello"))
    facts = AgentFacts("away", "away", new_id(), capacity=Capacity(4000, 2**33))
    now, epochs = world.clock.now(), Epochs(0, 1)

    def lose(connection: Connection) -> AttemptKey:
        register(connection, facts, [], Belonging(), "c", now)
        key = attempts.assign(connection, run.id, facts.agent_id, "token", {}, epochs, now)
        assert key is not None
        assert [lost.key for lost in lose_all(connection, facts.agent_id, "away", epochs, now)] == [key]
        return key

    async with world.logs.open(LogKey(run.id, 1)) as opened:
        await opened.append(0, [log])
    return await world.store.write(lose)


async def kept(world: World) -> list[str]:
    return [run.id for run in (await world.service.list()).runs]


async def rows(world: World) -> dict[str, int]:
    """How many rows belong to runs, by table."""
    names = ("runs", "run_parameters", "attempts", "attempt_events", "log_removals")

    def count(connection: Connection) -> dict[str, int]:
        tables = {name: metadata.tables[name] for name in names}
        return {
            name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for name, table in tables.items()
        }

    return await world.store.read(count)


def files(world: World) -> list[Path]:
    return sorted(path for path in (world.settings.data_dir / "logs").rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("run", "goes"),
    [
        (KeptRun("b", 10, 50, (SETTLED,)), True),
        (KeptRun("b", 10, 50), True),
        (KeptRun("b", 10, None, (SETTLED,)), False),
        (KeptRun("b", 10, 100, (SETTLED,)), False),
        (KeptRun("b", 10, 50, (SETTLED, KeptAttempt("agent", settled=False, revision=1))), False),
        (KeptRun("b", 10, 50, (KeptAttempt("agent", settled=True, revision=4),)), False),
        (KeptRun("z", 10, 50, (SETTLED,)), False),
        (KeptRun("a", 10, 100, (SETTLED,)), True),
    ],
    ids=[
        "old",
        "old and never placed",
        "not ended",
        "young",
        "not settled",
        "agent not told",
        "newest",
        "one too many",
    ],
)
def test_a_run_goes_only_when_it_is_beyond_what_is_kept_and_nobody_waits_for_it(run: KeptRun, goes: bool) -> None:
    bounds = Bounds(newest="z", ended_before=100, beyond="a")
    assert may_go(run, bounds, lambda agent_id, revision: revision <= 3) is goes


@pytest.mark.parametrize(("excess", "chosen"), [(0, ""), (1, "b"), (10, "b"), (11, "bd"), (99, "bd")], ids=str)
def test_logs_of_the_oldest_runs_go_until_enough_bytes_are_freed(excess: int, chosen: str) -> None:
    oldest = [StoredLog(LogKey(name, 1), size) for name, size in (("a", 0), ("b", 10), ("c", 10), ("d", 10))]
    assert "".join(log.key.run_id for log in surplus(oldest, {"c"}, excess)) == chosen


async def test_runs_older_than_the_age_go_with_all_that_belonged_to_them(world: World) -> None:
    world.configure(run_max_age=30 * DAY)
    old = await ended_run(world)
    await world.clock.advance(20 * DAY)
    young, newest = await ended_run(world), await ended_run(world)
    await retention(world).tick()
    assert len(await kept(world)) == 3
    await world.clock.advance(11 * DAY)
    await retention(world).tick()
    assert await kept(world) == [newest.run_id, young.run_id]
    assert await rows(world) == {"runs": 2, "run_parameters": 2, "attempts": 2, "attempt_events": 0, "log_removals": 0}
    assert {path.parent.name for path in files(world)} == {young.run_id, newest.run_id}
    with pytest.raises(NotFound, match="or retention removed it"):
        await world.service.get(old.run_id)
    with pytest.raises(NotFound, match="or retention removed it"):
        await world.service.rerun(old.run_id)
    with pytest.raises(NotFound, match="or retention removed it"):
        await world.service.diff(young.run_id, old.run_id)


async def test_of_each_pipeline_its_newest_runs_are_kept(world: World) -> None:
    world.configure(run_max_count=2)
    world.catalog.metadata["other"] = world.catalog.metadata["hello"]
    hello = [await ended_run(world) for _ in range(5)]
    other = [await ended_run(world, "other") for _ in range(2)]
    await retention(world).tick()
    assert set(await kept(world)) == {key.run_id for key in (*hello[-2:], *other)}


async def test_the_newest_run_of_a_pipeline_stays_however_old_it_is(world: World) -> None:
    world.configure(run_max_age=DAY, run_max_count=1, log_max_total="1b")
    await ended_run(world)
    newest = await ended_run(world)
    await world.clock.advance(1000 * DAY)
    await retention(world).tick()
    assert await kept(world) == [newest.run_id]
    assert len(files(world)) == 2


async def test_runs_that_live_or_are_not_settled_stay_and_hold_up_no_other(world: World) -> None:
    world.configure(run_max_age=DAY)
    waiting = await world.service.create(NewRun("hello"))
    unsettled = await ended_run(world, settled=False)
    settled = await ended_run(world)
    newest = await ended_run(world)
    await world.clock.advance(2 * DAY)
    await retention(world).tick()
    assert set(await kept(world)) == {waiting.id, unsettled.run_id, newest.run_id}
    assert settled.run_id not in await kept(world)


async def test_a_run_stays_until_its_agent_knows_that_it_is_to_be_forgotten(world: World) -> None:
    world.configure(run_max_count=1)
    for _ in range(3):
        await ended_run(world)
    await retention(world, told=False).tick()
    assert len(await kept(world)) == 3
    await retention(world).tick()
    assert len(await kept(world)) == 1


async def test_what_a_removed_run_held_on_a_removed_agent_is_free_should_that_come_back(world: World) -> None:
    key = await ended_run(world, settled=False)
    waiting = await world.service.create(NewRun("hello"))
    await world.store.write(lambda connection: agents.remove(connection, "agent", world.clock.now()))
    world.scheduler.restore([], await world.store.read(attempts.read_held))
    limits = waiting.limits
    capacity = Capacity(limits.cpu_hard_milli_cores, limits.memory_hard_bytes)
    world.scheduler.agent_changed(Offer("agent", "w", capacity))
    assert [placement.fits for placement in world.scheduler.explain(waiting.id)] == [False]
    world.configure(run_max_count=1)
    await retention(world).tick()
    assert key.run_id not in await kept(world)
    assert [placement.fits for placement in world.scheduler.explain(waiting.id)] == [True]


async def test_no_limit_means_that_all_is_kept(world: World) -> None:
    world.configure(run_max_age=0, run_max_count=0, log_max_total="0")
    for _ in range(3):
        await ended_run(world)
    await world.clock.advance(10_000 * DAY)
    await retention(world).tick()
    assert len(await kept(world)) == 3
    assert len(files(world)) == 6


async def test_beyond_the_bytes_the_logs_of_the_oldest_runs_go_and_the_runs_say_so(world: World) -> None:
    world.configure(log_max_total=str(2 * len(OUTPUT)))
    keys = [await ended_run(world) for _ in range(4)]
    await retention(world).tick()
    assert len(await kept(world)) == 4
    first, last = [(await world.service.get(key.run_id)).attempts[0] for key in (keys[0], keys[3])]
    assert (first.log_removed_by, first.log_remove_time) == ("log_max_total", world.clock.now())
    assert first.log_bytes == len(OUTPUT)
    assert (last.log_removed_by, last.log_remove_time) == ("", None)
    assert {path.parent.name for path in files(world)} == {key.run_id for key in keys[2:]}
    follower = LogFollower(world.logs, world.service.get, world.changes)
    with pytest.raises(NotFound, match=r"was removed by retention on .* \(setting log_max_total\)") as refused:
        [piece async for piece in follower.read(keys[0].run_id)]
    assert refused.value.reason == "LOG_REMOVED"


async def test_the_log_of_a_lost_run_is_counted_and_goes_once_nobody_can_deliver_the_rest(world: World) -> None:
    world.configure(log_max_total=str(2 * len(OUTPUT)))
    lost = await lost_run(world)
    keys = [await ended_run(world) for _ in range(3)]
    await retention(world).tick()
    # Its agent may return.
    assert {path.parent.name for path in files(world)} == {lost.run_id, keys[2].run_id}
    assert (await world.service.get(lost.run_id)).attempts[0].log_bytes == len(OUTPUT)

    await world.store.write(lambda connection: agents.remove(connection, "away", world.clock.now()))
    keys.append(await ended_run(world))
    await retention(world).tick()
    assert {path.parent.name for path in files(world)} == {keys[2].run_id, keys[3].run_id}
    attempt = (await world.service.get(lost.run_id)).attempts[0]
    assert (attempt.log_removed_by, attempt.log_bytes) == ("log_max_total", len(OUTPUT))


async def test_a_log_that_can_not_be_looked_at_keeps_no_other(world: World) -> None:
    world.configure(log_max_total=str(len(OUTPUT)))
    lost = await lost_run(world)
    (log,) = files(world)
    log.unlink()
    log.mkdir()
    keys = [await ended_run(world) for _ in range(2)]
    with pytest.raises(StoreUnavailable):
        await retention(world).tick()
    assert {path.parent.name for path in files(world)} == {keys[1].run_id}
    assert (await world.service.get(lost.run_id)).attempts[0].log_bytes == 0


async def test_bytes_that_come_for_a_removed_log_or_run_are_refused_so_that_the_agent_forgets_it(world: World) -> None:
    world.configure(log_max_total=str(len(OUTPUT)), run_max_count=3)
    keys = [await ended_run(world) for _ in range(4)]
    await retention(world).tick()
    records = AttemptLogRecords(world.store, world.changes, world.registry)
    told = [await records.admit(key) for key in keys]
    assert told == [*[Rejection.UNKNOWN_ATTEMPT] * 3, Rejection.NONE]


class Dying(Exception):
    """Ends what stands for a process."""


@pytest.mark.parametrize("settings", [{"run_max_count": 1}, {"log_max_total": "1"}], ids=["runs", "logs"])
async def test_what_dies_between_rows_and_files_is_finished_by_the_next_start(
    world: World, settings: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.configure(**settings)
    for _ in range(5):
        await ended_run(world)

    async def die(run_id: str, attempt: int = 0) -> None:
        raise Dying

    with monkeypatch.context() as patched:
        patched.setattr(world.logs, "remove", die)
        with pytest.raises(Dying):
            await retention(world).tick()
    assert (await rows(world))["log_removals"] > 0
    assert len(files(world)) == 10
    await retention(world).tick()
    assert (await rows(world))["log_removals"] == 0
    assert len(files(world)) == 2


async def test_files_that_can_not_be_removed_now_are_removed_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.configure(run_max_count=1)
    for _ in range(2):
        await ended_run(world)

    async def refuse(run_id: str, attempt: int = 0) -> None:
        raise StoreUnavailable("read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(world.logs, "remove", refuse)
        with pytest.raises(StoreUnavailable):
            await retention(world).tick()
    await retention(world).tick()
    assert len(files(world)) == 2


async def test_a_file_that_can_never_be_removed_keeps_no_other(world: World) -> None:
    world.configure(run_max_count=1)
    keys = [await ended_run(world) for _ in range(4)]
    (log,) = [path for path in files(world) if path.parent.name == keys[0].run_id and path.suffix == ".log"]
    log.unlink()
    (log / "in the way").mkdir(parents=True)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await retention(world).tick()
        assert {path.parent.name for path in files(world)} == {keys[0].run_id, keys[3].run_id}
        assert await kept(world) == [keys[3].run_id]
        keys[3] = await ended_run(world)


async def test_files_that_no_row_speaks_of_are_left_alone(world: World) -> None:
    world.configure(run_max_count=1)
    await ended_run(world)
    stranger = LogKey(new_id(), 1)
    async with world.logs.open(stranger) as opened:
        await opened.append(0, [OUTPUT])
    await retention(world).tick()
    assert stranger.run_id in {path.parent.name for path in files(world)}


async def test_a_page_token_stays_true_while_runs_are_removed(world: World) -> None:
    world.configure(run_max_count=5)
    keys = [await ended_run(world) for _ in range(8)]
    first = await world.service.list(page_size=2)
    deep = await world.service.list(page_size=4)
    await retention(world).tick()
    rest = await world.service.list(page_size=10, page_token=first.next_page_token)
    assert [run.id for run in rest.runs] == [key.run_id for key in reversed(keys[3:6])]
    behind = await world.service.list(page_size=10, page_token=deep.next_page_token)
    assert [run.id for run in behind.runs] == [keys[3].run_id]


async def test_answers_to_requests_are_forgotten_after_their_time(world: World) -> None:
    first = await world.service.create(NewRun("hello", request_id="same"))
    await world.clock.advance(REQUESTS_KEPT_SECONDS - 1)
    await retention(world).tick()
    assert (await world.service.create(NewRun("hello", request_id="same"))).id == first.id
    await world.clock.advance(2)
    await retention(world).tick()
    assert (await world.service.create(NewRun("hello", request_id="same"))).id != first.id


async def test_a_repeated_request_for_a_run_that_was_removed_says_so(world: World) -> None:
    world.configure(run_max_count=1)
    new = NewRun("hello", environment={"A": "1"}, request_id="same")
    first = await world.service.create(new)
    await world.service.cancel(first.id)
    await ended_run(world)
    await retention(world).tick()
    with pytest.raises(NotFound, match="or retention removed it"):
        await world.service.create(new)


@pytest.mark.parametrize("follow", [False, True], ids=["read", "followed"])
async def test_a_reader_in_the_middle_of_a_log_gets_all_of_it_though_its_run_is_removed(
    world: World, follow: bool
) -> None:
    world.configure(run_max_count=1)
    long = b"".join(b"line %06d\n" % number for number in range(100_000))
    key, newest = await ended_run(world, log=long), await ended_run(world)
    follower = LogFollower(world.logs, world.service.get, world.changes)
    pieces = follower.read(key.run_id, follow=follow)
    first = await anext(pieces)
    assert first.next_offset < len(long)
    await retention(world).tick()
    world.changes.notify(key.run_id)
    assert {path.parent.name for path in files(world)} == {newest.run_id}
    rest = [piece async for piece in pieces]
    assert first.data + b"".join(piece.data for piece in rest) == long
    assert rest[-1].sealed
    with pytest.raises(NotFound, match="or retention removed it"):
        [piece async for piece in follower.read(key.run_id, follow=follow, offset=first.next_offset)]
