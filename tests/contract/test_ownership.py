"""One control plane owns a database, and one that lost it writes nothing more."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from fastflow_controlplane.errors import Deposed, FailedPrecondition, Unavailable
from fastflow_controlplane.store.copies import back_up
from fastflow_controlplane.store.engine import READERS
from fastflow_controlplane.store.ownership import ADVISORY_LOCK, SessionOwnership

from tests.contract.databases import end_sessions, note, noted, opened
from tests.contract.rows import NOW
from tests.postgres import PostgresServer


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
            await asyncio.wait_for(store.until_deposed(), 60)
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
            await asyncio.wait_for(store.until_deposed(), 60)


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
            await asyncio.wait_for(store.until_deposed(), 60)


async def test_one_whose_file_went_back_in_time_writes_nothing(tmp_path: Path) -> None:
    file, old = tmp_path / "fastflow.db", tmp_path / "old"
    async with opened(f"sqlite:///{file}") as store:
        await store.lead(NOW)
        back_up(f"sqlite:///{file}", old)
        await store.write(note("acknowledged"))
        for suffix in ("", "-wal", "-shm"):
            file.with_name(file.name + suffix).unlink()
        old.rename(file)
        with pytest.raises(Unavailable, match="another copy of it was put in place"):
            await store.write(note("stale"))
        with pytest.raises(Deposed):
            await asyncio.wait_for(store.until_deposed(), 60)


async def test_one_whose_file_is_taken_away_stores_nothing_until_it_is_back_and_makes_no_new_one(
    tmp_path: Path,
) -> None:
    folder, aside = tmp_path / "data", tmp_path / "aside"
    file = folder / "fastflow.db"
    async with opened(f"sqlite:///{file}") as store:
        await store.lead(NOW)
        await store.write(note("before"))
        folder.rename(aside)
        folder.mkdir()
        with pytest.raises(Unavailable, match=r"is not there any more: put the file back") as refused:
            await store.write(note("meanwhile"))
        assert refused.value.reason == "DATABASE_UNAVAILABLE"
        assert str(file) in refused.value.message
        with suppress(Unavailable):
            await asyncio.gather(*(store.read(lambda connection: None) for _ in range(2 * READERS)))
        await store.recheck()
        assert store.problem is not None
        assert list(folder.iterdir()) == []
        folder.rmdir()
        aside.rename(folder)
        await store.recheck()
        assert store.problem is None
        await store.write(note("after"))
        assert [await noted(store, name) for name in ("before", "meanwhile", "after")] == [True, False, True]


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
