"""Repeating and comparing runs end to end, pipelines in containers."""

import ipaddress
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.cluster.reruns import MAIN, Index, Reruns


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """On the host's end of Docker's bridge, where containers reach it."""
    command = ["docker", "network", "inspect", "bridge", "--format", "{{json .IPAM.Config}}"]
    config = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)[0]
    host = config.get("Gateway") or next(ipaddress.ip_network(config["Subnet"]).hosts())
    index = Index(tmp_path / "index", str(host))
    yield index
    index.close()


@pytest.fixture
def cluster(tmp_path: Path, index: Index, runner_image: str) -> Iterator[Cluster]:
    with Cluster(tmp_path / "cluster", "docker") as made:
        made.start(FASTFLOW_INDEX_URL=index.url)
        made.add_pipeline("etl", MAIN, requirements="alphaff\n")
        yield made


class TestReruns(Reruns):
    """With the Docker runtime."""
