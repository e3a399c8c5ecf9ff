"""One control plane owns a database, and one that lost it writes nothing more."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import psycopg
import pytest
from fastflow_controlplane.errors import Deposed, FailedPrecondition, Unavailable
from fastflow_controlplane.store.copies import back_up
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.ownership import ADVISORY_LOCK, SessionOwnership
from fastflow_controlplane.store.queries import requests
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from tests.contract.rows import NOW
from tests.postgres import PostgresServer


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    store = Store(url)
    try:
        store.open()
        await store.start()
        yield store
    finally:
        await store.close()


def note(name: str) -> Callable[[Connection], None]:
    """An operation whose effect `noted` finds."""
    return partial(requests.remember, kind="test", request_id=name, fingerprint="", answer_id=name, now=NOW)


async def noted(store: Store, name: str) -> bool:
    found = partial(requests.answered, kind="test", request_id=name, fingerprint="")
    return await store.read(found) is not None


async def test_a_second_control_plane_is_refused_until_the_first_has_gone(database_url: str) -> None:
    async with opened(database_url) as first:
        with pytest.raises(FailedPrecondition, match="another control plane") as refused:
            async with opened(database_url):
                pass
        assert refused.value.reason == "DATABASE_OWNED"
        assert "never-to-be-shown" not in refused.value.message
        await first.write(note("still the first's"))
    async with opened(database_url) as second:
        assert await noted(second, "still the first's")


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[str]:
    with postgres.database() as url:
        yield url


def end_sessions(postgres: PostgresServer, url: str) -> None:
    """Ends the sessions of whoever uses the database, as a restart of the server would."""
    name = url.rpartition("/")[2]
    postgres.execute(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'")


def take_lock(url: str, name: str) -> psycopg.Connection:
    connection = psycopg.connect(url, application_name=name, autocommit=True)
    assert connection.execute("SELECT pg_try_advisory_lock(%s)", [ADVISORY_LOCK]).fetchone() == (True,)
    return connection


async def test_one_whose_lock_another_took_writes_nothing_and_says_why(postgres: PostgresServer, url: str) -> None:
    async with opened(url) as store:
        await store.write(note("before"))
        end_sessions(postgres, url)
        with take_lock(url, "somebody else"):
            with pytest.raises(Unavailable, match=r'"somebody else".* uses the database at') as refused:
                await store.write(note("after"))
            assert "never-to-be-shown" not in refused.value.message
        with pytest.raises(Deposed):
            await asyncio.wait_for(store.until_deposed(), 5)
        with pytest.raises(Unavailable):
            await store.write(note("later"))
    async with opened(url) as next_one:
        assert [await noted(next_one, name) for name in ("before", "after", "later")] == [True, False, False]


async def test_one_that_was_away_while_another_led_writes_nothing(postgres: PostgresServer, url: str) -> None:
    async with opened(url) as store:
        await store.lead(NOW)
        end_sessions(postgres, url)
        async with opened(url) as other:
            await other.lead(NOW)
        with pytest.raises(Unavailable, match="what this one knows is out of date"):
            await store.write(note("stale"))
        with pytest.raises(Deposed):
            await asyncio.wait_for(store.until_deposed(), 5)


async def test_one_whose_database_went_back_in_time_writes_nothing(postgres: PostgresServer, url: str) -> None:
    name, old = url.rpartition("/")[2], f"{url.rpartition('/')[2]}_old"
    async with opened(url) as store:
        await store.lead(NOW)
        end_sessions(postgres, url)
        postgres.execute(f"CREATE DATABASE {old} TEMPLATE {name}")
        await store.write(note("acknowledged"))
        postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")
        postgres.execute(f"ALTER DATABASE {old} RENAME TO {name}")
        with pytest.raises(Unavailable, match="another copy of it was put in place"):
            await store.write(note("stale"))
        with pytest.raises(Deposed):
            await asyncio.wait_for(store.until_deposed(), 5)


async def test_one_whose_file_went_back_in_time_writes_nothing(tmp_path: Path) -> None:
    file, old = tmp_path / "fastflow.db", tmp_path / "old"

    def fail(connection: Connection) -> None:
        raise OperationalError("", None, sqlite3.OperationalError("disk I/O error"))

    async with opened(f"sqlite:///{file}") as store:
        await store.lead(NOW)
        back_up(f"sqlite:///{file}", old)
        await store.write(note("acknowledged"))
        for suffix in ("", "-wal", "-shm"):
            file.with_name(file.name + suffix).unlink()
        old.rename(file)
        with pytest.raises(Unavailable):
            await store.write(fail)
        with pytest.raises(Unavailable, match="another copy of it was put in place"):
            await store.write(note("stale"))
        with pytest.raises(Deposed):
            await asyncio.wait_for(store.until_deposed(), 5)


async def test_a_session_of_its_own_that_the_server_takes_for_alive_is_ended(
    postgres: PostgresServer, url: str
) -> None:
    async with opened(url) as store:
        assert isinstance(store._ownership, SessionOwnership)
        end_sessions(postgres, url)
        with take_lock(url, store._ownership.name) as left_over:
            await store.write(note("on"))
            with pytest.raises(psycopg.OperationalError):
                left_over.execute("SELECT 1")
        assert await noted(store, "on")
