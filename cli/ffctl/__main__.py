"""The command line: `ffctl` without arguments tells what there is."""

import importlib
import io
import os
import sys
from typing import Any

import click
from click.exceptions import NoSuchCommand
from click.shell_completion import CompletionItem

from ffctl import failures
from ffctl.failures import Detached, Failure, ReaderLeft
from ffctl.options import server_option

DEBUG_VARIABLE = "FFCTL_DEBUG"
"""Lets a defect show its traceback."""

COMMANDS = {
    "run": ("run:command", "Runs a pipeline."),
    "runs": ("runs:group", "Lists, shows, repeats, compares, cancels and gives up runs."),
    "logs": ("logs:command", "Prints a run's output."),
    "pipelines": ("pipelines:group", "Lists, shows and validates pipelines."),
    "sources": ("sources:group", "Lists and shows sources of pipelines."),
    "sync": ("sources:sync_command", "Brings sources of pipelines up to date."),
    "agents": ("agents:group", "Lists, shows, drains and removes agents, the worker hosts."),
    "secrets": ("secrets:group", "Sets, lists and deletes secrets."),
    "up": ("up:command", "Starts a control plane and an agent on this machine."),
    "completion": ("completion:command", "Prints the completion script of a shell."),
}
"""Each command, its place under ffctl.commands, and what it does."""


class Commands(click.Group):
    """Loads a command's module when it is used: `ffctl --help` answers before gRPC could be loaded."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names in the order of a first day's work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Returns the command, or None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(f"ffctl.commands.{module}"), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command; an unknown name is answered with the nearest ones."""
        try:
            return super().resolve_command(ctx, args)
        except NoSuchCommand as error:
            # click looks among the commands that are loaded, and here none is.
            raise NoSuchCommand(error.command_name, possibilities=COMMANDS, ctx=ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the list of commands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, explanation) for name, (_, explanation) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[Any]]:
        """Offers the names of the commands without loading them."""
        offered = [
            CompletionItem(name, help=explanation)
            for name, (_, explanation) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return offered + click.Command.shell_complete(self, ctx, incomplete)


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="fast-flow", prog_name="ffctl", message="%(prog)s %(version)s")
@server_option
def ffctl() -> None:
    """Runs folders with a main.py: isolated, limited, observed, on any of your machines.

    \b
    Example: ffctl up                     (in one terminal)
             ffctl run hello --follow     (in another)

    \b
    Exit codes: 0 succeeded · 1 the run ended otherwise · 2 usage
                3 server unreachable · 4 refused by the server
                130 detached by Ctrl-C
    """


def main() -> None:
    """Runs the command line and exits."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that can not show a character gets a substitute instead of ending the command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # gRPC's core writes lines of its own kind to stderr; its errors are told as sentences (ffctl.connection).
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Runs one command and returns its exit code."""
    try:
        result = ffctl.main(arguments, prog_name="ffctl", standalone_mode=False)
        return result if isinstance(result, int) else failures.SUCCEEDED
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return failures.USAGE
    except (click.Abort, KeyboardInterrupt):
        return failures.DETACHED
    except ReaderLeft as left:
        _discard_stdout()
        return left.exit_code
    except Detached as detached:
        _tell([detached.message, *detached.details])
        return detached.exit_code
    except Failure as failure:
        _complain(failure.message, failure.details, failure.hint)
        return failure.exit_code
    except OSError as error:
        _complain(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
        return failures.RUN_FAILED
    except Exception as defect:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        _complain(
            f"this is a defect of ffctl: {type(defect).__name__}: {defect}",
            hint=f"Please report it; {DEBUG_VARIABLE}=1 shows where it is.",
        )
        return failures.RUN_FAILED


def _complain(message: str, details: list[str] | None = None, hint: str = "") -> None:
    from ffctl.output import complain  # loads rich

    complain(message, details or [], hint)


def _tell(lines: list[str]) -> None:
    from ffctl.output import say  # loads rich

    for line in lines:
        say(line)


def _discard_stdout() -> None:
    # Python flushes stdout once more at exit, and would complain about the closed pipe.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
