"""What holds for SQLite alone."""

import asyncio
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from fastflow_controlplane.conditions import Problem
from fastflow_controlplane.errors import FailedPrecondition, FastFlowError, InvalidArgument, Unavailable
from fastflow_controlplane.store import connections, migrations, writer
from fastflow_controlplane.store.connections import parse_url
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.models import requests
from sqlalchemy import Connection, insert, text


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "fastflow.db"


@pytest.fixture
async def store(file: Path) -> AsyncIterator[Store]:
    store = Store(f"sqlite:///{file}")
    store.open()
    await store.start()
    yield store
    await store.close()


def add(connection: Connection, name: str) -> None:
    connection.execute(
        insert(requests).values(kind="test", request_id=name, fingerprint="", answer_id="x" * 200, create_time=0)
    )


def fill(connection: Connection) -> None:
    for n in range(1000):
        add(connection, f"filling {n}")


def overfill(connection: Connection) -> None:
    """Fills the database on a connection that lets it have few pages."""
    connection.execute(text("PRAGMA max_page_count = 40"))
    fill(connection)


def count(connection: Connection) -> int:
    return int(connection.execute(text("SELECT count(*) FROM requests")).scalar_one())


async def test_what_is_acknowledged_is_synced_to_disk(store: Store) -> None:
    def pragmas(connection: Connection) -> tuple[object, ...]:
        return tuple(connection.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous"))

    full = 2
    assert await store.write(pragmas) == ("wal", full)


async def test_readers_can_not_write(store: Store) -> None:
    with pytest.raises(Unavailable, match="readonly"):
        await store.read(lambda connection: add(connection, "x"))


async def test_a_full_disk_is_named_acknowledges_nothing_and_heals_by_itself(store: Store, file: Path) -> None:
    await store.write(lambda connection: add(connection, "before"))
    with pytest.raises(Unavailable, match=f"the disk that holds {file} is full") as caught:
        await store.write(overfill)
    assert caught.value.reason == "DISK_FULL"
    assert store.writer.problem == Problem("DISK_FULL", caught.value.message)

    await store.write(fill)  # on a connection without the bound

    assert store.writer.problem is None
    assert await store.read(count) == 1001


async def test_a_commit_that_came_late_explains_no_later_failure(
    store: Store, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, going_on = threading.Event(), threading.Event()

    def stall(connection: Connection) -> None:
        begun.set()
        going_on.wait(60)
        add(connection, "late")

    with monkeypatch.context() as hasty:
        hasty.setattr(writer, "STALL_SECONDS", 0.05)
        writing = asyncio.create_task(store.write(stall))
        await asyncio.to_thread(begun.wait)
        with pytest.raises(Unavailable, match="gives no answer"):
            await store.write(count)
    going_on.set()
    await writing
    assert store.problem is None
    with pytest.raises(Unavailable) as caught:
        await store.write(overfill)
    assert caught.value.reason == "DISK_FULL"


async def test_a_database_that_another_program_holds_locked_is_named_and_used_again_once_it_is_free(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LOCK_SECONDS", 0)
    store = Store(f"sqlite:///{file}")
    store.open()
    await store.start()
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Unavailable, match=f"{file} is locked by another program: end what has it open"):
            await store.write(lambda connection: add(connection, "refused"))
        await store.recheck()
        assert store.problem is not None
        assert await store.read(count) == 0
        other.execute("COMMIT")
    await store.recheck()
    assert store.problem is None
    await store.write(lambda connection: add(connection, "taken"))
    assert await store.read(count) == 1
    await store.close()


def test_the_newest_revision_is_known_without_alembic() -> None:
    from alembic.script import ScriptDirectory

    assert ScriptDirectory(str(migrations.SCRIPTS)).get_current_head() == migrations.HEAD


def test_a_database_of_a_newer_version_is_refused(file: Path) -> None:
    file.parent.mkdir()
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        connection.execute("INSERT INTO alembic_version VALUES ('9999')")
    connection.close()
    with pytest.raises(FailedPrecondition, match="written by a newer version"):
        Store(f"sqlite:///{file}").open()


def test_other_databases_are_refused_by_name() -> None:
    with pytest.raises(InvalidArgument, match="mysql"):
        parse_url("mysql://host/name")
    with pytest.raises(InvalidArgument, match="names no file"):
        parse_url("sqlite://")
    with pytest.raises(InvalidArgument, match="no database URL"):
        parse_url("fastflow.db")


def test_a_database_whose_driver_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(FailedPrecondition, match="psycopg"):
        Store("postgresql://user@host/fastflow")


def test_no_message_shows_a_password() -> None:
    for url in ("postgres//user:hunter2@host", "mysql://user:hunter2@host/name"):
        with pytest.raises(FastFlowError) as refused:
            Store(url)
        assert "hunter2" not in refused.value.message
