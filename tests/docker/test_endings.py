"""How programs end, what their log holds, and what is left."""

import asyncio
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import docker
from fastflow_agent.runtime.base import SlotState
from fastflow_agent.runtime.container_spec import container_name
from fastflow_agent.runtime.docker import DockerRuntime
from fastflow_agent.runtime.docker_options import DockerOptions, DockerTimes

from tests.slots import Workshop


async def test_sigkill_ends_all_of_it_with_137(workshop: Workshop) -> None:
    slot = workshop.slot("""
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print('up', flush=True)
        time.sleep(60)
    """)
    await slot.begin()
    await slot.said("up")
    before = datetime.now(UTC)
    assert await slot.runtime.signal(slot.id, signal.SIGKILL)
    seen = (await slot.end()).observation
    assert (seen.state, seen.exit_code, seen.oom_flag) == (SlotState.EXITED, 137, False)
    assert seen.finished_at
    assert 0 <= (seen.finished_at - before).total_seconds() < 60


async def test_a_signal_to_what_has_ended_or_gone_says_so(workshop: Workshop) -> None:
    slot = workshop.slot("print('ran')")
    await slot.run()
    assert not await slot.runtime.signal(slot.id, signal.SIGTERM)
    await slot.runtime.remove(slot.id)
    assert not await slot.runtime.signal(slot.id, signal.SIGTERM)


async def test_any_bytes_stand_in_the_log_as_they_were_written(workshop: Workshop) -> None:
    output = bytes(range(256)) * 4 + b"x" * (10 << 20) + b"no newline at the end"
    slot = workshop.slot("""
        import os
        os.write(1, bytes(range(256)) * 4)
        line = b"x" * (10 << 20)
        while line:
            line = line[os.write(1, line):]
        os.write(2, b"no newline at the end")
    """)
    assert (await slot.run()).log == output


async def test_a_removed_slot_leaves_no_container_no_volume_and_no_environment(workshop: Workshop) -> None:
    slot = workshop.slot("import time; print('up', flush=True); time.sleep(60)")
    await slot.begin()
    await slot.said("up")
    with docker.APIClient() as engine:
        (mount,) = [
            mount for mount in engine.inspect_container(container_name(slot.id))["Mounts"] if mount["Type"] == "volume"
        ]
        await slot.runtime.remove(slot.id)
        await slot.runtime.remove(slot.id)
        volumes = engine.volumes()["Volumes"] or []
    assert (await slot.runtime.observe(slot.id)).state is SlotState.ABSENT
    assert mount["Name"] not in {volume["Name"] for volume in volumes}
    assert not slot.spec.paths.env.exists()
    assert slot.log() == b"up\n"


async def test_an_end_is_told_by_an_event_and_not_by_looking_again(
    docker_options: Callable[..., DockerOptions], empty_cache: Path
) -> None:
    options = docker_options(times=DockerTimes(reinspect=3600))
    runtime = DockerRuntime(options)
    workshop = Workshop(runtime, options.data_dir, options.env_dir, empty_cache)
    try:
        slots = [workshop.slot("import time; time.sleep(0.5)") for _ in range(3)]
        async with asyncio.timeout(60):
            await asyncio.gather(*(slot.run() for slot in slots))
    finally:
        await workshop.clear()
        await runtime.aclose()


async def test_one_who_waits_is_told_that_the_container_was_taken_away(workshop: Workshop) -> None:
    slot = workshop.slot("import time; print('up', flush=True); time.sleep(60)")
    await slot.begin()
    await slot.said("up")
    with docker.APIClient() as engine:
        engine.remove_container(container_name(slot.id), force=True)
        assert (await slot.end()).observation.state is SlotState.ABSENT
        left = {"label": f"org.fastflow.slot={slot.id}"}
        assert len(engine.volumes(filters=left)["Volumes"]) == 1
        await slot.runtime.remove(slot.id)
        assert not engine.volumes(filters=left)["Volumes"]
