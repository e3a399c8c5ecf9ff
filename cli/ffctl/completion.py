"""What a shell offers for a name: asked from the server, within the time a person waits for a Tab."""

import asyncio
import time
from collections.abc import Sequence

import grpc.aio
from fastflow.ids import short
from fastflow.v1 import agents_pb2, pipelines_pb2, runs_pb2, secrets_pb2, sources_pb2

from ffctl import wording
from ffctl.connection import Connection

ANSWER_S = 1.0
"""A Tab that takes longer feels broken; better nothing is offered."""
NEWEST_RUNS = 50
PAGE = 1000

Offer = tuple[str, str]
"""A name and what is said beside it."""


def names(kind: str, address: str, token: str | None) -> Sequence[Offer]:
    """Returns what the server knows of `kind` ("runs", "pipelines", …, "sources"); nothing if it is silent."""
    return asyncio.run(_ask(kind, address, token))


async def _ask(kind: str, address: str, token: str | None) -> Sequence[Offer]:
    async with Connection(address, token) as connection:
        try:
            return await _QUESTIONS[kind](connection)
        except grpc.aio.AioRpcError:
            return []


async def _runs(connection: Connection) -> Sequence[Offer]:
    answer = await connection.runs.ListRuns(runs_pb2.ListRunsRequest(page_size=NEWEST_RUNS), timeout=ANSWER_S)
    now = time.time()
    return [
        (short(run.id), f"{run.pipeline} {wording.run_state(run.state)}, {wording.ago(run.create_time, now)}")
        for run in answer.runs
    ]


async def _pipelines(connection: Connection) -> Sequence[Offer]:
    answer = await connection.pipelines.ListPipelines(
        pipelines_pb2.ListPipelinesRequest(page_size=PAGE), timeout=ANSWER_S
    )
    return [(pipeline.name, pipeline.description) for pipeline in answer.pipelines]


async def _agents(connection: Connection) -> Sequence[Offer]:
    answer = await connection.agents.ListAgents(agents_pb2.ListAgentsRequest(page_size=PAGE), timeout=ANSWER_S)
    return [(agent.name, wording.agent_state(agent.state)) for agent in answer.agents]


async def _secrets(connection: Connection) -> Sequence[Offer]:
    answer = await connection.secrets.ListSecrets(secrets_pb2.ListSecretsRequest(page_size=PAGE), timeout=ANSWER_S)
    return [(name, "") for name in sorted({secret.name for secret in answer.secrets})]


async def _sources(connection: Connection) -> Sequence[Offer]:
    answer = await connection.sources.ListSources(sources_pb2.ListSourcesRequest(page_size=PAGE), timeout=ANSWER_S)
    return [(source.name, source.place) for source in answer.sources]


_QUESTIONS = {
    "runs": _runs,
    "pipelines": _pipelines,
    "agents": _agents,
    "secrets": _secrets,
    "sources": _sources,
}
