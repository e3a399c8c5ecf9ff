"""What is the fault of host or peer ends no agent; what keeps one from starting is said in a line."""

import asyncio
import os
import secrets
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import google_crc32c
import pytest
from fastflow.agent.v1 import attempts_pb2, gateway_pb2
from fastflow.v1 import runs_pb2

from tests.cluster.program import Program
from tests.integration.agent_harness.controlplane import ScriptedControlPlane, Stream

MIB = 1024 * 1024
FILLER = """
import os
print("full", flush=True)
with open(os.environ["TMPDIR"] + "/ballast", "wb", buffering=0) as ballast:
    for size in (1 << 20, 4096, 1):
        try:
            while True:
                ballast.write(bytes(size))
        except OSError:
            continue
    os._exit(7)
"""


@pytest.fixture
async def settings(controlplane: ScriptedControlPlane, tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    env_dir = Path(f"/dev/shm/fastflow-test-{secrets.token_hex(4)}")
    yield {
        "FASTFLOW_CONTROLPLANE": controlplane.address,
        "FASTFLOW_DATA_DIR": str(tmp_path / "agent"),
        "FASTFLOW_ENV_DIR": str(env_dir),
        "FASTFLOW_RUNTIME": "process",
        "FASTFLOW_PROBE_INTERVAL": "0.1",
        "FASTFLOW_RECONNECT_MAXIMUM": "0.2",
    }
    shutil.rmtree(env_dir, ignore_errors=True)


@pytest.fixture
async def program(settings: dict[str, str], tmp_path: Path) -> AsyncIterator[Program]:
    """An agent with these settings, to be started by the test."""
    program = Program(["fastflow-agent", "run"], tmp_path / "agent.log", settings)
    yield program
    if program.alive:
        await asyncio.to_thread(program.stop)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The agent's data folder, on a file system of 4 MiB of its own. Needs root."""
    folder = tmp_path / "agent"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "fastflow-test", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def _synced(controlplane: ScriptedControlPlane) -> Stream:
    """The next stream, with desired state taken over."""
    stream = await controlplane.stream()
    await stream.welcome()
    await stream.full()
    await stream.until_applied(1)
    return stream


async def _until_conditions(stream: Stream, wanted: set[str]) -> None:
    while True:
        heartbeat = await stream.next("heartbeat")
        if {held.type for held in heartbeat.conditions} - {"Unconfined"} == wanted:
            return


async def test_an_agent_waits_for_a_host_whose_uv_does_not_work(
    controlplane: ScriptedControlPlane, settings: dict[str, str], program: Program, tmp_path: Path
) -> None:
    broken = tmp_path / "bin" / "uv"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    settings["PATH"] = f"{broken.parent}:{os.environ['PATH']}"
    program.start()
    stream = await _synced(controlplane)
    await _until_conditions(stream, {"RuntimeUnavailable"})
    broken.unlink()
    await _until_conditions(stream, set())


async def test_an_agent_starts_and_says_so_where_its_disk_is_full(
    controlplane: ScriptedControlPlane, small_disk: Path, settings: dict[str, str], program: Program
) -> None:
    settings["FASTFLOW_DISK_RESERVE"] = "1m"
    program.start()
    await _synced(controlplane)
    await asyncio.to_thread(program.kill)
    # As a file system leaves it that gives what is cut off to whoever writes next.
    os.truncate(small_disk / "lock", 0)
    with (small_disk / "ballast").open("wb", buffering=0) as ballast:
        for size in (MIB, 4096, 1):
            try:
                while True:
                    ballast.write(b"\0" * size)
            except OSError:
                continue
    program.start()
    stream = await _synced(controlplane)
    await _until_conditions(stream, {"DiskFull"})
    (small_disk / "ballast").unlink()
    await _until_conditions(stream, set())


async def test_a_program_that_fills_the_disk_is_told_by_its_own_exit_code(
    controlplane: ScriptedControlPlane, small_disk: Path, settings: dict[str, str], program: Program
) -> None:
    settings["FASTFLOW_DISK_RESERVE"] = "0"
    program.start()
    stream = await controlplane.stream()
    await stream.welcome()
    word = controlplane.run(FILLER)
    await stream.full(word)
    await stream.hear_of(word)
    ended = (await stream.until_fact("ended"))[-1].ended
    async with asyncio.timeout(60):
        # Which comes first, the end or the output, nobody promises.
        while controlplane.logs.get(word.key.run_id) != b"full\n":  # noqa: ASYNC110 - output tells nobody that it came
            await asyncio.sleep(0.01)
    assert (ended.exit_code, ended.reason) == (7, runs_pb2.REASON_EXIT_CODE)


async def test_a_journal_of_a_newer_version_is_said_in_a_line(
    controlplane: ScriptedControlPlane, program: Program, tmp_path: Path
) -> None:
    journal = tmp_path / "agent" / "slots" / "00000000000000aa" / "journal"
    journal.parent.mkdir(parents=True)
    line = b'{"step":"FROZEN"}'
    journal.write_bytes(b"%08x %b\n" % (google_crc32c.value(line), line))
    program.start()
    await asyncio.to_thread(program.wait_for_log, "the agent can not start")
    async with asyncio.timeout(60):
        while program.alive:  # noqa: ASYNC110 - its end tells nobody
            await asyncio.sleep(0.02)
    assert program.stop() == 1
    assert "perhaps of a newer version" in program.tail()
    assert "Traceback" not in program.tail()


async def test_reasons_that_a_newer_control_plane_gives_are_passed_over(
    controlplane: ScriptedControlPlane, program: Program
) -> None:
    program.start()
    stream = await _synced(controlplane)
    ack = attempts_pb2.AttemptEventAck(run_id="r", attempt=1, sequence=1, rejection=99)  # type: ignore[arg-type]
    await stream.send(events_ack=attempts_pb2.AttemptEventsAck(acks=[ack]))
    assert await stream.next("heartbeat")
    rejection = gateway_pb2.Rejection(code=99, message="not today")  # type: ignore[arg-type]
    await stream.send(rejection=rejection)
    await asyncio.to_thread(program.wait_for_log, "not today")
    assert program.alive
