"""A control plane whose data folder lies on a disk that is really full. Needs root, to make such a disk."""

import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.cluster import Cluster
from tests.cluster.scenarios import terminal_facts

MIB = 1024 * 1024
DISK_BYTES = 16 * MIB
LOST_SECONDS = 1.0
RECOVERY_SECONDS = 20.0
"""The agent is away for longer than both while the disk is full, and returns in less once there is room."""
TALKER = """
    import os, pathlib, sys, time
    print("begun", flush=True)
    while not pathlib.Path(os.environ["GO"]).exists():
        time.sleep(0.05)
    for number in range(40_000):
        print(f"line {number} {'x' * 80}")
    sys.exit(7)
"""
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def talker_log() -> bytes:
    """What TALKER writes, byte for byte: about 4 MB."""
    return b"begun\n" + b"".join(f"line {number} {'x' * 80}\n".encode() for number in range(40_000))


@dataclass
class SmallDisk:
    """A file system of 16 MiB."""

    folder: Path

    def fill(self) -> None:
        """Leaves not one free block."""
        with (self.folder / "ballast").open("ab", buffering=0) as file:
            for size in (MIB, 4096, 1):
                try:
                    while True:
                        file.write(b"\0" * size)
                except OSError:
                    continue

    def free(self) -> None:
        """Makes room again."""
        (self.folder / "ballast").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "cluster" / "controlplane"
    folder.parent.mkdir()
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "fastflow-test", str(folder)], check=True)
    yield SmallDisk(folder)
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def cluster(tmp_path: Path, disk: SmallDisk) -> Iterator[Cluster]:
    """Control plane on the small disk, agent elsewhere; started by the test."""
    impatience = {
        "FASTFLOW_LOST_AFTER": str(LOST_SECONDS),
        "FASTFLOW_OFFLINE_AFTER": "0.5",
        "FASTFLOW_RECOVERY_WINDOW": str(RECOVERY_SECONDS),
    }
    with Cluster(tmp_path / "cluster", "process", **impatience) as made:
        yield made


def health(cluster: Cluster, service: str) -> int:
    with grpc.insecure_channel(cluster.server) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return int(health_pb2_grpc.HealthStub(channel).Check(request, timeout=30).status)


def conditions(cluster: Cluster) -> list[dict[str, object]]:
    done = cluster.ffctl("agents", "list", "-o", "json")
    assert done.exit_code == 0, done.stderr
    return list(json.loads(done.stdout)["controlplane_conditions"])


def told(cluster: Cluster, event: str) -> int:
    """How often the control plane's log has this entry."""
    lines = cluster.controlplane.log.read_text().splitlines()
    return sum(json.loads(line)["event"] == event for line in lines)


def stored_log(disk: SmallDisk, run: str) -> bytes:
    (file,) = (disk.folder / "logs").glob(f"*/*{run}/1.log")
    return file.read_bytes()


def test_a_full_disk_is_told_loses_nothing_and_all_goes_on_once_there_is_room(
    cluster: Cluster, disk: SmallDisk, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    cluster.add_pipeline("talker", TALKER)
    cluster.start(FASTFLOW_RECONNECT_MAXIMUM="1")
    run = cluster.run("talker", "--env", f"GO={go}")
    cluster.wait_for_log(run, b"begun")
    assert conditions(cluster) == []
    assert health(cluster, "fastflow.agent.v1.AgentGatewayService") == SERVING

    disk.fill()
    go.touch()
    cluster.until(lambda: len(conditions(cluster)) == 2, "database and logs to be told as full")
    assert {condition["type"] for condition in conditions(cluster)} == {"DiskFull"}
    shown = cluster.ffctl("agents", "list")
    assert "worker-1" in shown.text
    assert f"control plane, DiskFull: the disk that holds {disk.folder}/logs is full" in shown.stderr
    assert f"control plane, DiskFull: the disk that holds {disk.folder}/fastflow.db is full" in shown.stderr
    for service in ("agent.v1.AgentGatewayService", "v1.LogService", "v1.RunService", "v1.SecretService"):
        cluster.until(lambda name=service: health(cluster, f"fastflow.{name}") == NOT_SERVING, service)
    assert health(cluster, "") == health(cluster, "fastflow.v1.AgentService") == SERVING
    refused = cluster.ffctl("run", "talker")
    assert refused.exit_code == 4
    assert f"the disk that holds {disk.folder}/fastflow.db is full" in refused.stderr
    assert "free some space there" in refused.stderr

    # An agent that comes anew can not be registered: no fault of its own, and its run is not LOST.
    cluster.agent.kill()
    cluster.agent.start()
    cluster.agent.wait_for_log(f"UNAVAILABLE: the disk that holds {disk.folder}/fastflow.db is full")
    cluster.agent.kill()
    time.sleep(RECOVERY_SECONDS)
    assert cluster.show(run)["state"] == "RUN_STATE_RUNNING"
    once = ("logs can not be stored", "a log waits on its worker", "writing fails")
    assert [told(cluster, event) for event in once] == [1, 1, 1]
    assert cluster.controlplane.log.read_text().count("is full") == len(once)
    assert talker_log().startswith(stored_log(disk, run))

    disk.free()
    cluster.until(lambda: told(cluster, "writing works again"), "the database to be used though nobody asks")
    cluster.agent.start()
    ended = cluster.finish(run)
    assert (ended["state"], ended["exit_code"], ended["attempt"]) == ("RUN_STATE_FAILED", 7, 1)
    assert cluster.log(run) == stored_log(disk, run) == talker_log()
    assert terminal_facts(cluster, str(ended["id"])) == 1
    cluster.until(lambda: conditions(cluster) == [], "the conditions to be over")
    cluster.until(lambda: health(cluster, "fastflow.agent.v1.AgentGatewayService") == SERVING, "its health")
    assert told(cluster, "logs can be stored again") == told(cluster, "writing works again") == 1
    assert cluster.finish(cluster.run("talker", "--env", f"GO={go}"))["exit_code"] == 7


def test_a_control_plane_that_finds_its_disk_full_says_so_and_starts_once_there_is_room(
    cluster: Cluster, disk: SmallDisk, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    cluster.add_pipeline("talker", TALKER)
    cluster.start(FASTFLOW_RECONNECT_MAXIMUM="1")
    run = cluster.run("talker", "--env", f"GO={go}")
    cluster.wait_for_log(run, b"begun")
    cluster.controlplane.stop()

    disk.fill()
    go.touch()
    cluster.controlplane.start()
    cluster.controlplane.wait_for_log("can not start")
    cluster.until(lambda: not cluster.controlplane.alive, "the control plane to end")
    (reason,) = (line for line in cluster.controlplane.log.read_text().splitlines() if "can not start" in line)
    assert f"the disk that holds {disk.folder}/fastflow.db is full" in json.loads(reason)["why"]
    assert "Traceback" not in cluster.controlplane.tail()

    disk.free()
    cluster.controlplane.start()
    cluster.wait_for_agent("worker-1")
    ended = cluster.finish(run)
    assert (ended["state"], ended["exit_code"], ended["attempt"]) == ("RUN_STATE_FAILED", 7, 1)
    assert cluster.log(run) == talker_log()


def test_the_first_start_on_a_full_disk_says_so_and_the_next_one_finds_nothing_broken(
    cluster: Cluster, disk: SmallDisk
) -> None:
    disk.fill()
    cluster.controlplane.start()
    cluster.until(lambda: not cluster.controlplane.alive, "the control plane to end")
    assert f"the disk that holds {disk.folder}" in cluster.controlplane.tail()
    assert "is full" in cluster.controlplane.tail()
    assert "Traceback" not in cluster.controlplane.tail()

    disk.free()
    cluster.add_pipeline("hello", "print('hello')")
    cluster.start()
    assert cluster.finish(cluster.run("hello"))["exit_code"] == 0
