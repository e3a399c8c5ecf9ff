"""What the health service (grpc.health.v1) says of each service: whether it can do its work at present.

The server as a whole ("") stays SERVING while it answers at all: reading works on a full disk too, and starting the
control plane anew would mend nothing.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from fastflow.agent.v1 import gateway_pb2
from fastflow.v1 import logs_pb2, runs_pb2, secrets_pb2
from grpc_health.v1.health_pb2 import HealthCheckResponse

from fastflow_controlplane.conditions import Conditions, Part

_GATEWAY = gateway_pb2.DESCRIPTOR.services_by_name["AgentGatewayService"].full_name
_RUNS = runs_pb2.DESCRIPTOR.services_by_name["RunService"].full_name
_SECRETS = secrets_pb2.DESCRIPTOR.services_by_name["SecretService"].full_name
_LOGS = logs_pb2.DESCRIPTOR.services_by_name["LogService"].full_name

NEEDED_BY = {
    Part.DATABASE: frozenset({_RUNS, _SECRETS, _GATEWAY}),
    Part.LOGS: frozenset({_LOGS, _GATEWAY}),
}
"""The services that are NOT_SERVING while a part fails; what they only read, they still answer."""


class Status(Protocol):
    """The health service, as it is told."""

    async def set(self, service: str, status: Any) -> None:
        """Sets the status of one service."""


async def tell(status: Status, services: Sequence[str], conditions: Conditions) -> None:
    """Tells `status` how each of `services` is, whenever that changes, until cancelled."""
    while True:
        conditions.changed.clear()
        failing = frozenset[str]().union(*(NEEDED_BY[condition.part] for condition in conditions.all()))
        for service in services:
            serving = HealthCheckResponse.NOT_SERVING if service in failing else HealthCheckResponse.SERVING
            await status.set(service, serving)
        await conditions.changed.wait()
