"""The command line of a local run: reads what is asked for, and says what keeps it from being done."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import click
from fastflow.pipelines.environment import read_assignments, read_environment_file
from fastflow.pipelines.sizes import parse_size
from fastflow.service.settings import SettingsError
from fastflow.variables import without_effect

from fastflow_agent.identity import DataFolderInUse
from fastflow_agent.journal import UnknownRecord
from fastflow_agent.local.folder import default_cache
from fastflow_agent.local.plan import Refused, read_plan
from fastflow_agent.local.run import REFUSED, RUN_FAILED, UNREACHABLE, CanNotRun, run_local
from fastflow_agent.settings import AgentSettings

EXIT_USAGE = 2

WITHOUT_DOCKER = (
    "Without a container, `--runtime process` runs the folder as a plain process of this machine: it sees your files, "
    "your network and your other processes, and neither cpu_hard_limit nor mem_hard_limit is enforced."
)


def run_command(
    path: Path,
    *,
    variables: Sequence[str],
    secret_files: Sequence[Path],
    timeout: float | None,
    runtime: str | None,
    code_limit: str,
    cache: Path | None,
    config: Path | None,
) -> int:
    """Runs the folder `path`; returns the exit code, having said on stderr whatever there was to say."""
    for sentence in without_effect(os.environ):
        click.echo(f"warning: {sentence}", err=True)
    try:
        settings = AgentSettings.load(config)
        if runtime is not None:
            settings = settings.model_copy(update={"runtime": runtime})
        given = read_assignments(variables, os.environ)
        secrets = _read_secrets(secret_files)
        max_code_bytes = _read_limit(code_limit)
    except (SettingsError, ValueError) as error:
        return _complain(EXIT_USAGE, str(error))
    try:
        plan = read_plan(path, given, secrets, timeout, max_code_bytes)
        return asyncio.run(run_local(settings, plan, cache or default_cache()))
    except Refused as error:
        return _complain(REFUSED, str(error), *error.details)
    except CanNotRun as error:
        hint = [WITHOUT_DOCKER] if settings.runtime == "docker" else []
        return _complain(UNREACHABLE, str(error), *hint)
    except (DataFolderInUse, UnknownRecord, OSError, ValueError) as error:
        return _complain(RUN_FAILED, str(error))


def _read_secrets(files: Sequence[Path]) -> dict[str, str]:
    secrets: dict[str, str] = {}
    for file in files:
        try:
            secrets |= read_environment_file(file.read_bytes(), os.environ)
        except (OSError, ValueError) as error:
            raise ValueError(f"{file}: {error}") from None
    return secrets


def _read_limit(code_limit: str) -> int:
    try:
        return parse_size(code_limit)
    except ValueError as error:
        raise ValueError(f"--code-limit {code_limit!r} {error}") from None


def _complain(code: int, message: str, *details: str) -> int:
    click.echo(f"{click.style('local run:', fg='red', bold=True)} {message}", err=True)
    for detail in details:
        click.echo(f"  {detail}", err=True)
    return code
