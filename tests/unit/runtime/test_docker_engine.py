"""What becomes of an engine's refusals: an engine that is away is waited for, and nothing else passes for that."""

import asyncio
import json
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fastflow_agent.model import Limits, SlotId
from fastflow_agent.runtime import folders
from fastflow_agent.runtime.base import (
    ContainerRemoved,
    ImageMissing,
    PreparerSpec,
    RuntimeFault,
    RuntimeUnavailable,
    SlotPaths,
    SlotSpec,
    SlotState,
)
from fastflow_agent.runtime.docker import DockerRuntime
from fastflow_agent.runtime.docker_engine import Engine
from fastflow_agent.runtime.docker_options import DockerOptions, DockerTimes

from tests.unit.runtime.scripted_engine import IMAGE_ID, ScriptedEngine

SLOT = SlotId("00000000000000aa")
QUESTIONS_OF_A_PROBE = ("GET /version", "GET /info", "GET /images/IMAGE/json")


@pytest.fixture
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedEngine]:
    # A short path: that of a Unix socket ends at 107 characters.
    engine = ScriptedEngine(tmp_path_factory.mktemp("engine"))
    yield engine
    engine.close()


@pytest.fixture
def threads() -> int:
    """Calls to the engine at once."""
    return 1


@pytest.fixture
async def runtime(engine: ScriptedEngine, tmp_path: Path, threads: int) -> AsyncIterator[DockerRuntime]:
    """A runtime that knows the image of before."""
    images = tmp_path / "images"
    images.mkdir()
    seen = {"uv_version": "0.9", "default": "/usr/bin/python3", "paths": {"3.11.2": "/usr/bin/python3"}}
    (images / f"{IMAGE_ID.removeprefix('sha256:')}.json").write_text(json.dumps(seen))
    options = DockerOptions(
        agent_id="agent",
        data_dir=tmp_path,
        env_dir=tmp_path / "env",
        image="runner:1",
        docker_host=engine.host,
        times=DockerTimes(event_retry=60.0, reinspect=60.0),
        threads=threads,
    )
    runtime = DockerRuntime(options)
    yield runtime
    await runtime.aclose()


@pytest.mark.parametrize("threads", [2])
async def test_a_preparer_that_is_cancelled_while_it_is_made_is_removed_after_that(
    engine: ScriptedEngine, tmp_path: Path, runtime: DockerRuntime
) -> None:
    create, start, remove = "POST /containers/create", "POST /containers/NAME/start", "DELETE /containers/NAME"
    engine.answers |= {create: (201, {"Id": "preparer"}), start: (204, b"")}
    made = engine.held[create] = threading.Event()
    (tmp_path / "env").mkdir()
    preparing = asyncio.create_task(runtime.run_preparer(PreparerSpec("name", tmp_path / "code", tmp_path / "cache")))
    while create not in engine.asked and not preparing.done():  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)
    preparing.cancel()
    await asyncio.sleep(0)
    made.set()
    with pytest.raises(asyncio.CancelledError):
        await preparing
    assert [question for question in engine.asked if "containers/" in question][-3:] == [create, start, remove]


def _forget_image(engine: ScriptedEngine, data_dir: Path, said: bytes) -> None:
    """Have the runtime look at its image, whose container says what is given."""
    shutil.rmtree(data_dir / "images")
    engine.answers |= {
        "POST /containers/create": (201, {"Id": "look"}),
        "POST /containers/NAME/start": (204, b""),
        "POST /containers/NAME/wait": (200, {"StatusCode": 0}),
        "GET /containers/NAME/json": (200, {"Config": {"Tty": True}}),
        "GET /containers/NAME/logs": (200, said),
        "DELETE /containers/NAME": (204, b""),
    }


@pytest.fixture
def spec(tmp_path: Path) -> SlotSpec:
    paths = SlotPaths.of(tmp_path, tmp_path / "env", SLOT)
    return SlotSpec(SLOT, Limits(1000, 1 << 28), paths, code=tmp_path / "code", cache=tmp_path / "cache")


async def test_an_engine_that_is_well_is_told_with_its_image(runtime: DockerRuntime) -> None:
    facts = await runtime.probe()
    assert (facts.runtime_version, facts.image_digest, facts.problem) == ("20.10.0", IMAGE_ID, "")
    assert await runtime.slots() == {}


@pytest.mark.parametrize("message", ["service unavailable", "daemon is shutting down"])
async def test_an_engine_that_refuses_all_work_for_now_is_away(
    engine: ScriptedEngine, runtime: DockerRuntime, spec: SlotSpec, message: str
) -> None:
    status = 503 if message.startswith("service") else 500
    engine.refuse("POST /containers/create", status, message)
    engine.refuse("POST /containers/NAME/start", status, message)
    with pytest.raises(RuntimeUnavailable, match=rf"refuses work \({message}\)"):
        await runtime.create(spec)
    with pytest.raises(RuntimeUnavailable, match=rf"refuses work \({message}\)"):
        await runtime.start(SLOT)


async def test_what_ended_with_255_while_no_agent_listened_may_have_said_so_itself(
    engine: ScriptedEngine, runtime: DockerRuntime
) -> None:
    state = {"Status": "exited", "ExitCode": 255, "FinishedAt": "2026-01-02T03:04:05.678Z"}
    engine.answers["GET /containers/NAME/json"] = (200, {"State": state})
    seen = await runtime.wait(SLOT)
    assert (seen.state, seen.exit_code, seen.end_unseen) == (SlotState.EXITED, 255, True)


async def test_one_operation_that_is_refused_is_a_fault_of_that_one(
    engine: ScriptedEngine, runtime: DockerRuntime, spec: SlotSpec
) -> None:
    engine.refuse("POST /containers/create", 500)
    engine.refuse("POST /containers/NAME/start", 500)
    engine.refuse("DELETE /containers/NAME", 500, "could not kill")
    with pytest.raises(RuntimeFault, match=r"could not create .*: it does not work"):
        await runtime.create(spec)
    with pytest.raises(RuntimeFault, match=r"could not start .*: it does not work"):
        await runtime.start(SLOT)
    with pytest.raises(RuntimeFault, match=r"could not remove .*: could not kill"):
        await runtime.remove(SLOT)


async def test_an_image_that_went_is_missing_and_anything_else_that_is_missing_is_a_fault(
    engine: ScriptedEngine, runtime: DockerRuntime, spec: SlotSpec
) -> None:
    await runtime.probe()
    engine.refuse("POST /containers/create", 404, "No such image: runner:1")
    with pytest.raises(ImageMissing, match="runner:1 is not on this worker host"):
        await runtime.create(spec)
    engine.refuse("POST /containers/create", 404, "network none-such not found")
    with pytest.raises(RuntimeFault, match="none-such not found"):
        await runtime.create(spec)


@pytest.mark.parametrize(
    ("status", "message", "fault"),
    [
        (404, "No such container: ff-00000000000000aa", ContainerRemoved),
        (409, "container is marked for removal and cannot be started", ContainerRemoved),
        (404, "network none-such not found", RuntimeFault),
    ],
)
async def test_a_container_that_is_gone_at_its_start_is_told_apart_from_one_that_can_not_start(
    engine: ScriptedEngine, runtime: DockerRuntime, status: int, message: str, fault: type[RuntimeFault]
) -> None:
    engine.refuse("POST /containers/NAME/start", status, message)
    with pytest.raises(RuntimeFault) as raised:
        await runtime.start(SLOT)
    assert raised.type is fault


async def test_a_container_that_ends_while_it_is_paused_had_ended(
    engine: ScriptedEngine, runtime: DockerRuntime
) -> None:
    """What Docker 20.10 says until it has heard of the end itself."""
    for verb in ("pause", "unpause"):
        message = f"Cannot {verb} container X: OCI runtime {verb} failed: container not running: unknown"
        engine.refuse(f"POST /containers/NAME/{verb}", 500, message)
    assert not await runtime.freeze(SLOT)
    await runtime.thaw(SLOT)


@pytest.mark.parametrize("question", QUESTIONS_OF_A_PROBE)
async def test_an_engine_that_can_not_say_who_it_is_is_away(
    engine: ScriptedEngine, runtime: DockerRuntime, question: str
) -> None:
    # The connection is open already, which takes a question of its own.
    engine.answers["GET /info"] = (200, {})
    await runtime.probe()
    engine.answers["GET /version"] = (200, {"Version": "20.10.1", "ApiVersion": "1.41"})
    engine.refuse(question, 500)
    with pytest.raises(RuntimeUnavailable, match="it does not work"):
        await runtime.probe()


async def test_a_list_that_is_refused_is_the_runtimes_own_fault(engine: ScriptedEngine, runtime: DockerRuntime) -> None:
    engine.refuse("GET /containers/json", 500)
    with pytest.raises(RuntimeFault, match="it does not work"):
        await runtime.slots()


async def test_an_answer_that_is_none_is_an_engine_that_is_away(engine: ScriptedEngine, runtime: DockerRuntime) -> None:
    await runtime.slots()
    engine.answers["GET /containers/json"] = (200, b"<html>some proxy's</html>")
    with pytest.raises(RuntimeUnavailable):
        await runtime.slots()


async def test_what_is_refused_costs_no_connection(engine: ScriptedEngine, runtime: DockerRuntime) -> None:
    await runtime.slots()
    before = engine.connections
    for _ in range(5):
        assert (await runtime.observe(SLOT)).state is SlotState.ABSENT
    assert engine.asked.count("GET /containers/NAME/json") == 5
    assert engine.connections == before


async def test_an_image_is_known_though_the_disk_does_not_keep_what_was_found(
    engine: ScriptedEngine, runtime: DockerRuntime, tmp_path: Path
) -> None:
    _forget_image(engine, tmp_path, b"uv 0.9.30\n/usr/bin/python3\n[]\n")
    (tmp_path / "images").touch()
    facts = await runtime.probe()
    assert (facts.image_digest, facts.uv_version, facts.problem) == (IMAGE_ID, "0.9.30", "")


async def test_an_image_whose_uv_is_not_understood_is_no_runner(
    engine: ScriptedEngine, runtime: DockerRuntime, tmp_path: Path
) -> None:
    _forget_image(engine, tmp_path, b'uv 0.1\n/usr/bin/python3\n[{"implementation": "cpython"}]\n')
    facts = await runtime.probe()
    assert "runner:1 is no runner image" in facts.problem
    assert facts.image_digest == ""


async def test_the_template_is_made_once_for_runs_that_start_together(
    engine: ScriptedEngine, runtime: DockerRuntime, spec: SlotSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.answers["POST /containers/create"] = (201, {"Id": "slot"})
    await runtime.probe()
    make, made, go_on = folders.make_template, list[Path](), threading.Event()

    def make_slowly(data_dir: Path) -> Path:
        made.append(data_dir)
        go_on.wait(60)
        return make(data_dir)

    monkeypatch.setattr(folders, "make_template", make_slowly)
    creating = [asyncio.create_task(runtime.create(spec)) for _ in range(2)]
    for _ in range(10):
        await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(*creating)
    assert len(made) == 1


async def test_no_thread_listens_any_more_once_a_runtime_is_closed(
    engine: ScriptedEngine, runtime: DockerRuntime
) -> None:
    answered = engine.held["GET /events"] = threading.Event()
    engine.answers["POST /containers/NAME/start"] = (204, b"")
    await runtime.start(SLOT)
    while "GET /events" not in engine.asked:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)
    closing = asyncio.create_task(runtime.aclose())
    await asyncio.sleep(0)
    answered.set()
    await closing
    assert "docker-events" not in [thread.name for thread in threading.enumerate()]


async def test_an_engine_that_is_away_costs_no_descriptor(tmp_path: Path) -> None:
    engine = Engine(f"unix://{tmp_path}/none.sock", threads=1)
    # The thread and the event loop have theirs.
    with pytest.raises(RuntimeUnavailable):
        await engine.call(lambda client: client.info(), 60)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(RuntimeUnavailable) as away:
        await engine.call(lambda client: client.info(), 60)
    assert "none.sock can not be reached (No such file or directory)" in str(away.value)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    engine.close()
