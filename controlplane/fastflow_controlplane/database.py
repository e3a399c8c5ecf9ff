"""`fastflow-controlplane db`: looks after the database while no control plane has to."""

import asyncio
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from fastflow.service.command import EXIT_CANNOT_START, SettingsCommand

from fastflow_controlplane.settings import ControlPlaneSettings

SETTINGS: Mapping[str, Any] = {
    "settings": ControlPlaneSettings,
    "needs": ("log_level", "data_dir", "database_url"),
    "all_in": "fastflow-controlplane serve",
}
FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def db() -> None:
    """Upgrade, check, back up and restore the database."""


@db.command(cls=SettingsCommand, **SETTINGS)
def upgrade(settings: ControlPlaneSettings) -> None:
    """Bring the database to this version's schema.

    A start does the same; this is for doing it before, and seeing that it works. There is no way back but a backup.
    """
    with _told():
        from fastflow_controlplane.store.engine import Store
        from fastflow_controlplane.store.migrations import HEAD

        store = Store(settings.database)
        store.open()
        asyncio.run(store.close())
        click.echo(f"the database has schema {HEAD}, as this version needs it")


@db.command(cls=SettingsCommand, **SETTINGS)
def check(settings: ControlPlaneSettings) -> None:
    """Look whether the database is whole.

    Also while a control plane uses it. Checks the schema's version, the database's own structure, whether runs and
    attempts agree, and whether each complete log is there. Ends with 1 where something is wrong, and says what to do.
    """
    with _told():
        from fastflow_controlplane.logs.files import log_file
        from fastflow_controlplane.store.checks import check as look

        def log_size(run_id: str, attempt: int) -> int:
            try:
                return log_file(settings.data_dir / "logs", run_id, attempt).stat().st_size
            except FileNotFoundError:
                return 0

        what, faults = look(settings.database, log_size)
        for fault in faults:
            click.echo(fault, err=True)
        click.echo(f"{what}: {len(faults) or 'no'} fault{'s' if len(faults) != 1 else ''}")
        if faults:
            sys.exit(EXIT_CANNOT_START)


@db.command(cls=SettingsCommand, **SETTINGS)
@click.argument("file", type=FILE)
def backup(settings: ControlPlaneSettings, file: Path) -> None:
    """Write a copy of the database to FILE.

    It is the database as it is at one moment, also while a control plane uses it. PostgreSQL needs its program pg_dump
    here. Logs, bundles and the key of the secrets are not in it: copy data_dir.
    """
    with _told():
        from fastflow_controlplane.store.copies import back_up

        back_up(settings.database, file)
        click.echo(f"{file}: {file.stat().st_size} bytes; secrets in it open with {settings.data_dir / 'secret.key'}")


@db.command(cls=SettingsCommand, **SETTINGS)
@click.argument("file", type=FILE)
@click.option("--force", is_flag=True, help="Replace the database that is there; it is kept aside.")
def restore(settings: ControlPlaneSettings, file: Path, force: bool) -> None:
    """Put the copy FILE in the place of the database.

    No control plane may use it. What happened after the copy was made is unknown to it. Agents that have seen more keep
    what they run, start and stop nothing, and are in quarantine at `ffctl agents list`.
    """
    with _told():
        from fastflow_controlplane.store.copies import restore as put_back

        kept = put_back(settings.database, file, replace=force)
        click.echo(f"{file} is in place" + (f"; the former database is kept as {kept}" if kept else ""))


@contextmanager
def _told() -> Iterator[None]:
    """Says what went wrong as one sentence."""
    from fastflow_controlplane.errors import FastFlowError

    try:
        yield
    except (FastFlowError, OSError) as error:
        click.echo(f"fastflow-controlplane: {error}", err=True)
        sys.exit(EXIT_CANNOT_START)
