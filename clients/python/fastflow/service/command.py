"""The command that starts a long-running program, with a help that explains every setting."""

import os
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import click
import structlog

from fastflow import variables
from fastflow.service import failpoints
from fastflow.service.logging import configure_logging
from fastflow.service.settings import ServiceSettings, SettingsError

log = structlog.get_logger(__name__)

EXIT_CANNOT_START = 1
EXIT_USAGE = 2


class SettingsCommand(click.Command):
    """A command whose function gets an object of the class `settings`, and whose help ends with all of them.

    Of one that needs few, `needs` names them: its help has these alone, and that of the command `all_in` is where the
    others are. It reads them, sets logging up as they say, and ends with EXIT_USAGE where they are wrong.
    """

    def __init__(
        self,
        *arguments: Any,
        settings: type[ServiceSettings],
        needs: Collection[str] = (),
        all_in: str = "",
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._settings = settings
        self._needs = needs
        self._all_in = all_in
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
        program, unused = context.find_root().info_name, variables.without_effect(os.environ)
        try:
            settings = self._settings.load(context.params.pop("config"))
            failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
        except (SettingsError, failpoints.UnknownFailPoint) as error:
            # It may be what is missed.
            _echo([f"{program}: {line}" for line in (str(error), *unused)])
            sys.exit(EXIT_USAGE)
        if context.params.pop("print_config"):
            _echo([f"{program}: {sentence}" for sentence in unused])
            click.echo(settings.print_config())
            return None
        configure_logging(settings.log_level)
        for sentence in unused:
            log.warning(sentence)
        # gRPC's core writes lines of its own kind to stderr, where ours are JSON; its errors reach us as exceptions.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        context.params["settings"] = settings
        return super().invoke(context)

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Adds the settings."""
        with formatter.section("Settings (environment, or the same names in lower case in the TOML file)"):
            for paragraph in self._settings.describe(self._needs).split("\n\n"):
                head, _, meaning = paragraph.partition("\n")
                formatter.write_text(head)
                with formatter.indentation():
                    formatter.write_text(meaning.strip())
            if self._needs:
                formatter.write_text(f"For the others see {self._all_in} --help")


def _echo(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line, err=True)
