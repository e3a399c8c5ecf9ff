"""`ffctl run --local`: becomes `fastflow-agent local`, which runs a folder on this machine as an agent would."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from click.core import ParameterSource
from fastflow.pipelines.code import CODE_LIMIT

from ffctl.failures import Failure
from ffctl.options import size

PROGRAM = "fastflow-agent"

_META = "ffctl.local"
_SHARED = frozenset({"pipeline", "environment", "following"})
"""Parameters of `ffctl run` that mean the same with --local; its output is always followed."""

Function = TypeVar("Function", bound=Callable[..., Any])


def local_options(command: Function) -> Function:
    """Adds `--local` and the options that go with it only. None is passed on: `instead` acts on them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def instead(context: click.Context, pipeline: str, environment: Sequence[str]) -> None:
    """Runs the folder `pipeline` in place of this process where --local was given, else returns.

    Raises click.UsageError for options that do not go together, Failure where the agent is not installed.
    """
    chosen: dict[str, Any] = context.meta.get(_META, {})
    if not chosen.pop("local", False):
        if chosen:
            raise click.UsageError(f"{_named(context, chosen)} goes with --local only")
        return
    given = {name for name in _names(context) if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    if alien := given - _SHARED - {"local", *chosen}:
        raise click.UsageError(f"--local needs no server and goes without {_named(context, alien)}")
    arguments = [f"--env={assignment}" for assignment in environment]
    for name, value in chosen.items():
        for item in value if isinstance(value, tuple) else (value,):
            arguments.append(f"--{name.replace('_', '-')}={item}")
    run_local(pipeline, arguments)


def run_local(path: str, arguments: Sequence[str]) -> NoReturn:
    """Runs the pipeline in the folder `path` in place of this process, so that its exit code and signals are ours.

    `arguments` are further ones of `fastflow-agent local`. Raises as `instead`.
    """
    if not Path(path).is_dir():
        raise click.UsageError(f'--local runs a folder, and "{path}" is none')
    environment = dict(os.environ)
    if "SSL_CERT_FILE" in environment:
        environment.setdefault("FASTFLOW_CA_BUNDLE", environment["SSL_CERT_FILE"])
    sys.stdout.flush()
    sys.stderr.flush()
    script = Path(sys.executable).parent / PROGRAM
    try:
        os.execve(script, [PROGRAM, "local", *arguments, "--", path], environment)
    except FileNotFoundError:
        raise Failure(
            f"{PROGRAM} is not installed beside {sys.executable}",
            hint='--local runs the folder on this machine; install what it needs: pip install "fast-flow[agent]"',
        ) from None


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    # 0 equals False, and was given.
    if value is not None and value is not False and value != ():
        context.meta.setdefault(_META, {})[parameter.name] = value


def _names(context: click.Context) -> list[str]:
    return [parameter.name for parameter in context.command.params if parameter.name]


def _named(context: click.Context, names: Any) -> str:
    """The options as they are typed, in the order of the help."""
    return ", ".join(parameter.opts[0] for parameter in context.command.params if parameter.name in names)


def _option(*declarations: str, **attributes: Any) -> Callable[[Function], Function]:
    return click.option(*declarations, callback=_keep, expose_value=False, **attributes)


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_OPTIONS = (
    _option(
        "--local",
        is_flag=True,
        help="Run the folder NAME on this machine, with no server: same container, limits and verdict.",
    ),
    _option(
        "--env-file",
        type=_FILE,
        multiple=True,
        help="With --local: file of lines K=V, taken as secrets and masked in the output; may be repeated.",
    ),
    _option(
        "--timeout",
        type=click.FloatRange(min=0),
        help="With --local: time limit in seconds, 0 = none, not the folder's.",
    ),
    _option(
        "--runtime",
        type=click.Choice(["docker", "process"]),
        help='With --local: "process" needs no Docker, and neither isolates nor limits.',
    ),
    _option(
        "--code-limit",
        type=size,
        metavar="SIZE",
        help=f"With --local: the most code that it may have, as code_limit on a server.  [default: {CODE_LIMIT}]",
    ),
    _option(
        "--cache",
        type=click.Path(file_okay=False, path_type=Path),
        help="With --local: folder that makes the next start fast.  [default: ~/.cache/fastflow/local]",
    ),
)
