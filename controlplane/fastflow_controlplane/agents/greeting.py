"""Hello and Welcome: who may have a stream, and what it is told first."""

from fastflow.agent.v1 import gateway_pb2
from fastflow.protocol import PROTOCOLS, Protocols

from fastflow_controlplane.agents.model import AgentFacts
from fastflow_controlplane.clock import MICROSECONDS
from fastflow_controlplane.settings import ControlPlaneSettings
from fastflow_controlplane.store.queries.agents import AgentRow
from fastflow_controlplane.store.queries.cluster import Leadership

LONGEST_TEXT = 255
UNTIL_ANOTHER_WORD_SECONDS = 365 * 86_400.0
"""Grace for what an agent does not find in its full set, where something is missing there that is known."""
LARGEST = 2**53
"""Integers stay below, so that JSON carries them unharmed."""


def protocol_of(hello: gateway_pb2.Hello, version: str, spoken: Protocols = PROTOCOLS) -> tuple[int, str]:
    """Returns the newest protocol that both sides speak; 0 and why they can not talk where there is none.

    `version` is that of this control plane, `spoken` what it speaks.
    """
    agents = Protocols(hello.protocol_min, hello.protocol_max)
    common = spoken.common(agents)
    if common is not None:
        return common, ""
    agent = f'agent "{hello.agent_name}" (version {hello.agent_version})'
    said = f"{agent} speaks {agents}, this control plane (version {version}) {spoken}"
    if agents.newest < spoken.oldest:
        return 0, f"{said}: the agent is too old; upgrade Fast-Flow on its host, its runs go on meanwhile"
    return 0, f"{said}: the control plane is too old; upgrade it before its agents"


def fault(facts: AgentFacts) -> str:
    """Returns what is wrong with what an agent says of itself; "" = nothing."""
    if not 1 <= len(facts.agent_id) <= 36:
        return "agent_id must have 1 to 36 characters"
    if not 1 <= len(facts.name) <= 200 or not facts.name.isprintable() or "~" in facts.name:
        return "agent_name must have 1 to 200 printable characters, and no ~"
    for name, text in (
        ("instance_id", facts.instance_id),
        ("boot_id", facts.boot_id),
        ("machine_id", facts.machine_id),
        ("agent_version", facts.version),
        ("host_name", facts.host_name),
        ("kernel", facts.kernel),
    ):
        if len(text) > LONGEST_TEXT:
            return f"{name} must have at most {LONGEST_TEXT} characters"
    capacity = facts.capacity
    if not (0 < capacity.cpu_milli_cores < LARGEST and 0 < capacity.memory_bytes < LARGEST and capacity.slots >= 0):
        return "capacity must have cpu_milli_cores and memory_bytes above 0 and below 2^53"
    return ""


def welcome(
    row: AgentRow,
    settings: ControlPlaneSettings,
    leadership: Leadership,
    version: str,
    protocol: int,
    *,
    tells_all: bool,
) -> gateway_pb2.ConnectResponse:
    """Makes the first answer of a stream; `tells_all`: nothing that is known will be missing from the full set."""
    message = gateway_pb2.Welcome(
        protocol=protocol,
        cluster_id=leadership.cluster_id,
        session_epoch=row.session_epoch,
        agent_id=row.facts.agent_id,
        leader_epoch=leadership.leader_epoch,
        controlplane_version=version,
        quarantine_reason=row.quarantine_reason,
        accepted=bool(row.accepted_cluster_id) and row.accepted_cluster_id == row.hello_cluster_id,
    )
    message.heartbeat_interval.FromMicroseconds(round(settings.heartbeat_interval * MICROSECONDS))
    grace = settings.orphan_grace if tells_all else UNTIL_ANOTHER_WORD_SECONDS
    message.orphan_grace.FromMicroseconds(round(grace * MICROSECONDS))
    return gateway_pb2.ConnectResponse(welcome=message)
