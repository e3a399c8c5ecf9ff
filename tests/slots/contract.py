"""What every runtime promises, whatever it runs slots in."""

import asyncio
import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fastflow_agent.runtime.base import (
    WRAPPER_FAILED,
    HostFault,
    PreparerResult,
    PreparerSpec,
    PreparerStep,
    Runtime,
    RuntimeFault,
    SlotState,
)
from fastflow_agent.runtime.preparer_end import TOO_LATE
from fastflow_agent.uvcache.tree import close_to_builds, is_closed_to_builds, open_to_builds
from fastflow_agent.uvcache.wheels import take_fetched

from tests.slots.packages import built_source, source_archive, tiny_wheel
from tests.slots.workshop import Slot, Workshop


class RuntimeContract:
    """Tests of the contract; a subclass brings the fixtures `workshop`, `successor` and `owner`.

    `successor` is the runtime of the next agent process over the same folders, `owner` the uid of programs.
    """

    async def test_it_says_what_it_is(self, workshop: Workshop) -> None:
        facts = await workshop.runtime.probe()
        assert facts.runtime in ("docker", "process")
        assert facts.runtime_version
        assert facts.python_versions
        assert facts.uv_version
        assert facts.image_digest
        assert facts.problem == ""

    async def test_a_slot_lives_from_absent_to_absent(self, workshop: Workshop) -> None:
        slot = workshop.slot("import time; print('up', flush=True); time.sleep(0.5); raise SystemExit(7)")
        runtime = slot.runtime
        states = [(await runtime.observe(slot.id)).state]
        await runtime.prepare_folders(slot.spec)
        await runtime.create(slot.spec)
        states.append((await runtime.observe(slot.id)).state)
        await runtime.start(slot.id)
        states.append((await runtime.observe(slot.id)).state)
        assert await runtime.release(slot.id, {})
        ended = await slot.end()
        states.append(ended.observation.state)
        await runtime.remove(slot.id)
        states.append((await runtime.observe(slot.id)).state)
        assert states == [
            SlotState.ABSENT,
            SlotState.CREATED,
            SlotState.RUNNING,
            SlotState.EXITED,
            SlotState.ABSENT,
        ]
        assert (ended.exit_code, ended.text) == (7, "up")
        assert ended.observation.finished_at

    async def test_every_step_may_be_repeated(self, workshop: Workshop) -> None:
        slot = workshop.slot("import os; print(os.environ['A'])")
        for _ in range(2):
            await slot.runtime.prepare_folders(slot.spec)
            await slot.runtime.create(slot.spec)
        for _ in range(2):
            await slot.runtime.start(slot.id)
        assert await slot.runtime.release(slot.id, {"A": "once"})
        assert (await slot.end()).text == "once"
        assert await slot.runtime.release(slot.id, {"A": "twice"})
        assert (await slot.end()).text == "once"
        for _ in range(2):
            await slot.runtime.remove(slot.id)

    async def test_nothing_of_the_program_runs_before_its_release(self, workshop: Workshop) -> None:
        slot = workshop.slot("print('ran')")
        await slot.wait_for_release()
        await asyncio.sleep(0.3)
        assert (slot.log(), await slot.runtime.was_released(slot.id)) == (b"", False)
        assert (await slot.runtime.observe(slot.id)).state is SlotState.RUNNING
        assert await slot.runtime.release(slot.id, {})
        assert (await slot.end()).text == "ran"
        assert await slot.runtime.was_released(slot.id)

    async def test_values_arrive_as_they_are_and_uvs_settings_hold(self, workshop: Workshop) -> None:
        values = {"SECRET": 'it\'s "this"\nand $HOME `id` \\', "EMPTY": "", "UV_LINK_MODE": "copy", "UV_PYTHON": "2.7"}
        slot = workshop.slot("import json, os; print(json.dumps(dict(os.environ)))")
        seen = json.loads((await slot.run(values)).text)
        assert (seen["SECRET"], seen["EMPTY"]) == (values["SECRET"], "")
        assert seen["UV_LINK_MODE"] == "symlink"
        assert seen["UV_PYTHON_DOWNLOADS"] == "never"
        assert seen["UV_PYTHON"].startswith("/")
        assert list(slot.spec.paths.env.iterdir()) == []

    @pytest.mark.parametrize(
        ("program", "exit_code"),
        [
            ("raise SystemExit(0)", 0),
            ("raise SystemExit(7)", 7),
            ("raise ValueError", 1),
            ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137),
            ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 139),
            ("raise SystemExit(125)", 125),
        ],
    )
    async def test_exit_codes_pass_through(self, workshop: Workshop, program: str, exit_code: int) -> None:
        ended = await workshop.slot(program).run()
        assert (ended.exit_code, ended.observation.wrapper_failed) == (exit_code, False)

    async def test_a_wrapper_that_fails_itself_says_so(self, workshop: Workshop) -> None:
        slot = workshop.slot("print('ran')")
        await slot.runtime.prepare_folders(slot.spec)
        (slot.spec.paths.env / "release").unlink()
        await slot.runtime.create(slot.spec)
        await slot.runtime.start(slot.id)
        ended = await slot.end()
        assert (ended.exit_code, ended.observation.wrapper_failed) == (WRAPPER_FAILED, True)
        assert "is not a pipe" in ended.text

    async def test_sigterm_reaches_the_program(self, workshop: Workshop) -> None:
        slot = workshop.slot("import time; print('up', flush=True); time.sleep(60)")
        await slot.begin()
        await slot.said("up")
        assert await slot.runtime.signal(slot.id, signal.SIGTERM)
        assert (await slot.end()).exit_code == 143
        assert not await slot.runtime.signal(slot.id, signal.SIGTERM)

    async def test_a_frozen_program_stands_still_until_it_is_thawed_or_signalled(self, workshop: Workshop) -> None:
        slot = workshop.slot("""
            import itertools, time
            for number in itertools.count():
                print(number, flush=True)
                time.sleep(0.02)
        """)
        await slot.begin()
        await slot.said("3\n")
        for _ in range(2):
            assert await slot.runtime.freeze(slot.id)
        assert (await slot.runtime.observe(slot.id)).state is SlotState.RUNNING
        before = slot.log()
        await asyncio.sleep(0.5)
        assert slot.log() == before
        for _ in range(2):
            await slot.runtime.thaw(slot.id)
        await slot.said(f"{len(before.split()) + 1}\n")
        assert await slot.runtime.freeze(slot.id)
        assert await slot.runtime.signal(slot.id, signal.SIGTERM)
        assert (await slot.end()).exit_code == 143
        assert not await slot.runtime.freeze(slot.id)
        await slot.runtime.thaw(slot.id)

    async def test_a_frozen_program_can_be_killed_and_removed(self, workshop: Workshop) -> None:
        slots = [workshop.slot("import time; print('up', flush=True); time.sleep(60)") for _ in range(2)]
        for slot in slots:
            await slot.begin()
            await slot.said("up")
            assert await slot.runtime.freeze(slot.id)
        assert await slots[0].runtime.signal(slots[0].id, signal.SIGKILL)
        assert (await slots[0].end()).exit_code == 137
        await slots[1].runtime.remove(slots[1].id)
        assert (await slots[1].runtime.observe(slots[1].id)).state is SlotState.ABSENT

    async def test_sigkill_ends_the_program_and_what_it_started(self, workshop: Workshop) -> None:
        slot = workshop.slot("""
            import os, signal, time
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            name = "parent" if os.fork() else "child"
            while True:
                print(name, flush=True)
                time.sleep(0.02)
        """)
        await slot.begin()
        await slot.said("parent")
        await slot.said("child")
        assert await slot.runtime.signal(slot.id, signal.SIGKILL)
        assert (await slot.end()).exit_code == 137
        await _see_silent(slot)

    async def test_a_slot_that_ended_before_its_release_is_never_released(self, workshop: Workshop) -> None:
        slot = workshop.slot("print('ran')")
        await slot.wait_for_release()
        await slot.runtime.signal(slot.id, signal.SIGKILL)
        await slot.end()
        assert not await slot.runtime.release(slot.id, {})
        assert (slot.log(), await slot.runtime.was_released(slot.id)) == (b"", False)

    async def test_removing_ends_what_runs_and_keeps_the_log(self, workshop: Workshop) -> None:
        slot = workshop.slot("""
            import time
            while True:
                print("up", flush=True)
                time.sleep(0.02)
        """)
        await slot.begin()
        await slot.said("up")
        waiting = asyncio.ensure_future(slot.end())
        await slot.runtime.remove(slot.id)
        await waiting
        await _see_silent(slot)
        assert slot.log().startswith(b"up\n")
        assert not slot.spec.paths.env.exists()
        assert await slot.runtime.slots() == {}

    async def test_a_slot_is_removed_however_deep_its_program_has_filled_its_folder(
        self, workshop: Workshop, make_deep: Callable[[Path], None]
    ) -> None:
        slot = workshop.slot("print('ran')")
        await slot.run()
        make_deep(slot.spec.paths.env)
        await slot.runtime.remove(slot.id)
        assert not slot.spec.paths.env.exists()
        assert await slot.runtime.slots() == {}

    async def test_a_successor_takes_over_all_slots(self, workshop: Workshop, successor: Runtime) -> None:
        main = "import os; print(os.environ['BY']); raise SystemExit(3)"
        created, waiting, ended = (workshop.slot(main) for _ in range(3))
        running = workshop.slot("""
            import signal, sys, time
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
            print("up", flush=True)
            time.sleep(60)
        """)
        await created.runtime.prepare_folders(created.spec)
        await created.runtime.create(created.spec)
        await waiting.wait_for_release()
        await running.begin()
        await running.said("up")
        await ended.run({"BY": "the first"})
        found = await successor.slots()
        assert {slot: (seen.state, seen.exit_code) for slot, seen in found.items()} == {
            created.id: (SlotState.CREATED, None),
            waiting.id: (SlotState.RUNNING, None),
            running.id: (SlotState.RUNNING, None),
            ended.id: (SlotState.EXITED, 3),
        }
        released = [await successor.was_released(slot.id) for slot in (created, waiting, running, ended)]
        assert released == [False, False, True, True]
        taken = asyncio.ensure_future(Slot(successor, running.spec).end())
        assert await successor.signal(running.id, signal.SIGTERM)
        assert (await taken).exit_code == 3
        for slot in (created, waiting):
            adopted = Slot(successor, slot.spec)
            # Every step may be repeated: the agent may have died after it, before it wrote so down.
            await adopted.begin({"BY": "the successor"})
            await successor.start(slot.id)
            assert ((await adopted.end()).exit_code, adopted.log()) == (3, b"the successor\n")

    async def test_the_order_of_both_outputs_is_kept(self, workshop: Workshop) -> None:
        ended = await workshop.slot("""
            import os
            for number in range(2000):
                os.write(1 + number % 2, b"%d\\n" % number)
        """).run()
        assert ended.log == b"".join(b"%d\n" % number for number in range(2000))

    async def test_a_name_no_environment_can_hold_is_refused(self, workshop: Workshop) -> None:
        slot = workshop.slot("print('ran')")
        await slot.runtime.prepare_folders(slot.spec)
        with pytest.raises(RuntimeFault, match="no name for an environment variable"):
            await slot.runtime.release(slot.id, {"A B": "value"})

    async def test_a_folder_that_can_not_be_made_is_a_fault_of_this_host(self, workshop: Workshop) -> None:
        slot = workshop.slot("print('ran')")
        obstacle = slot.spec.paths.root
        obstacle.parent.mkdir(parents=True, exist_ok=True)
        obstacle.write_text("in the way")
        with pytest.raises(HostFault, match="File exists"):
            await slot.runtime.prepare_folders(slot.spec)
        obstacle.unlink()
        assert (await slot.run()).text == "ran"

    async def test_a_release_that_the_host_does_not_let_through_is_a_fault_of_this_host(
        self, workshop: Workshop
    ) -> None:
        slot = workshop.slot("print('ran')")
        await slot.runtime.prepare_folders(slot.spec)
        shutil.rmtree(slot.spec.paths.env)
        with pytest.raises(HostFault, match="No such file"):
            await slot.runtime.release(slot.id, {})

    async def test_a_python_that_is_not_there_is_refused(self, workshop: Workshop) -> None:
        slot = workshop.slot("print('ran')", python_version="2.6")
        await slot.runtime.prepare_folders(slot.spec)
        with pytest.raises(RuntimeFault, match=r"no Python 2\.6"):
            await slot.runtime.create(slot.spec)

    async def test_what_a_preparer_put_into_a_cache_serves_without_a_network(
        self, workshop: Workshop, owner: int
    ) -> None:
        file, wheel = tiny_wheel("prepared", "ANSWER = 42\n")
        files = {"requirements.txt": f"./{file}\n".encode(), file: wheel}
        cache = await workshop.prepare("prepared", owner, files=files)
        before = {path.relative_to(cache) for path in cache.rglob("*")}
        main = "import prepared; print(prepared.ANSWER)"
        ended = await workshop.slot(main, files=files, cache=cache).run()
        assert (ended.exit_code, ended.text.splitlines()[-1]) == (0, "42")
        assert {path.relative_to(cache) for path in cache.rglob("*")} == before

    @pytest.mark.parametrize("requirements", ["./src-1.0.tar.gz", "src @ .", "-e .", "./pth-1.0-py3-none-any.whl"])
    async def test_who_fetches_runs_no_code_of_a_package_and_who_installs_does(
        self, workshop: Workshop, owner: int, requirements: str
    ) -> None:
        tell = "import os; open(os.path.join(os.environ['UV_CACHE_DIR'], 'ran'), 'w').close()\n"
        source = built_source(tell)
        name, wheel = tiny_wheel("pth", "", more={"pth.pth": tell})
        files = {name: wheel, "src-1.0.tar.gz": source_archive("src", source), **source}
        code = workshop.code("telling", "", {**files, "requirements.txt": f"{requirements}\n".encode()})
        cache = workshop.new_cache("telling", owner)
        close_to_builds(cache)
        spec = PreparerSpec("telling", code, cache, step=PreparerStep.FETCH)
        fetched = await workshop.runtime.run_preparer(spec)
        assert not (cache / "ran").exists()
        assert is_closed_to_builds(fetched.output) == (fetched.exit_code != 0) == (".whl" not in requirements)
        open_to_builds(cache)
        step = PreparerStep.INSTALL if fetched.exit_code == 0 else PreparerStep.BUILD
        await workshop.runtime.run_preparer(replace(spec, step=step))
        assert (cache / "ran").exists()

    async def test_what_was_fetched_is_installed_without_a_network_and_compiled(
        self, workshop: Workshop, owner: int
    ) -> None:
        file, wheel = tiny_wheel("fetched", "ANSWER = 42\n")
        files = {"requirements.txt": f"./{file}\n".encode(), file: wheel}
        code = workshop.code("fetched", "import fetched; print(fetched.ANSWER)", files)
        spec = PreparerSpec("fetched", code, workshop.new_cache("fetched", owner), step=PreparerStep.FETCH)
        assert (await workshop.runtime.run_preparer(spec)).exit_code == 0
        assert take_fetched(spec.cache) == {path.parent.name for path in spec.cache.glob("archive-v0/*/fetched.py")}
        installed = await workshop.runtime.run_preparer(replace(spec, step=PreparerStep.INSTALL))
        assert (installed.exit_code, installed.offline) == (0, True), installed.output
        assert installed.output.split()[-1] == b"42"
        assert list(spec.cache.rglob("__pycache__/fetched.*.pyc"))

    async def test_what_uv_refuses_is_a_result_in_uvs_words(self, workshop: Workshop, owner: int) -> None:
        code = workshop.code("broken", "", {"requirements.txt": b"./not-there.whl\n"})
        result = await workshop.runtime.run_preparer(PreparerSpec("broken", code, workshop.new_cache("broken", owner)))
        assert result.exit_code not in (0, WRAPPER_FAILED)
        assert not result.offline
        assert b"not-there.whl" in result.output
        assert not list((workshop.folder / "preparers").iterdir())

    async def test_of_a_preparer_that_said_more_than_memory_holds_the_end_is_kept(
        self, workshop: Workshop, owner: int
    ) -> None:
        code = workshop.code("loud", "import os; os.truncate(1, 1 << 40); print('the end')", {})
        result = await workshop.runtime.run_preparer(PreparerSpec("loud", code, workshop.new_cache("loud", owner)))
        assert result.exit_code == 0
        assert result.output.endswith(b"\0the end\n")

    async def test_a_preparer_is_stopped_after_its_seconds_and_says_so(self, workshop: Workshop, owner: int) -> None:
        code = workshop.code("hangs", "import time; time.sleep(600)", {})
        spec = PreparerSpec("hangs", code, workshop.new_cache("hangs", owner), seconds=1.0)
        async with asyncio.timeout(60):
            result = await workshop.runtime.run_preparer(spec)
        assert result.exit_code != 0
        assert result.output.endswith(TOO_LATE.encode())
        assert not list((workshop.folder / "preparers").iterdir())

    async def test_what_a_dead_agent_left_preparing_is_removed_by_the_next(
        self, workshop: Workshop, successor: Runtime, owner: int
    ) -> None:
        # What never ends to be built takes until somebody ends it.
        tell = "import os; open(os.path.join(os.environ['UV_CACHE_DIR'], 'building'), 'w').close()\n"
        source = built_source(f"{tell}import time; time.sleep(600)\n")
        files = {"requirements.txt": b"./src-1.0.tar.gz\n", "src-1.0.tar.gz": source_archive("src", source)}
        stuck = PreparerSpec("stuck", workshop.code("stuck", "", files), workshop.new_cache("stuck", owner))
        preparing = asyncio.ensure_future(workshop.runtime.run_preparer(stuck))
        folder = workshop.folder / "preparers"
        async with asyncio.timeout(60):
            while not (stuck.cache / "building").exists():  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.05)
        before = {path.name for path in folder.iterdir()}
        await successor.remove_preparers()
        assert not before & {path.name for path in folder.iterdir()}
        quick = workshop.code("quick", "", {})
        spec = PreparerSpec("quick", quick, workshop.new_cache("quick", owner))
        assert (await successor.run_preparer(spec)).exit_code == 0
        # The agent that is in truth alive is told that its preparer is gone.
        result = (await asyncio.gather(preparing, return_exceptions=True))[0]
        assert not isinstance(result, PreparerResult) or result.exit_code != 0


async def _see_silent(slot: Slot) -> None:
    """Sees that nobody writes into the log any more, where all wrote every 0.02 s."""
    before = slot.log()
    await asyncio.sleep(0.3)
    assert slot.log() == before
