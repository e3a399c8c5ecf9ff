"""AgentService: translates and delegates to `agents.registry` and `agents.operations`."""

from typing import Any

from fastflow.v1 import agents_pb2, agents_pb2_grpc

from fastflow_controlplane import pages
from fastflow_controlplane.agents.acceptance import Acceptance
from fastflow_controlplane.agents.operations import AgentOperations
from fastflow_controlplane.agents.registry import AgentRegistry
from fastflow_controlplane.api.translate import agent_message, condition_message
from fastflow_controlplane.clock import MICROSECONDS
from fastflow_controlplane.conditions import Conditions

DEFAULT_PAGE = 100


class AgentServicer(agents_pb2_grpc.AgentServiceServicer):
    """Worker hosts for clients."""

    def __init__(
        self, registry: AgentRegistry, acceptance: Acceptance, operations: AgentOperations, conditions: Conditions
    ) -> None:
        self._registry = registry
        self._acceptance = acceptance
        self._operations = operations
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

    async def DrainAgent(self, request: agents_pb2.DrainAgentRequest, context: Any) -> agents_pb2.DrainAgentResponse:
        """Empties an agent."""
        deadline = request.deadline.ToMicroseconds() / MICROSECONDS if request.HasField("deadline") else None
        agent = await self._operations.drain(
            request.name, deadline=deadline, stop=request.stop, request_id=request.request_id
        )
        return agents_pb2.DrainAgentResponse(agent=agent_message(agent))

    async def ResumeAgent(self, request: agents_pb2.ResumeAgentRequest, context: Any) -> agents_pb2.ResumeAgentResponse:
        """Lets an agent take runs again."""
        agent = await self._operations.resume(request.name, request.request_id)
        return agents_pb2.ResumeAgentResponse(agent=agent_message(agent))

    async def RemoveAgent(self, request: agents_pb2.RemoveAgentRequest, context: Any) -> agents_pb2.RemoveAgentResponse:
        """Takes an agent off the list."""
        lost = await self._operations.remove(request.name, force=request.force, request_id=request.request_id)
        return agents_pb2.RemoveAgentResponse(lost_run_ids=lost)
