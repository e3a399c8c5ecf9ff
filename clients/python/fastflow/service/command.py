"""The command that starts a long-running program, with a help that explains every setting."""

import os
import sys
from pathlib import Path
from typing import Any

import click

from fastflow.service import failpoints
from fastflow.service.logging import configure_logging
from fastflow.service.settings import ServiceSettings, SettingsError

EXIT_CANNOT_START = 1
EXIT_USAGE = 2


class SettingsCommand(click.Command):
    """A command whose function gets an object of the class `settings`, and whose help ends with all of them.

    It reads them, sets logging up as they say, and ends with EXIT_USAGE where they are wrong.
    """

    def __init__(self, *arguments: Any, settings: type[ServiceSettings], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._settings = settings
        self.params += [
            click.Option(
                ["--config"],
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                help="TOML file with settings; FASTFLOW_CONFIG names it too. The environment goes before it.",
            ),
            click.Option(["--print-config"], is_flag=True, help="Print the settings in force as TOML, and exit."),
        ]

    def invoke(self, context: click.Context) -> Any:
        """Calls the function with the settings in force."""
        try:
            settings = self._settings.load(context.params.pop("config"))
            failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
        except (SettingsError, failpoints.UnknownFailPoint) as error:
            click.echo(f"{context.find_root().info_name}: {error}", err=True)
            sys.exit(EXIT_USAGE)
        if context.params.pop("print_config"):
            click.echo(settings.print_config())
            return None
        configure_logging(settings.log_level)
        # gRPC's core writes lines of its own kind to stderr, where ours are JSON; its errors reach us as exceptions.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        context.params["settings"] = settings
        return super().invoke(context)

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Adds the settings."""
        with formatter.section("Settings (environment, or the same names in lower case in the TOML file)"):
            for paragraph in self._settings.describe().split("\n\n"):
                head, _, meaning = paragraph.partition("\n")
                formatter.write_text(head)
                with formatter.indentation():
                    formatter.write_text(meaning.strip())
