"""Options and arguments that many commands share, and the completion of names by asking the server."""

import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem
from fastflow.pipelines.sizes import parse_size

from ffctl.address import DEFAULT_SERVER, SERVER_VARIABLE, default_server, token, with_port

_META_SERVER = "ffctl.server"

Function = TypeVar("Function", bound=Callable[..., Any])


def server_option(command: Function) -> Function:
    """Adds `--server`. It is accepted before and after the command's name; the innermost wins."""
    return click.option(
        "--server",
        metavar="HOST:PORT",
        callback=_keep_server,
        expose_value=False,
        help=f"Control plane to talk to.  [env: {SERVER_VARIABLE}; default: {DEFAULT_SERVER}]",
    )(command)


def output_option(command: Function) -> Function:
    """Adds `-o table|json`, passed as `as_json`."""
    return click.option(
        "-o",
        "--output",
        "as_json",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        callback=lambda _context, _parameter, value: value == "json",
        help="For people, or for programs (protobuf JSON).",
    )(command)


def server(context: click.Context) -> str:
    """Returns the control plane's address, "host:port"."""
    given = context.meta.get(_META_SERVER)
    return with_port(str(given)) if given else default_server()


_SPAN_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def span(text: str) -> float:
    """Returns a time such as "30s", "10m", "1.5h" or "2d" in seconds, which a bare number is; the type of an option.

    Raises click.BadParameter.
    """
    matched = re.fullmatch(r"(\d+(?:\.\d+)?) ?([smhd]?)", text)
    if matched is None:
        raise click.BadParameter(f"{text!r} is no time, for example 30s, 10m, 1.5h or 2d")
    return float(matched[1]) * _SPAN_UNITS[matched[2]]


def size(text: str) -> int:
    """Returns a size such as "512m" or "1.5g" in bytes, which a bare number is; the type of an option.

    Raises click.BadParameter.
    """
    try:
        return parse_size(text)
    except ValueError as fault:
        raise click.BadParameter(f"{text!r} {fault}") from None


def yes_option(command: Function) -> Function:
    """Adds `--yes`, passed as `yes`; see `confirm`."""
    return click.option("-y", "--yes", is_flag=True, help="Do not ask.")(command)


def confirm(question: str, *, yes: bool) -> None:
    """Returns where a person says yes, or said so with --yes; where nobody can be asked, --yes is needed.

    Raises click.Abort after a no, and click.UsageError.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.UsageError(f"{question} Say so with --yes: there is no terminal to ask on.")
    click.confirm(question, abort=True, err=True)


def run_argument(command: Function) -> Function:
    """Adds the argument RUN, passed as `run`: a whole run id or its last 8 or more digits."""
    return click.argument("run", shell_complete=complete_run)(command)


def complete_run(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Offers the newest runs' short ids."""
    return _complete("runs", context, incomplete)


def complete_pipeline(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Offers the names of the pipelines there are."""
    return _complete("pipelines", context, incomplete)


def complete_agent(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Offers the names of the agents there are."""
    return _complete("agents", context, incomplete)


def complete_secret(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Offers the names of the secrets there are."""
    return _complete("secrets", context, incomplete)


def complete_source(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Offers the names of the sources there are."""
    return _complete("sources", context, incomplete)


def _complete(kind: str, context: click.Context, incomplete: str) -> list[CompletionItem[str]]:
    from ffctl.completion import names  # loads gRPC, which a command line without completion of names does not need

    try:
        address = server(context)
    except click.UsageError:
        return []
    return [
        CompletionItem(name, help=explanation)
        for name, explanation in names(kind, address, token())
        if name.startswith(incomplete)
    ]


def _keep_server(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value:
        context.meta[_META_SERVER] = value
