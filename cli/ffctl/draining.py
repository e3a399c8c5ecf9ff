"""Waiting until a drained agent is empty."""

import asyncio

from fastflow.ids import short
from fastflow.v1 import agents_pb2

from ffctl import wording
from ffctl.connection import FOLLOW_PATIENCE_S, Connection
from ffctl.failures import Detached, Failure
from ffctl.interrupts import Interrupts
from ffctl.progress import Progress

POLL_S = 1.0
"""How often it is asked how far the agent is: runs take minutes, and each answer is one small query."""
NAMED = 3
"""Runs that are named while they are waited for."""


async def until_empty(connection: Connection, agent: agents_pb2.Agent) -> agents_pb2.Agent:
    """Returns the agent once it is empty; tells what is left meanwhile.

    Raises Detached after Ctrl-C, Failure where somebody resumed it, Unreachable or Refused.
    """
    name = agent.name
    progress = Progress(name)
    request = agents_pb2.GetAgentRequest(name=name)
    with Interrupts() as interrupts:
        pressed = asyncio.create_task(interrupts.pressed.wait())
        try:
            while not agent.drain.complete:
                if not agent.HasField("drain"):
                    raise Failure(f"somebody let {name} take runs again; it is not empty")
                progress.update(_doing(agent))
                await asyncio.wait({pressed}, timeout=POLL_S)
                if pressed.done():
                    raise Detached(
                        f"no longer waiting for {name}, which is drained all the same",
                        details=[
                            f"See how far it is: ffctl agents show {name}",
                            f"Let it take runs again: ffctl agents resume {name}",
                        ],
                    )
                answer = await connection.call(
                    connection.agents.GetAgent, request, patience=FOLLOW_PATIENCE_S, on_lost=progress.note
                )
                agent = answer.agent
        finally:
            pressed.cancel()
            progress.stop()
    return agent


def left(drain: agents_pb2.Drain) -> str:
    """Returns what is left on a drained agent: "2 runs left, stopped at 12:30:00"."""
    if drain.complete:
        return "empty"
    if not drain.attempts and not drain.logs:
        return "nobody knows what runs there"
    if not drain.attempts:
        return f"the rest of {wording.count(drain.logs, 'log')} is on its way"
    text = f"{wording.count(drain.attempts, 'run')} left"
    return text + (f", stopped at {wording.clock(drain.deadline_time)}" if drain.HasField("deadline_time") else "")


def _doing(agent: agents_pb2.Agent) -> str:
    runs = [f"{attempt.pipeline} {short(attempt.run_id)}" for attempt in agent.attempts]
    more = f" and {len(runs) - NAMED} more" if len(runs) > NAMED else ""
    named = f" ({', '.join(runs[:NAMED])}{more})" if runs else ""
    away = "" if agent.state == agents_pb2.AGENT_STATE_DRAINING else f"; it {agent.message}"
    return f"{left(agent.drain)}{named}{away}"
