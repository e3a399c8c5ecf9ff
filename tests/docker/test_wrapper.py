"""The start wrapper: waits for its release, takes the environment, leaves no trace of it, becomes uv."""

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import docker
import pytest
from fastflow_agent.runtime.base import WRAPPER_FAILED, RuntimeFault
from fastflow_agent.runtime.container_spec import container_name
from fastflow_agent.runtime.release import render

from tests.cluster.scenarios import TRIES
from tests.slots import Slot, Workshop

SECRET = "s3cret-with 'quotes', \"others\",\n a second line, $HOME and `id` \\"


async def test_a_release_waits_for_nothing_once_a_wrapper_waits(workshop: Workshop) -> None:
    seconds = []
    # The best of some, since this is about the release and not about what else the machine does.
    while len(seconds) < TRIES and min(seconds, default=1.0) >= 0.5:
        slot = workshop.slot("import time; print(time.time())")
        await slot.wait_for_release()
        await asyncio.sleep(0.3)
        begin = time.perf_counter()
        await slot.runtime.release(slot.id, {})
        seconds.append(time.perf_counter() - begin)
        await slot.end()
    assert min(seconds) < 0.5


async def test_values_arrive_byte_for_byte(workshop: Workshop) -> None:
    values = {"SECRET": SECRET, "EMPTY": "", "ÜMLAUT".replace("Ü", "U"): "äöü €", "RAW": "\udcff\udc80", "_": "under"}
    slot = workshop.slot("import json, os; print(json.dumps(dict(os.environ)))")
    ended = await slot.run(values)
    seen = json.loads(ended.text)
    assert {name: seen[name] for name in values} == values


async def test_the_environment_is_deleted_before_the_program_runs(workshop: Workshop) -> None:
    slot = workshop.slot("import os; print(os.listdir('/fastflow/env'))")
    assert (await slot.run({"SECRET": SECRET})).text == "[]"


async def test_docker_inspect_shows_no_value(workshop: Workshop) -> None:
    slot = workshop.slot("import time; print('up', flush=True); time.sleep(60)")
    await slot.begin({"SECRET": "hunter2-and-more"})
    await slot.said("up")
    inspected = _inspect(slot)
    shown = json.dumps(inspected)
    assert "hunter2" not in shown
    assert "SECRET" not in shown
    assert not any(word.startswith(("HOME=/tmp/", "FASTFLOW", "UV_CACHE_DIR")) for word in inspected["Config"]["Env"])


async def test_what_is_created_names_no_run(workshop: Workshop) -> None:
    slot = workshop.slot("print('ran')")
    await slot.runtime.prepare_folders(slot.spec)
    await slot.runtime.create(slot.spec)
    inspected = _inspect(slot)
    assert inspected["Name"] == f"/ff-{slot.id}"
    assert inspected["Config"]["Labels"]["org.fastflow.slot"] == slot.id
    assert set(inspected["Config"]["Labels"]) >= {"org.fastflow.cluster", "org.fastflow.agent", "org.fastflow.slot"}
    assert inspected["Path"] == "/bin/sh"
    assert inspected["Args"] == ["/fastflow/start", "/usr/bin/python3", "--offline"]
    host = inspected["HostConfig"]
    assert (host["AutoRemove"], host["RestartPolicy"]["Name"], host["LogConfig"]["Type"]) == (False, "no", "none")


async def test_no_secret_touches_a_disk(workshop: Workshop) -> None:
    slot = workshop.slot("print('ran')")
    await slot.runtime.prepare_folders(slot.spec)
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    env = slot.spec.paths.env
    mount = max((fields for fields in mounts if env.is_relative_to(fields[1])), key=lambda fields: len(fields[1]))
    assert mount[2] == "tmpfs"
    assert oct(env.parent.stat().st_mode & 0o777) == "0o700"


async def test_a_second_release_has_no_effect(workshop: Workshop) -> None:
    slot = workshop.slot("import os, time; print(os.environ['A'], flush=True); time.sleep(1)")
    await slot.begin({"A": "first"})
    await slot.said("first")
    assert await slot.runtime.release(slot.id, {"A": "second"})
    ended = await slot.end()
    assert ended.text == "first"
    assert list(slot.spec.paths.env.iterdir()) == []


async def test_a_release_cut_off_between_opening_and_writing_is_made_good_by_the_next(workshop: Workshop) -> None:
    slot = workshop.slot("print('ran')")
    await slot.wait_for_release()
    os.close(await _open_pipe(slot))
    await asyncio.sleep(0.2)
    assert not await slot.runtime.was_released(slot.id)
    assert await slot.runtime.release(slot.id, {})
    assert (await slot.end()).text == "ran"


async def test_a_program_that_makes_a_pipe_of_that_name_is_not_taken_for_unreleased(workshop: Workshop) -> None:
    slot = workshop.slot("import os; os.mkfifo('/fastflow/env/release'); print('made')")
    assert (await slot.run()).text == "made"
    assert await slot.runtime.was_released(slot.id)


async def test_an_incomplete_environment_is_refused_as_the_wrappers_own_failure(workshop: Workshop) -> None:
    slot = workshop.slot("print('ran')")
    await slot.wait_for_release()
    whole = render({"A": "1", "B": "2"})
    environment = slot.spec.paths.env / "environment"
    environment.write_bytes(whole[: whole.index(b"export B")])
    os.chown(environment, 1000, 1000)
    descriptor = await _open_pipe(slot)
    os.write(descriptor, b"go\n")
    os.close(descriptor)
    ended = await slot.end()
    assert (ended.exit_code, ended.observation.wrapper_failed) == (WRAPPER_FAILED, True)
    assert "the environment of this slot is incomplete" in ended.text


async def test_a_folder_where_the_program_should_be_is_told_in_the_log(workshop: Workshop) -> None:
    slot = workshop.slot("print('ran')")
    (slot.spec.code / "main.py").unlink()
    ended = await slot.run()
    assert ended.exit_code not in (0, None)
    assert "main.py" in ended.text
    assert not ended.observation.wrapper_failed


async def test_what_the_wrapper_can_not_do_reaches_the_log_and_is_exit_125(workshop: Workshop) -> None:
    slot = workshop.slot("print('ran')")
    await slot.runtime.prepare_folders(slot.spec)
    (slot.spec.paths.env / "release").unlink()
    await slot.runtime.create(slot.spec)
    await slot.runtime.start(slot.id)
    ended = await slot.end()
    assert (ended.exit_code, ended.observation.wrapper_failed) == (WRAPPER_FAILED, True)
    assert "/fastflow/env/release is not a pipe" in ended.text


@pytest.mark.parametrize("name", ["A B", "1A", "A=B", "", "A\nB", "Ä"])
async def test_a_name_no_environment_can_hold_is_refused(workshop: Workshop, name: str) -> None:
    slot = workshop.slot("print('ran')")
    await slot.runtime.prepare_folders(slot.spec)
    with pytest.raises(RuntimeFault):
        await slot.runtime.release(slot.id, {name: "value"})


def _inspect(slot: Slot) -> Any:
    with docker.APIClient() as engine:
        return engine.inspect_container(container_name(slot.id))


async def _open_pipe(slot: Slot) -> int:
    """The pipe's writing end, once the wrapper reads."""
    async with asyncio.timeout(60):
        while True:
            try:
                return os.open(slot.spec.paths.env / "release", os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                await asyncio.sleep(0.01)
