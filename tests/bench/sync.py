"""Syncing a repository of 1 000 pipelines in which one changed."""

import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import grpc
from fastflow.v1 import sources_pb2, sources_pb2_grpc

from tests.bench.figures import Figure
from tests.cluster import Cluster
from tests.origins import Origin

PIPELINES = 1_000
PASSES = 15
FILES = {
    "main.py": "print({})\n" * 50,
    "requirements.txt": "requests\n",
    "pipeline.json": '{"mem_hard_limit": "64m"}\n',
}


def sync() -> Figure:
    """From the call of SyncSource to its answer, in turns with `git fetch` and `git archive` of the one folder."""
    with tempfile.TemporaryDirectory(prefix="fastflow-bench-") as folder:
        origin = Origin(Path(folder) / "origin.git")
        origin.push({f"p{number}/{name}": text for number in range(PIPELINES) for name, text in FILES.items()})
        copy = Path(folder) / "copy.git"
        _git("clone", "--quiet", "--mirror", f"file://{origin.path}", str(copy))
        sources = json.dumps([{"name": "flows", "url": f"file://{origin.path}"}])
        settings = {"FASTFLOW_SOURCES": sources, "FASTFLOW_SYNC_INTERVAL": "86400"}
        with Cluster(Path(folder) / "cluster", "process", **settings) as cluster:
            cluster.controlplane.start()
            cluster.until(lambda: cluster.ffctl("sync", "--wait").exit_code == 0, "the first sync")
            ours, theirs = [], []
            with grpc.insecure_channel(cluster.server) as channel:
                stub = sources_pb2_grpc.SourceServiceStub(channel)
                for number in range(PASSES):
                    name = f"p{number}"
                    origin.push({f"{name}/main.py": f"print('changed {number}')\n"})
                    ours.append(_ours(stub, name))
                    theirs.append(_theirs(copy, name))
    return Figure(
        f"sync of {PIPELINES} pipelines, one changed",
        *(statistics.median(ours), "s", 1.5, statistics.median(theirs), "git fetch, git archive"),
    )


def _ours(stub: sources_pb2_grpc.SourceServiceStub, changed: str) -> float:
    begun = time.monotonic()
    answer = stub.SyncSource(sources_pb2.SyncSourceRequest(name="flows", wait=True))
    seconds = time.monotonic() - begun
    assert list(answer.sync.changed) == [changed], answer
    return seconds


def _theirs(copy: Path, changed: str) -> float:
    begun = time.monotonic()
    _git("-C", str(copy), "fetch", "--quiet")
    _git("-C", str(copy), "archive", f"main:{changed}")
    return time.monotonic() - begun


def _git(*arguments: str) -> None:
    subprocess.run(["git", "-c", "safe.directory=*", *arguments], stdout=subprocess.DEVNULL, check=True)
