"""An agent that kills itself with SIGKILL at one place: `python -m … PLACE`, settings from the environment."""

import asyncio
import os
import signal
import sys

from fastflow.service.logging import configure_logging
from fastflow_agent.agent import run_agent
from fastflow_agent.attempts.dossier import Checkpoint
from fastflow_agent.settings import AgentSettings


async def _run(place: Checkpoint) -> None:
    def checkpoint(reached: Checkpoint) -> None:
        if reached is place:
            os.kill(os.getpid(), signal.SIGKILL)

    await run_agent(AgentSettings.load(), asyncio.Event(), checkpoint=checkpoint)


if __name__ == "__main__":
    configure_logging("info", human=False)
    asyncio.run(_run(Checkpoint(sys.argv[1])))
