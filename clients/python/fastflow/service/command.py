"""The command that starts a long-running program, with a help that explains every setting."""

from typing import Any

import click

from fastflow.service.settings import ServiceSettings


class SettingsCommand(click.Command):
    """A command whose help ends with all settings of the class `settings`: variable, kind, default and meaning."""

    def __init__(self, *arguments: Any, settings: type[ServiceSettings], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._settings = settings

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Adds the settings."""
        with formatter.section("Settings (environment, or the same names in lower case in the TOML file)"):
            for paragraph in self._settings.describe().split("\n\n"):
                head, _, meaning = paragraph.partition("\n")
                formatter.write_text(head)
                with formatter.indentation():
                    formatter.write_text(meaning.strip())
