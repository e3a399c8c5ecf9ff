"""`fastflow-agent`: the command line of the agent."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import click
import structlog
from fastflow.service.command import SettingsCommand
from fastflow.service.logging import configure_logging
from fastflow.service.settings import SettingsError

from fastflow_agent.settings import AgentSettings

log = structlog.get_logger(__name__)

EXIT_CANNOT_START = 1
EXIT_USAGE = 2


@click.group()
@click.version_option(package_name="fast-flow", prog_name="fastflow-agent")
def main() -> None:
    """Fast-Flow's agent: runs pipelines on this host for a control plane."""


@main.command(cls=SettingsCommand, settings=AgentSettings)
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file with settings; FASTFLOW_CONFIG names it too. The environment goes before it.",
)
@click.option("--print-config", is_flag=True, help="Print the settings in force as TOML, and exit.")
def run(config: Path | None, print_config: bool) -> None:
    """Connect to the control plane and run what it assigns, until SIGTERM or Ctrl-C.

    Stopping the agent stops no run: containers go on, and the next agent on the same data folder takes them up again.
    """
    try:
        settings = AgentSettings.load(config)
    except SettingsError as error:
        click.echo(f"fastflow-agent: {error}", err=True)
        sys.exit(EXIT_USAGE)
    if print_config:
        click.echo(settings.print_config())
        return
    configure_logging(settings.log_level)
    # gRPC's core writes lines of its own kind to stderr, where ours are JSON; its errors reach us as exceptions.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
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
