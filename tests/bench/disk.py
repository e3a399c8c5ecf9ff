"""What the code of a pipeline takes on an agent's disk, for one run and for a thousand."""

import asyncio
import io
import os
import tempfile
from pathlib import Path

from fastflow.client import open_channel
from fastflow.pipelines.bundle import Bundle, pack
from fastflow.pipelines.code import read_code
from fastflow.pipelines.folder import DiskFolder
from fastflow_agent.bundles import Bundles
from fastflow_agent.model import SlotId

from tests.bench.figures import Figure
from tests.cluster import Cluster

SLOTS = 1_000
FILES = 20
FILE_BYTES = 50_000


def disk() -> Figure:
    """The agent's part that keeps code, fetching from a control plane; the yardstick is the same with one slot."""
    with (
        tempfile.TemporaryDirectory(prefix="fastflow-bench-") as folder,
        Cluster(Path(folder) / "cluster", "process") as cluster,
    ):
        code = cluster.add_pipeline("wide", "print('wide')\n")
        for number in range(FILES):
            (code / f"part_{number}.bin").write_bytes(os.urandom(FILE_BYTES))
        cluster.controlplane.start()
        cluster.until(lambda: cluster.ffctl("pipelines", "show", "wide").exit_code == 0, "the control plane")
        bundle = pack(read_code(DiskFolder(code)), io.BytesIO())
        one, all_of_them = asyncio.run(_measure(cluster.server, Path(folder) / "code", bundle))
    return Figure(
        f"code of {SLOTS} runs of one pipeline on an agent",
        *(all_of_them / 1024, "KiB", 1.0, one / 1024, "one run"),
    )


async def _measure(server: str, folder: Path, bundle: Bundle) -> tuple[int, int]:
    async with open_channel(server) as channel:
        bundles = Bundles(folder, channel)
        used = []
        for number in range(SLOTS):
            bundles.pin(bundle.digest, SlotId(f"{number:016x}"))
            await bundles.ensure(bundle.digest, bundle.size)
            if number in (0, SLOTS - 1):
                used.append(_bytes_below(folder))
    return used[0], used[1]


def _bytes_below(folder: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in (folder, *folder.rglob("*")))
