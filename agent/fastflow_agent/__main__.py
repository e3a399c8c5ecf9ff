"""`fastflow-agent`: the command line of the agent."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import click
import structlog
from fastflow.service.command import EXIT_CANNOT_START, SettingsCommand

from fastflow_agent.settings import AgentSettings

log = structlog.get_logger(__name__)


@click.group()
@click.version_option(package_name="fast-flow", prog_name="fastflow-agent")
def main() -> None:
    """Fast-Flow's agent: runs pipelines on this host for a control plane."""


@main.command(cls=SettingsCommand, settings=AgentSettings)
def run(settings: AgentSettings) -> None:
    """Connect to the control plane and run what it assigns, until SIGTERM or Ctrl-C.

    Stopping the agent stops no run: containers go on, and the next agent on the same data folder takes them up again.
    """
    # Here, since gRPC and the Docker SDK take longer to import than --help may take.
    from fastflow_agent.identity import DataFolderInUse
    from fastflow_agent.journal import UnknownRecord
    from fastflow_agent.runtime.base import RuntimeFault

    try:
        asyncio.run(_run(settings))
    except (DataFolderInUse, UnknownRecord, RuntimeFault, OSError, ValueError) as error:
        log.error("the agent can not start", reason=str(error))
        sys.exit(EXIT_CANNOT_START)
    # Threads that wait for an engine that hangs would keep the process for minutes; nothing they do needs us.
    sys.stderr.flush()
    os._exit(0)


async def _run(settings: AgentSettings) -> None:
    from fastflow_agent.agent import run_agent

    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await run_agent(settings, stopping)


if __name__ == "__main__":
    main()
