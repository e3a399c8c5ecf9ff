"""`buf curl` with nothing but the server's reflection: the API needs no client of ours."""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Cluster

BUF = Path(sys.executable).parent / "buf"
SECONDS = 60


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster for all tests here: none changes what another sees."""
    with Cluster(tmp_path_factory.mktemp("buf") / "cluster", "process") as made:
        yield made.start()


def curl(server: str, method: str, request: dict[str, Any], *arguments: str) -> list[dict[str, Any]]:
    """Calls a method and returns its answers."""
    command = [str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments, "--data"]
    done = subprocess.run(
        [*command, json.dumps(request), f"http://{server}/{method}"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    decoder = json.JSONDecoder()
    answers, text = [], done.stdout.strip()
    while text:
        answer, end = decoder.raw_decode(text)
        answers.append(answer)
        text = text[end:].strip()
    return answers


def test_pipelines_are_listed_a_run_is_created_and_its_log_followed(cluster: Cluster) -> None:
    cluster.add_pipeline("hello", "print('hello from buf')")
    (listed,) = curl(cluster.server, "fastflow.v1.PipelineService/ListPipelines", {})
    assert [pipeline["name"] for pipeline in listed["pipelines"]] == ["hello"]
    (created,) = curl(cluster.server, "fastflow.v1.RunService/CreateRun", {"pipeline": "hello"})
    run = created["run"]["id"]
    pieces = curl(cluster.server, "fastflow.v1.LogService/ReadLog", {"runId": run, "follow": True})
    assert b"".join(base64.b64decode(piece.get("data", "")) for piece in pieces) == b"hello from buf\n"
    assert pieces[-1]["sealed"]
    (shown,) = curl(cluster.server, "fastflow.v1.RunService/GetRun", {"id": run[-8:]})
    assert shown["run"]["state"] == "RUN_STATE_SUCCEEDED"


def test_health_is_served(cluster: Cluster) -> None:
    (answer,) = curl(cluster.server, "grpc.health.v1.Health/Check", {})
    assert answer["status"] == "SERVING"


@pytest.mark.parametrize(
    "service",
    [
        "fastflow.v1.RunService",
        "fastflow.v1.LogService",
        "fastflow.v1.PipelineService",
        "fastflow.v1.AgentService",
        "fastflow.v1.SecretService",
        "fastflow.agent.v1.AgentGatewayService",
    ],
)
def test_every_service_has_reflection(cluster: Cluster, service: str) -> None:
    command = [
        str(BUF),
        "curl",
        "--protocol",
        "grpc",
        "--http2-prior-knowledge",
        "--list-methods",
        f"http://{cluster.server}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert service in done.stdout
