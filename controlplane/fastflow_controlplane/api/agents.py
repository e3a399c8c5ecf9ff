"""AgentService: translates and delegates to `agents.registry`."""

from typing import Any

from fastflow.v1 import agents_pb2, agents_pb2_grpc

from fastflow_controlplane import pages
from fastflow_controlplane.agents.acceptance import Acceptance
from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.api.translate import agent_message, condition_message
from fastflow_controlplane.conditions import Conditions

DEFAULT_PAGE = 100


class AgentServicer(agents_pb2_grpc.AgentServiceServicer):
    """Worker hosts for clients."""

    def __init__(self, registry: AgentRegistry, acceptance: Acceptance, conditions: Conditions) -> None:
        self._registry = registry
        self._acceptance = acceptance
        self._conditions = conditions

    async def GetAgent(self, request: agents_pb2.GetAgentRequest, context: Any) -> agents_pb2.GetAgentResponse:
        """Reads one agent."""
        return agents_pb2.GetAgentResponse(agent=agent_message(await self._registry.get(request.name)))

    async def ListAgents(self, request: agents_pb2.ListAgentsRequest, context: Any) -> agents_pb2.ListAgentsResponse:
        """Lists agents by name."""
        page = await self._registry.list(pages.check_size(request.page_size, DEFAULT_PAGE), request.page_token)
        return agents_pb2.ListAgentsResponse(
            agents=[agent_message(agent) for agent in page.agents],
            next_page_token=page.next_page_token,
            controlplane_conditions=map(condition_message, self._conditions.all()),
        )

    async def AcceptAgent(self, request: agents_pb2.AcceptAgentRequest, context: Any) -> agents_pb2.AcceptAgentResponse:
        """Ends a quarantine."""
        accepted = await self._acceptance.accept(request.name, request.request_id)
        return agents_pb2.AcceptAgentResponse(agent=agent_message(accepted))
