"""The process runtime keeps the contract of runtimes, and says what it does not do."""

import asyncio
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastflow_agent.health import is_disk_full
from fastflow_agent.runtime import shim
from fastflow_agent.runtime.base import PreparerSpec, RuntimeFault, RuntimeUnavailable, SlotState
from fastflow_agent.runtime.process import ProcessOptions, ProcessRuntime
from fastflow_agent.runtime.release import environments_folder

from tests.slots import RuntimeContract, Slot, Workshop


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProcessOptions]:
    # Interpreters of the system alone: each one more that uv has to ask costs every test.
    monkeypatch.setenv("PATH", "/usr/local/bin:/usr/bin:/bin")
    with tempfile.TemporaryDirectory(prefix="fastflow-test-", dir="/dev/shm") as folder:
        env_dir = environments_folder(Path(folder) / "env")
        yield ProcessOptions(tmp_path, env_dir)


@pytest.fixture
async def workshop(options: ProcessOptions) -> AsyncIterator[Workshop]:
    """Slots of a process runtime; all are removed in the end."""
    runtime = ProcessRuntime(options)
    cache = options.data_dir / "empty-cache"
    cache.mkdir()
    workshop = Workshop(runtime, options.data_dir, options.env_dir, cache)
    yield workshop
    await workshop.clear()
    await runtime.aclose()


@pytest.fixture
async def successor(options: ProcessOptions) -> AsyncIterator[ProcessRuntime]:
    """The runtime of the next agent process."""
    runtime = ProcessRuntime(options)
    yield runtime
    await runtime.aclose()


@pytest.fixture
def owner() -> int:
    """Programs run as whoever runs the agent."""
    return os.geteuid()


def _parents(slot: Slot) -> dict[int, int]:
    """The processes that run for a slot, each with its parent."""
    return _parents_at(slot.spec.paths.root)


def _parents_at(root: Path) -> dict[int, int]:
    folder = os.fsencode(root)
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if folder in (entry / "cmdline").read_bytes():
                found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it ended meanwhile
    return found


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - processes tell nobody that they come and go
            await asyncio.sleep(0.01)


class TestProcessRuntime(RuntimeContract):
    """Slots are processes of this host."""

    async def test_it_says_that_it_isolates_and_limits_nothing(self, workshop: Workshop) -> None:
        facts = await workshop.runtime.probe()
        assert "isolates and limits nothing" in facts.unconfined
        assert (facts.runtime, facts.cgroup, facts.image) == ("process", "none", "")
        assert workshop.runtime.group(workshop.slot("").id) is None

    async def test_a_host_whose_uv_does_not_work_is_away_until_it_does(
        self, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        broken = tmp_path / "bin" / "uv"
        broken.parent.mkdir()
        broken.write_text("#!/bin/sh\necho broken >&2; exit 1\n")
        broken.chmod(0o755)
        monkeypatch.setenv("PATH", f"{broken.parent}:{os.environ['PATH']}")
        slot = workshop.slot("print('ran')")
        await slot.runtime.prepare_folders(slot.spec)
        for question in (slot.runtime.probe, lambda: slot.runtime.create(slot.spec)):
            with pytest.raises(RuntimeUnavailable, match=r"install uv and Python \(broken\)"):
                await question()
        broken.unlink()
        assert (await workshop.runtime.probe()).python_versions
        assert (await slot.run()).text == "ran"

    async def test_a_program_does_not_see_the_agents_environment(
        self, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FASTFLOW_TOKEN", "the token of the cluster")
        slot = workshop.slot("import os; print('FASTFLOW_TOKEN' in os.environ, os.environ['HOME'])")
        assert (await slot.run()).text == f"False {slot.spec.paths.tmp}"

    async def test_a_slot_outlives_the_agent_that_started_it(self, workshop: Workshop, options: ProcessOptions) -> None:
        slot = workshop.slot("import time; print('up', flush=True); time.sleep(1.5); raise SystemExit(5)")
        agent = textwrap.dedent("""
            import asyncio, os, pickle, signal, sys
            from fastflow_agent.runtime.process import ProcessRuntime
            spec, options = pickle.load(sys.stdin.buffer)

            async def main():
                runtime = ProcessRuntime(options)
                await runtime.prepare_folders(spec)
                await runtime.create(spec)
                await runtime.start(spec.slot)
                await runtime.release(spec.slot, {})
                os.kill(os.getpid(), signal.SIGKILL)

            asyncio.run(main())
        """)
        given = pickle.dumps((slot.spec, options))
        died = await asyncio.create_subprocess_exec(sys.executable, "-c", agent, stdin=subprocess.PIPE)
        await died.communicate(given)
        assert died.returncode == -9
        await slot.said("up")
        assert (await slot.end()).exit_code == 5

    async def test_a_pid_that_went_to_another_process_is_not_signalled(self, workshop: Workshop) -> None:
        slot = workshop.slot("import time; print('up', flush=True); time.sleep(60)")
        await slot.begin()
        await slot.said("up")
        identity = slot.spec.paths.root / "process" / "identity"
        genuine = identity.read_text()
        bystander = await asyncio.create_subprocess_exec("sleep", "60")
        try:
            identity.write_text(f"{bystander.pid}:1 {bystander.pid}:1")
            assert not await slot.runtime.signal(slot.id, 9)
            assert (await Slot(workshop.runtime, slot.spec).runtime.observe(slot.id)).exit_code is None
            assert bystander.returncode is None
        finally:
            identity.write_text(genuine)
            bystander.kill()
            await bystander.wait()

    async def test_what_a_program_leaves_running_ends_with_it(self, workshop: Workshop) -> None:
        slot = workshop.slot("""
            import subprocess, sys
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1); print('left behind', flush=True)"])
        """)
        await slot.run()
        await asyncio.sleep(1.5)
        assert slot.log() == b""

    async def test_a_program_that_the_full_disk_lets_nobody_know_of_is_not_started(self, workshop: Workshop) -> None:
        slot = workshop.slot("print('ran')")
        await slot.runtime.prepare_folders(slot.spec)
        await slot.runtime.create(slot.spec)
        draft = slot.spec.paths.root / "process" / "identity.draft"
        draft.symlink_to("/dev/full")
        with pytest.raises(RuntimeFault, match="No space left on device") as refused:
            await slot.runtime.start(slot.id)
        assert is_disk_full(refused.value)
        await _until(lambda: not _parents(slot))
        assert (await slot.runtime.observe(slot.id)).state is SlotState.CREATED
        draft.unlink()
        assert (await slot.run()).text == "ran"

    async def test_a_program_whose_attendant_dies_before_it_is_known_is_not_started(self, workshop: Workshop) -> None:
        slot = workshop.slot("print('ran')")
        await slot.runtime.prepare_folders(slot.spec)
        await slot.runtime.create(slot.spec)
        # Nobody reads it, so the attendant waits here for ever.
        os.mkfifo(slot.spec.paths.root / "process" / "identity.draft")
        starting = asyncio.ensure_future(slot.runtime.start(slot.id))
        await _until(lambda: len(_parents(slot)) == 3)
        parents = _parents(slot)
        (attendant,) = (pid for pid, parent in parents.items() if parent in parents and pid in parents.values())
        os.kill(attendant, signal.SIGKILL)
        with pytest.raises(RuntimeFault, match="could not be started"):
            await starting
        await _until(lambda: not _parents(slot))

    @pytest.mark.parametrize("released", [False, True])
    async def test_a_preparer_ends_soon_after_its_agent_whether_or_not_there_is_another(
        self, workshop: Workshop, options: ProcessOptions, released: bool
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            # Nobody ever answers.
            requirements = f"own @ http://127.0.0.1:{silent.getsockname()[1]}/own-1.0-py3-none-any.whl\n"
            code = workshop.code("stuck", "", {"requirements.txt": requirements.encode()})
            cache = workshop.new_cache("stuck", os.geteuid())
            spec = PreparerSpec("stuck", code, cache, environment={"UV_HTTP_TIMEOUT": "600"})
            agent = textwrap.dedent("""
                import asyncio, pickle, sys
                from fastflow_agent.runtime.process import ProcessRuntime
                from fastflow_agent.runtime.release import Gate
                spec, options, released = pickle.load(sys.stdin.buffer)
                if not released:
                    Gate.release = lambda *_: asyncio.Event().wait()
                asyncio.run(ProcessRuntime(options).run_preparer(spec))
            """)
            given = pickle.dumps((spec, replace(options, preparers_outlive_agent_seconds=1.0), released))
            lives = await asyncio.create_subprocess_exec(sys.executable, "-c", agent, stdin=subprocess.PIPE)
            assert lives.stdin
            lives.stdin.write(given)
            lives.stdin.close()
            root = options.data_dir / "preparers" / "stuck"
            await _until(lambda: len(_parents_at(root)) == 2 and bool(workshop.released()) is released)
            await asyncio.sleep(1.5)
            assert len(_parents_at(root)) >= 2, "it stays while its agent does"
            lives.kill()
            await lives.wait()
            await _until(lambda: not _parents_at(root))


def test_nothing_begins_for_an_agent_that_died_before_it_could_be_watched(tmp_path: Path) -> None:
    other = subprocess.Popen(["sleep", "600"])
    try:
        # As if that one had started it, and somebody else has become its parent.
        command = [sys.executable, "-I", "-S", shim.__file__, str(tmp_path), str(other.pid), "60", "/bin/sleep", "600"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    finally:
        other.kill()
        other.wait()
    assert (done.returncode, done.stderr) == (1, "the agent died\n")
    assert list(tmp_path.iterdir()) == []
