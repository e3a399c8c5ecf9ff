"""An engine that is missing, stopped, hanging or restarted, and an image that is missing or wrong."""

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import docker
import docker.errors
import pytest
from fastflow_agent.model import new_slot_id
from fastflow_agent.runtime.base import Facts, ImageMissing, RuntimeUnavailable, SlotState
from fastflow_agent.runtime.docker import DockerRuntime
from fastflow_agent.runtime.docker_options import DockerOptions, DockerTimes

from tests.cluster.own_engine import OwnEngine, own_engine
from tests.slots import Workshop

# The SDK drops a socket that was refused or timed out without closing it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

# As short as a crowded machine allows: what the engine does answer has to come within them as well.
TIMES = DockerTimes(probe=6.0, question=8.0, action=60.0, reinspect=0.5, event_retry=0.2)
LONG_SECONDS = 30.0
EMPTY_TAR = bytes(10240)
WAITS = """
    import os, time
    print("up", flush=True)
    while not os.path.exists("/tmp/go"): time.sleep(0.05)
    print("bye")
    raise SystemExit({code})
"""


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What the SDK dropped is collected within the test that had it drop."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def engine(runner_image: str) -> Iterator[OwnEngine]:
    with own_engine(runner_image) as engine:
        yield engine


@pytest.fixture
async def own_with(
    engine: OwnEngine, docker_options: Callable[..., DockerOptions], empty_cache: Path
) -> AsyncIterator[Callable[[DockerTimes], Workshop]]:
    """Slots of the engine that may be maltreated, by a runtime with these patiences."""
    async with AsyncExitStack() as opened:

        def make(times: DockerTimes) -> Workshop:
            options = docker_options(docker_host=engine.host, times=times)
            runtime = DockerRuntime(options)
            workshop = Workshop(runtime, options.data_dir, options.env_dir, empty_cache)
            opened.push_async_callback(runtime.aclose)
            opened.push_async_callback(workshop.clear)
            return workshop

        yield make


@pytest.fixture
def own(own_with: Callable[[DockerTimes], Workshop]) -> Workshop:
    """Such slots, with TIMES."""
    return own_with(TIMES)


async def test_a_hanging_engine_is_told_by_the_probe_whatever_else_hangs(
    engine: OwnEngine, own_with: Callable[[DockerTimes], Workshop]
) -> None:
    runtime = own_with(replace(TIMES, question=LONG_SECONDS)).runtime
    await runtime.probe()
    engine.hang()
    try:
        # More than there are threads. What had to wait for one of their answers would be told after it.
        hanging = [asyncio.ensure_future(runtime.observe(new_slot_id())) for _ in range(30)]
        await asyncio.sleep(0.1)
        with pytest.raises(RuntimeUnavailable, match="does not answer"):
            await runtime.probe()
        assert not any(each.done() for each in hanging)
    finally:
        engine.resume()
    assert {seen.state for seen in await asyncio.gather(*hanging)} == {SlotState.ABSENT}


async def test_a_question_to_an_engine_that_hangs_ends_with_its_own_patience(engine: OwnEngine, own: Workshop) -> None:
    await own.runtime.probe()
    engine.hang()
    try:
        hanging = [own.runtime.observe(new_slot_id()) for _ in range(30)]
        results = await asyncio.gather(*hanging, return_exceptions=True)
        assert {type(result) for result in results} == {RuntimeUnavailable}
    finally:
        engine.resume()
    assert (await own.runtime.probe()).runtime == "docker"
    assert (await own.runtime.observe(new_slot_id())).state is SlotState.ABSENT


async def test_the_loop_goes_on_while_the_engine_hangs(
    engine: OwnEngine, own_with: Callable[[DockerTimes], Workshop]
) -> None:
    runtime = own_with(replace(TIMES, probe=LONG_SECONDS, question=LONG_SECONDS)).runtime
    await runtime.probe()
    engine.hang()
    try:
        hanging = asyncio.gather(runtime.probe(), runtime.slots(), *(runtime.observe(new_slot_id()) for _ in range(5)))
        await asyncio.sleep(0.5)
        assert not hanging.done()
    finally:
        # By the loop alone: what waits for the engine on it holds this up too, and then has no answer within its time.
        engine.resume()
    facts, slots, *seen = await hanging
    assert (facts.runtime, slots, {each.state for each in seen}) == ("docker", {}, {SlotState.ABSENT})


async def test_an_end_during_a_hang_is_told_after_it(engine: OwnEngine, own: Workshop) -> None:
    slot = own.slot(WAITS.format(code=5))
    await slot.begin()
    await slot.said("up")
    waiting = asyncio.ensure_future(slot.end())
    await asyncio.sleep(0.2)
    engine.hang()
    try:
        (slot.spec.paths.tmp / "go").touch()
        await slot.said("bye")
        await asyncio.sleep(TIMES.question + 0.5)
        assert not waiting.done()
    finally:
        engine.resume()
    assert (await waiting).exit_code == 5


async def test_a_run_outlives_a_stopped_engine_and_its_end_is_told_by_the_next(
    engine: OwnEngine, own: Workshop
) -> None:
    slot = own.slot(WAITS.format(code=6))
    await slot.begin()
    await slot.said("up")
    waiting = asyncio.ensure_future(slot.end())
    await asyncio.sleep(0.2)
    await asyncio.to_thread(engine.stop)
    with pytest.raises(RuntimeUnavailable, match="can not be reached"):
        await own.runtime.probe()
    (slot.spec.paths.tmp / "go").touch()
    await slot.said("bye")
    await asyncio.to_thread(engine.start)
    ended = await waiting
    assert ended.text == "up\nbye"
    lost = engine.lost_an_end()
    assert (ended.exit_code, ended.observation.end_unseen) == ((None, True) if lost else (6, False))


async def test_an_engine_that_is_not_there_is_told_with_its_address(
    docker_options: Callable[..., DockerOptions], tmp_path: Path
) -> None:
    runtime = DockerRuntime(docker_options(docker_host=f"unix://{tmp_path}/none.sock"))
    try:
        with pytest.raises(RuntimeUnavailable, match=r"none\.sock can not be reached \(No such file or directory\)"):
            await runtime.probe()
        with pytest.raises(RuntimeUnavailable):
            await runtime.slots()
    finally:
        await runtime.aclose()


async def test_a_missing_image_is_told_with_its_fix_and_the_engine_counts_as_well(
    docker_options: Callable[..., DockerOptions], empty_cache: Path
) -> None:
    options = docker_options(image="fastflow/no-such-image:1")
    runtime = DockerRuntime(options)
    workshop = Workshop(runtime, options.data_dir, options.env_dir, empty_cache)
    slot = workshop.slot("print('ran')")
    try:
        facts = await runtime.probe()
        assert facts.runtime_version
        assert "deploy/runner/build" in facts.problem
        await runtime.prepare_folders(slot.spec)
        with pytest.raises(ImageMissing, match="fastflow/no-such-image:1 is not on this worker host"):
            await runtime.create(slot.spec)
    finally:
        await workshop.clear()
        await runtime.aclose()


async def test_an_image_removed_while_the_agent_runs_is_missing_at_the_next_creation(
    docker_options: Callable[..., DockerOptions], runner_image: str, empty_cache: Path
) -> None:
    tag = f"fastflow/for-a-test:{os.getpid()}"
    with docker.APIClient() as engine:
        engine.tag(runner_image, "fastflow/for-a-test", str(os.getpid()))
        options = docker_options(image=tag)
        runtime = DockerRuntime(options)
        workshop = Workshop(runtime, options.data_dir, options.env_dir, empty_cache)
        try:
            assert (await runtime.probe()).problem == ""
            engine.remove_image(tag)
            assert "is not on this worker host" in (await runtime.probe()).problem
            slot = workshop.slot("print('ran')")
            await runtime.prepare_folders(slot.spec)
            with pytest.raises(ImageMissing):
                await runtime.create(slot.spec)
        finally:
            await workshop.clear()
            await runtime.aclose()


async def test_an_image_without_uv_is_told_to_be_no_runner(docker_options: Callable[..., DockerOptions]) -> None:
    tag = f"fastflow/no-runner:{os.getpid()}"
    with docker.APIClient() as engine:
        engine.import_image_from_data(EMPTY_TAR, repository="fastflow/no-runner", tag=str(os.getpid()))
        runtime = DockerRuntime(docker_options(image=tag))
        try:
            facts = await runtime.probe()
            assert tag in facts.problem
            assert (facts.image_digest, facts.python_versions) == ("", ())
        finally:
            await runtime.aclose()
            engine.remove_image(tag)


@pytest.mark.parametrize("step", ["start", "logs", "remove_container"])
async def test_an_image_is_known_though_somebody_removes_the_container_that_looks_into_it(
    docker_options: Callable[..., DockerOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    removed: list[str] = []
    real, remove = getattr(docker.APIClient, step), docker.APIClient.remove_container

    def on_one_that_is_gone(client: docker.APIClient, container: str, **arguments: Any) -> Any:
        if not removed:
            removed.append(container)
            remove(client, container, force=True)
        return real(client, container, **arguments)

    monkeypatch.setattr(docker.APIClient, step, on_one_that_is_gone)
    runtime = DockerRuntime(docker_options(data_dir=tmp_path))
    try:
        facts = await runtime.probe()
    finally:
        await runtime.aclose()
    assert removed
    assert facts.problem == ""
    assert facts.uv_version


async def test_a_container_that_looks_outlives_a_killed_agent_until_the_next_one_looks(
    docker_options: Callable[..., DockerOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    left: list[str] = []

    def killed(_: docker.APIClient, container: str, **arguments: Any) -> NoReturn:
        left.append(container)
        raise Killed

    async def probe(options: DockerOptions) -> Facts:
        runtime = DockerRuntime(options)
        try:
            return await runtime.probe()
        finally:
            await runtime.aclose()

    options = docker_options(data_dir=tmp_path / "agent")
    with docker.APIClient() as engine:
        try:
            with monkeypatch.context() as dying:
                dying.setattr(docker.APIClient, "wait", killed)
                # The dead remove nothing.
                dying.setattr(docker.APIClient, "remove_container", lambda *_, **__: None)
                with pytest.raises(Killed):
                    await probe(options)
            assert (await probe(docker_options(data_dir=tmp_path / "another agent"))).uv_version
            engine.inspect_container(left[0])
            assert (await probe(options)).uv_version
            with pytest.raises(docker.errors.NotFound):
                engine.inspect_container(left[0])
        finally:
            for container in left:
                with suppress(docker.errors.NotFound):
                    engine.remove_container(container, force=True, v=True)
