"""`fastflow-agent`: the command line of the agent."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import click
import structlog
from fastflow.pipelines.code import CODE_LIMIT
from fastflow.service.command import EXIT_CANNOT_START, SettingsCommand
from fastflow.service.logging import configure_logging

from fastflow_agent.settings import AgentSettings

log = structlog.get_logger(__name__)


@click.group()
@click.version_option(package_name="fast-flow", prog_name="fastflow-agent")
def main() -> None:
    """Fast-Flow's agent: runs pipelines on this host for a control plane."""


@main.command(cls=SettingsCommand, settings=AgentSettings)
def run(settings: AgentSettings) -> None:
    """Connect to the control plane and run what it assigns.

    It goes on until SIGTERM or Ctrl-C. Stopping the agent stops no run: containers go on, and the next agent on the
    same data folder takes them up again.
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


@main.command(cls=SettingsCommand, settings=AgentSettings, needs=("log_level", "data_dir"), all_in="fastflow-agent run")
def confirm_logs(settings: AgentSettings) -> None:
    """Note which logs are whole, as the host shuts down.

    To be called once agent and Docker engine have stopped. The next agent then knows that the shutdown lost nothing of
    them, as it can not know after a power cut. Logs that somebody may still write to are left out, so it does no harm
    at a wrong time. Exits with 1 if nothing was noted.
    """
    from fastflow_agent.identity import DataFolderInUse, DataFolderLock, load_boot_id
    from fastflow_agent.logs import confirmed

    data_dir = settings.data_dir.absolute()
    try:
        lock = DataFolderLock(data_dir)
        confirmed.confirm_logs(data_dir, load_boot_id())
        lock.release()
    except (DataFolderInUse, OSError) as error:
        log.error("logs are not confirmed", reason=str(error))
        sys.exit(EXIT_CANNOT_START)


@main.command()
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--env", "-e", "variables", metavar="K=V", multiple=True, help="Environment variable; may be repeated.")
@click.option(
    "--env-file",
    "secret_files",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="File of lines K=V that are taken as secrets: masked in the output. --env goes before them.",
)
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds from release; goes before the metadata's.")
@click.option(
    "--runtime",
    type=click.Choice(["docker", "process"]),
    help='What runs it; "process" neither isolates nor limits.  [default: the setting, docker]',
)
@click.option(
    "--code-limit",
    metavar="SIZE",
    default=CODE_LIMIT,
    show_default=True,
    help="The most code that it may have, as code_limit on a control plane.",
)
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="FASTFLOW_LOCAL_CACHE",
    help="Folder of what makes the next start fast.  [default: ~/.cache/fastflow/local]",
)
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="TOML file with settings.")
@click.option("--verbose", is_flag=True, help="Show what the agent's parts do.")
def local(
    path: Path,
    variables: tuple[str, ...],
    secret_files: tuple[Path, ...],
    timeout: float | None,
    runtime: str | None,
    code_limit: str,
    cache: Path | None,
    config: Path | None,
    verbose: bool,
) -> None:
    """Run the pipeline in the folder PATH without a control plane.

    It runs here and now, as on an agent. Its output goes to stdout; warnings and the verdict go to stderr. Exits with 0
    if it succeeded, 1 if it ended otherwise, 2 for wrong usage, 3 if what runs pipelines can not be reached, 4 if the
    pipeline is refused.
    """
    # Nothing is there yet that Ctrl-C would have to stop.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from fastflow_agent.local.command import run_command

    configure_logging("info" if verbose else "error", human=True)
    code = run_command(
        path,
        variables=variables,
        secret_files=secret_files,
        timeout=timeout,
        runtime=runtime,
        code_limit=code_limit,
        cache=cache,
        config=config,
    )
    # Threads may still wait for an engine that hangs, or for a reader that does not read.
    sys.stderr.flush()
    os._exit(code)


async def _run(settings: AgentSettings) -> None:
    from fastflow_agent.agent import run_agent

    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await run_agent(settings, stopping)


if __name__ == "__main__":
    main()
