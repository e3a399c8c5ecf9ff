"""How far a pipeline's packages are, as `ffctl pipelines show` tells it."""

import json
import time

import pytest
from fastflow.v1 import pipelines_pb2

from tests.unit.ffctl.conftest import Ffctl, ScriptedServer


@pytest.fixture
def pipeline(server: ScriptedServer) -> pipelines_pb2.Pipeline:
    """What the server says of the pipeline etl; a test fills in its environments."""
    pipeline = pipelines_pb2.Pipeline(name="etl", state=pipelines_pb2.PIPELINE_STATE_READY, has_requirements=True)
    server.answers["GetPipeline"] = lambda request, context: pipelines_pb2.GetPipelineResponse(pipeline=pipeline)
    return pipeline


def test_an_agent_that_is_ready_is_shown_with_time_and_packages(pipeline: pipelines_pb2.Pipeline, ffctl: Ffctl) -> None:
    ready = pipeline.environments.add(agent="worker-1", state=pipelines_pb2.ENVIRONMENT_STATE_READY)
    ready.duration.FromMilliseconds(3200)
    ready.prepare_time.FromSeconds(int(time.time()) - 300)
    ready.packages.extend(["own @ git+https://host/own.git@0123", "pandas==2.2.3"])
    pipeline.environments.add(agent="worker-2", state=pipelines_pb2.ENVIRONMENT_STATE_PREPARING)
    lines = [line.split(maxsplit=1) for line in ffctl("pipelines", "show", "etl").out.decode().splitlines()]
    assert ["Packages", "worker-1  READY  took 3.2 s, 5 min ago"] in lines
    assert ["own", "@ git+https://host/own.git@0123, pandas==2.2.3"] in lines
    assert ["worker-2", "PREPARING"] in lines


def test_a_failure_is_shown_in_uvs_words_with_what_to_do(pipeline: pipelines_pb2.Pipeline, ffctl: Ffctl) -> None:
    failed = pipeline.environments.add(agent="worker-1", state=pipelines_pb2.ENVIRONMENT_STATE_FAILED)
    failed.message = "× No solution found when resolving dependencies:\n╰─▶ Because there is no version of pandsa"
    failed.retry_time.FromSeconds(int(time.time()) + 3601)
    text = ffctl("pipelines", "show", "etl").out.decode()
    assert "worker-1  FAILED  tried again in 1 h" in text
    assert "Because there is no version of pandsa" in text
    assert "Mend requirements.txt" in text
    pipeline.has_requirements = False
    pipeline.has_script_header = True
    text = ffctl("pipelines", "show", "etl").out.decode()
    assert "Mend the header of main.py" in text
    assert "Requirements  header of main.py" in text


def test_programs_get_the_same_as_json(pipeline: pipelines_pb2.Pipeline, ffctl: Ffctl) -> None:
    pipeline.environments.add(agent="worker-1", state=pipelines_pb2.ENVIRONMENT_STATE_WAITING, message="disk is full")
    shown = json.loads(ffctl("pipelines", "show", "etl", "-o", "json").out)
    assert shown["environments"] == [
        {"agent": "worker-1", "state": "ENVIRONMENT_STATE_WAITING", "message": "disk is full", "packages": []}
    ]
