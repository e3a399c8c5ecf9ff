"""A disk that is really full, under the logs of the control plane. Needs root, to make such a disk."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fastflow.ids import new_id
from fastflow_controlplane.logs.files import QUIET_CHECKS, FileLogStore
from fastflow_controlplane.logs.ingest import AttemptLogs, IngestSettings, LogIngest
from fastflow_controlplane.logs.store import LogKey
from fastflow_controlplane.logs.uploads import Answer, Chunk, Rejection, Seal
from fastflow_controlplane.runs.model import AttemptKey
from google_crc32c import value as crc32c

MIB = 1024 * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB, three quarters of it taken by the file `ballast`."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "fastflow-test", str(folder)], check=True)
    (folder / "ballast").write_bytes(b"\0" * (3 * MIB))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


class Known(AttemptLogs):
    """Every attempt is known."""

    def __init__(self) -> None:
        self.ends: list[int] = []

    async def admit(self, key: AttemptKey) -> Rejection:
        return Rejection.NONE

    async def sealed(self, key: AttemptKey, end: int) -> None:
        self.ends.append(end)


async def test_on_a_full_disk_nothing_is_acknowledged_and_later_nothing_is_missing(small_disk: Path) -> None:
    store, attempts = FileLogStore(small_disk / "logs"), Known()
    ingest = LogIngest(store, attempts, IngestSettings(sync_interval=0.01, retry_interval=0.05))
    key = AttemptKey(new_id(), 1, "token")
    output = bytes(range(256)) * (3 * MIB // 512)
    step = 64 * 1024
    answers: list[Answer] = []

    async def uploads() -> AsyncIterator[Chunk | Seal]:
        for offset in range(0, len(output), step):
            data = output[offset : offset + step]
            yield Chunk(key, offset, data, crc32c(data))
        yield Seal(key, len(output))

    async def send(answer: Answer) -> None:
        answers.append(answer)

    serving = asyncio.create_task(ingest.serve(uploads(), send))
    async with asyncio.timeout(60):
        while store.problem is None:  # noqa: ASYNC110  # nobody tells when a disk is full
            await asyncio.sleep(0.01)
    assert f"the disk that holds {small_disk / 'logs'} is full" in store.problem.message
    await asyncio.sleep(0.2)
    stored = small_disk / "logs" / key.run_id[-2:] / key.run_id / "1.log"
    assert not serving.done()
    assert all(answer.durable_offset <= stored.stat().st_size and not answer.sealed for answer in answers)
    assert stored.read_bytes() == output[: stored.stat().st_size]

    (small_disk / "ballast").unlink()
    async with asyncio.timeout(60):
        await serving
    for _ in range(QUIET_CHECKS):
        await store.recheck()
    assert store.problem is None
    assert stored.read_bytes() == output
    assert attempts.ends == [len(output)]
    assert answers[-1].sealed
    assert {answer.rejection for answer in answers} == {Rejection.NONE}
    async with store.open(LogKey(key.run_id, 1)) as log:
        assert log.sealed
    await store.aclose()
