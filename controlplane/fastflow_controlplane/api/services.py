"""All services on one server."""

from dataclasses import dataclass

import grpc.aio
from fastflow.agent.v1 import gateway_pb2, gateway_pb2_grpc
from fastflow.v1 import (
    agents_pb2,
    agents_pb2_grpc,
    logs_pb2,
    logs_pb2_grpc,
    pipelines_pb2,
    pipelines_pb2_grpc,
    runs_pb2,
    runs_pb2_grpc,
    secrets_pb2,
    secrets_pb2_grpc,
    sources_pb2,
    sources_pb2_grpc,
)

from fastflow_controlplane.agents.acceptance import Acceptance
from fastflow_controlplane.agents.operations import AgentOperations
from fastflow_controlplane.agents.preheat import Preheat
from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.agents.session import AgentSessions
from fastflow_controlplane.api.agent_gateway import AgentGatewayServicer
from fastflow_controlplane.api.agents import AgentServicer
from fastflow_controlplane.api.logs import LogServicer
from fastflow_controlplane.api.pipelines import PipelineServicer
from fastflow_controlplane.api.runs import RunServicer
from fastflow_controlplane.api.secrets import SecretServicer
from fastflow_controlplane.api.sources import SourceServicer
from fastflow_controlplane.conditions import Conditions
from fastflow_controlplane.logs.follow import LogFollower
from fastflow_controlplane.logs.ingest import LogIngest
from fastflow_controlplane.runs.reaper import Reaper
from fastflow_controlplane.runs.service import RunService
from fastflow_controlplane.secrets.service import SecretService
from fastflow_controlplane.sources.catalog import Catalog
from fastflow_controlplane.sources.syncing import SyncService


@dataclass(frozen=True)
class Parts:
    """What the services delegate to."""

    runs: RunService
    reaper: Reaper
    follower: LogFollower
    catalog: Catalog
    preheat: Preheat
    syncs: SyncService
    registry: AgentRegistry
    acceptance: Acceptance
    operations: AgentOperations
    secrets: SecretService
    sessions: AgentSessions
    ingest: LogIngest
    conditions: Conditions


def add_services(server: grpc.aio.Server, parts: Parts) -> tuple[str, ...]:
    """Adds every service of Fast-Flow to `server` and returns their full names, for health and reflection."""
    runs_pb2_grpc.add_RunServiceServicer_to_server(RunServicer(parts.runs, parts.reaper), server)
    logs_pb2_grpc.add_LogServiceServicer_to_server(LogServicer(parts.runs, parts.follower), server)
    pipelines_pb2_grpc.add_PipelineServiceServicer_to_server(PipelineServicer(parts.catalog, parts.preheat), server)
    agents_pb2_grpc.add_AgentServiceServicer_to_server(
        AgentServicer(parts.registry, parts.acceptance, parts.operations, parts.conditions), server
    )
    secrets_pb2_grpc.add_SecretServiceServicer_to_server(SecretServicer(parts.secrets), server)
    sources_pb2_grpc.add_SourceServiceServicer_to_server(SourceServicer(parts.syncs), server)
    gateway_pb2_grpc.add_AgentGatewayServiceServicer_to_server(
        AgentGatewayServicer(parts.sessions, parts.ingest, parts.catalog), server
    )
    files = (runs_pb2, logs_pb2, pipelines_pb2, agents_pb2, secrets_pb2, sources_pb2, gateway_pb2)
    return tuple(service.full_name for file in files for service in file.DESCRIPTOR.services_by_name.values())
