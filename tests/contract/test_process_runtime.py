"""The process runtime keeps the contract of runtimes, and says what it does not do."""

import asyncio
import itertools
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import venv
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastflow_agent.health import is_disk_full
from fastflow_agent.runtime import shim
from fastflow_agent.runtime.base import PreparerSpec, RuntimeFault, RuntimeUnavailable, SlotState
from fastflow_agent.runtime.process import ProcessOptions, ProcessRuntime
from fastflow_agent.runtime.process_box import Box
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


def _open_pidfds() -> int:
    links = [entry.readlink() for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return sum("pidfd" in link.name for link in links)


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
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

    async def test_a_program_does_not_see_packages_beside_the_agent(
        self, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        environment = tmp_path / "environment"
        venv.create(environment)
        (packages,) = (environment / "lib").glob("python*/site-packages")
        (packages / "beside.py").write_text("print('seen')\n")
        monkeypatch.setenv("PATH", f"{environment / 'bin'}:{os.environ['PATH']}")
        monkeypatch.setenv("VIRTUAL_ENV", str(environment))
        ended = await workshop.slot("import beside").run()
        assert ended.exit_code == 1
        assert "No module named 'beside'" in ended.text

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

    async def test_a_killed_program_was_signalled_however_soon_it_is_gone(
        self, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slot = workshop.slot("import time; print('up', flush=True); time.sleep(60)")
        await slot.begin()
        await slot.said("up")
        send = os.killpg

        def send_and_see_it_gone(group: int, number: int) -> None:
            send(group, number)
            while Path(f"/proc/{group}").exists():
                time.sleep(0.001)

        monkeypatch.setattr(os, "killpg", send_and_see_it_gone)
        assert await slot.runtime.signal(slot.id, signal.SIGKILL)
        assert (await slot.end()).exit_code == 137

    async def test_a_preparer_that_ends_by_itself_as_its_time_is_over_was_not_stopped(
        self, workshop: Workshop, owner: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec, go = workshop.late_preparer(owner)
        signal_box = Box.signal

        def signal_one_that_has_ended(box: Box, number: int) -> bool:
            go.touch()
            while box.observe().state is SlotState.RUNNING:
                time.sleep(0.001)
            return signal_box(box, number)

        monkeypatch.setattr(Box, "signal", signal_one_that_has_ended)
        result = await workshop.runtime.run_preparer(spec)
        assert (result.exit_code, result.output) == (3, b"")

    async def test_a_program_is_frozen_though_it_leads_no_group_yet(
        self, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slot = workshop.slot("import time; print('up', flush=True); time.sleep(60)")
        await slot.begin()
        await slot.said("up")
        identity = (slot.spec.paths.root / "process" / "identity").read_text()
        program = Path("/proc", identity.split()[1].partition(":")[0], "stat")

        def no_group_yet(group: int, number: int) -> None:
            raise ProcessLookupError

        monkeypatch.setattr(os, "killpg", no_group_yet)
        assert await slot.runtime.freeze(slot.id)
        await _until(lambda: program.read_text().rpartition(")")[2].split()[0] == "T")
        assert await slot.runtime.signal(slot.id, signal.SIGTERM)
        assert (await slot.end()).exit_code == 143

    async def test_a_program_that_ends_while_its_lost_folder_is_laid_out_again_is_no_slot(
        self, workshop: Workshop, successor: ProcessRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slot = workshop.slot("import time; print('up', flush=True); time.sleep(60)")
        await slot.begin()
        await slot.said("up")
        shutil.rmtree(slot.spec.paths.root)
        recover = Box.recover

        def recover_what_ends(box: Box, shim: int, program: int) -> None:
            os.kill(program, signal.SIGKILL)
            while Path(f"/proc/{program}").exists():
                time.sleep(0.001)
            recover(box, shim, program)

        monkeypatch.setattr(Box, "recover", recover_what_ends)
        assert await successor.slots() == {}
        assert not slot.spec.paths.root.exists()

    async def test_who_gives_up_waiting_leaves_no_descriptor_open(
        self, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slot = workshop.slot("import time; print('up', flush=True); time.sleep(60)")
        await slot.begin()
        await slot.said("up")
        before = _open_pidfds()
        open_shim, opened, go_on = Box.open_shim, threading.Event(), threading.Event()
        calls = itertools.count(1)

        def open_slowly(box: Box) -> int | None:
            found = open_shim(box)
            # The first is for the slot's state, the second to be told of its end.
            if next(calls) == 2:
                opened.set()
                go_on.wait(60)
            return found

        monkeypatch.setattr(Box, "open_shim", open_slowly)
        waiting = asyncio.create_task(slot.runtime.wait(slot.id))
        await asyncio.to_thread(opened.wait, 60)
        waiting.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert _open_pidfds() == before

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
            try:
                assert lives.stdin
                lives.stdin.write(given)
                lives.stdin.close()
                root = options.data_dir / "preparers" / "stuck"
                await _until(lambda: len(_parents_at(root)) == 2 and bool(workshop.released()) is released)
                await asyncio.sleep(1.5)
                assert len(_parents_at(root)) >= 2, "it stays while its agent does"
            finally:
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
