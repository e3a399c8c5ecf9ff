"""`fastflow-controlplane`: the command line of the control plane."""

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

from fastflow_controlplane.settings import ControlPlaneSettings

log = structlog.get_logger(__name__)

EXIT_CANNOT_START = 1
EXIT_USAGE = 2


@click.group()
@click.version_option(package_name="fast-flow", prog_name="fastflow-controlplane")
def main() -> None:
    """Fast-Flow's control plane: knows pipelines, queues runs, places them on agents."""


@main.command(cls=SettingsCommand, settings=ControlPlaneSettings)
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file with settings; FASTFLOW_CONFIG names it too. The environment goes before it.",
)
@click.option("--print-config", is_flag=True, help="Print the settings in force as TOML, and exit.")
def serve(config: Path | None, print_config: bool) -> None:
    """Serve clients and agents until SIGTERM or Ctrl-C.

    Stopping the control plane stops no run: agents go on, and report when it is back.
    """
    try:
        settings = ControlPlaneSettings.load(config)
    except SettingsError as error:
        click.echo(f"fastflow-controlplane: {error}", err=True)
        sys.exit(EXIT_USAGE)
    if print_config:
        click.echo(settings.print_config())
        return
    configure_logging(settings.log_level)
    # gRPC's core writes lines of its own kind to stderr, where ours are JSON; its errors reach us as exceptions.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Here, since gRPC and SQLAlchemy take longer to import than --help may take.
    from fastflow_controlplane.errors import FastFlowError

    try:
        asyncio.run(_serve(settings))
    except (FastFlowError, OSError) as error:
        log.error("the control plane can not start", why=str(error))
        sys.exit(EXIT_CANNOT_START)


async def _serve(settings: ControlPlaneSettings) -> None:
    from fastflow_controlplane import server

    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await server.serve(settings, stopping)


if __name__ == "__main__":
    main()
