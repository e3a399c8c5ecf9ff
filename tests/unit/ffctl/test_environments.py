"""How far a pipeline's packages are, as `ffctl pipelines show` tells it."""

import json
import re
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
    failed.retry_time.FromSeconds(int(time.time()) + 3630)
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


Counts = pipelines_pb2.EnvironmentCounts


def row_of(ffctl: Ffctl, server: ScriptedServer, pipeline: pipelines_pb2.Pipeline) -> list[str]:
    """The cells of a pipeline's row in the list."""
    server.answers["ListPipelines"] = lambda request, context: pipelines_pb2.ListPipelinesResponse(pipelines=[pipeline])
    head, row = ffctl("pipelines", "list").out.decode().splitlines()
    assert head.split() == ["PIPELINE", "STATE", "PACKAGES", "CPU", "MEMORY", "DESCRIPTION"]
    return re.split(" {2,}", row)


@pytest.mark.parametrize(
    ("counts", "shown"),
    [
        (Counts(ready=3), "READY"),
        (Counts(ready=2, preparing=1), "PREPARING 1/3"),
        (Counts(preparing=1, waiting=1), "WAITING 1/2"),
        (Counts(ready=1, preparing=1, waiting=1, failed=1), "FAILED 1/4"),
        (Counts(failed=1), "FAILED"),
        (Counts(), "–"),
        (None, "–"),
    ],
)
def test_the_list_tells_the_worst_state_of_a_pipelines_packages_and_how_many_agents_are_in_it(
    pipeline: pipelines_pb2.Pipeline,
    server: ScriptedServer,
    ffctl: Ffctl,
    counts: pipelines_pb2.EnvironmentCounts | None,
    shown: str,
) -> None:
    if counts is not None:
        pipeline.environment_counts.CopyFrom(counts)
    assert row_of(ffctl, server, pipeline)[1:3] == ["READY", shown]


def test_the_list_tells_which_pipelines_need_no_packages(
    pipeline: pipelines_pb2.Pipeline, server: ScriptedServer, ffctl: Ffctl
) -> None:
    pipeline.has_requirements = False
    assert row_of(ffctl, server, pipeline)[2] == "none"


def test_the_list_tells_where_to_see_why_packages_can_not_be_prepared(
    pipeline: pipelines_pb2.Pipeline, server: ScriptedServer, ffctl: Ffctl
) -> None:
    pipeline.description = "Reads orders"
    pipeline.environment_counts.CopyFrom(Counts(ready=1))
    assert row_of(ffctl, server, pipeline)[-1] == "Reads orders"
    pipeline.environment_counts.CopyFrom(Counts(failed=2))
    assert row_of(ffctl, server, pipeline)[-1] == "packages can not be prepared: ffctl pipelines show etl"
    pipeline.environment_counts.CopyFrom(Counts(ready=1, preparing=1, failed=1))
    assert (
        row_of(ffctl, server, pipeline)[-1] == "packages can not be prepared on 1 of 3 agents: ffctl pipelines show etl"
    )


def test_programs_get_the_counts_of_the_list_as_json(
    pipeline: pipelines_pb2.Pipeline, server: ScriptedServer, ffctl: Ffctl
) -> None:
    pipeline.environment_counts.CopyFrom(Counts(failed=2))
    server.answers["ListPipelines"] = lambda request, context: pipelines_pb2.ListPipelinesResponse(pipelines=[pipeline])
    (listed,) = json.loads(ffctl("pipelines", "list", "-o", "json").out)["pipelines"]
    assert listed["environment_counts"] == {"waiting": 0, "preparing": 0, "ready": 0, "failed": 2}
