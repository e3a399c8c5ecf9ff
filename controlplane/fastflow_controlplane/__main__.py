"""`fastflow-controlplane`: the command line of the control plane."""

import asyncio
import signal
import sys

import click
import structlog
from fastflow.service.command import EXIT_CANNOT_START, SettingsCommand

from fastflow_controlplane.database import db
from fastflow_controlplane.settings import ControlPlaneSettings

log = structlog.get_logger(__name__)


@click.group()
@click.version_option(package_name="fast-flow", prog_name="fastflow-controlplane")
def main() -> None:
    """Fast-Flow's control plane: knows pipelines, queues runs, places them on agents."""


main.add_command(db)


@main.command(cls=SettingsCommand, settings=ControlPlaneSettings)
def serve(settings: ControlPlaneSettings) -> None:
    """Serve clients and agents until SIGTERM or Ctrl-C.

    Stopping the control plane stops no run: agents go on, and report when it is back.
    """
    # Here, since gRPC and SQLAlchemy take longer to import than --help may take.
    from fastflow_controlplane.errors import Deposed, FastFlowError

    try:
        asyncio.run(_serve(settings))
    except Deposed as error:
        log.error("the control plane ends", why=error.message)
        sys.exit(EXIT_CANNOT_START)
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
