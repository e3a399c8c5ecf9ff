"""A PostgreSQL server that is restarted, freezes, or goes away in the middle of a commit."""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from fastflow_controlplane.errors import Unavailable
from fastflow_controlplane.store import engine, writer
from fastflow_controlplane.store.engine import Store
from sqlalchemy import Connection, text

from tests.contract.databases import end_sessions, note, noted, opened, until
from tests.postgres import PostgresServer


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[str]:
    with postgres.database() as url:
        yield url


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    async with opened(url) as store:
        yield store


async def until_well(store: Store) -> None:
    """Looks after the store as the control plane does, until it can be used."""
    for _ in range(600):
        await store.recheck()
        if store.problem is None:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"still {store.problem}")


async def test_a_restart_while_nobody_asks_is_not_noticed(postgres: PostgresServer, store: Store) -> None:
    await store.write(note("before"))
    assert await noted(store, "before")
    postgres.kill()
    postgres.start()
    assert await noted(store, "before")
    await store.write(note("after"))
    assert await noted(store, "after")
    assert store.problem is None


async def test_while_it_is_away_nothing_is_acknowledged_and_its_return_is_noticed(
    postgres: PostgresServer, store: Store
) -> None:
    postgres.kill()
    for use in (store.write(note("a")), noted(store, "a")):
        with pytest.raises(Unavailable, match="see that the server runs") as away:
            await use
        assert "never-to-be-shown" not in away.value.message
        assert away.value.reason == "DATABASE_UNAVAILABLE"
    await store.recheck()
    assert store.problem is not None
    postgres.start()
    await until_well(store)
    assert not await noted(store, "a")


async def test_it_is_missed_though_nobody_asks_for_anything(postgres: PostgresServer, store: Store) -> None:
    await store.write(note("before"))
    await store.recheck()
    assert store.problem is None
    postgres.kill()
    try:
        await store.recheck()
        assert store.problem is not None
    finally:
        postgres.start()
    await until_well(store)


async def test_one_that_gives_no_answer_is_given_up_on(
    postgres: PostgresServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.write(note("before"))
    await noted(store, "before")
    postgres.freeze()
    # Only now: a server that answers may take as long on a busy machine.
    monkeypatch.setattr(writer, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(writer, "STALLED_SECONDS", 0.1)
    monkeypatch.setattr(engine, "READ_SECONDS", 0.3)
    try:
        uses = [store.write(note("a")), noted(store, "a"), store.write(note("b"))]
        async with asyncio.timeout(60):
            answers = await asyncio.gather(*uses, return_exceptions=True)
        assert [type(answer) for answer in answers] == [Unavailable] * 3
        assert store.problem is not None
        assert "gives no answer" in store.problem.message
    finally:
        monkeypatch.undo()
        postgres.resume()
    await until_well(store)
    assert [await noted(store, name) for name in ("before", "a", "b")] == [True, False, False]


async def test_reads_whose_callers_have_gone_are_given_up_on_too(
    postgres: PostgresServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking: list[None] = []

    def ask(connection: Connection) -> None:
        asking.append(None)
        connection.execute(text("SELECT 1"))

    await asyncio.gather(*(store.read(ask) for _ in range(engine.READERS)))
    asking.clear()
    postgres.freeze()
    monkeypatch.setattr(engine, "READ_SECONDS", 0.3)
    try:
        reads = [asyncio.create_task(store.read(ask)) for _ in range(engine.READERS)]
        await until(lambda: len(asking) == engine.READERS)
        for read in reads:
            read.cancel()
        await asyncio.gather(*reads, return_exceptions=True)
        async with asyncio.timeout(60):
            await asyncio.get_running_loop().run_in_executor(store._readers, int)
    finally:
        monkeypatch.undo()
        postgres.resume()
    assert await store.read(lambda connection: connection.execute(text("SELECT 1")).scalar()) == 1


async def test_a_server_that_gives_no_answer_does_not_hold_up_all_that_goes_on_at_the_end(
    postgres: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(url)
    store.open()
    await store.start()
    asking: list[None] = []

    def ask(connection: Connection) -> None:
        asking.append(None)
        connection.execute(text("SELECT 1"))

    await store.read(ask)
    postgres.freeze()
    monkeypatch.setattr(engine, "READ_SECONDS", 0.3)
    # Who waits for it with all the rest of the process would do so for ever.
    relief = threading.Timer(60, postgres.resume)
    relief.start()
    try:
        reading = asyncio.create_task(store.read(ask))
        await until(lambda: len(asking) == 2)
        reading.cancel()
        await store.close()
        assert relief.is_alive()
    finally:
        relief.cancel()
        postgres.resume()


async def test_either_side_notices_within_half_a_minute_that_the_other_takes_nothing_any_more(store: Store) -> None:
    def look(connection: Connection) -> tuple[str, int]:
        servers = connection.execute(text("SHOW tcp_user_timeout")).scalar_one()
        driver: Any = connection.connection.driver_connection
        with socket.socket(fileno=os.dup(driver.fileno())) as end:
            return servers, end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)

    assert await store.write(look) == ("25000", 25_000)
    assert await store.read(look) == ("25000", 25_000)


async def test_what_was_committed_though_the_answer_was_lost_is_acknowledged_once_that_is_known(
    postgres: PostgresServer, store: Store, url: str
) -> None:
    heard: list[None] = []
    # A commit waits for a standby that never comes: it is done, but is not answered.
    postgres.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    postgres.execute("SELECT pg_reload_conf()")
    try:
        committing = asyncio.create_task(store.write(note("committed"), heard.append))
        name = url.rpartition("/")[2]
        waits = f"SELECT 1 FROM pg_stat_activity WHERE datname = '{name}' AND wait_event = 'SyncRep'"
        await until(lambda: bool(postgres.execute(waits)))
        end_sessions(postgres, url)
        await until(lambda: store.problem is not None)
        assert not committing.done()
        assert heard == []
    finally:
        postgres.execute("ALTER SYSTEM RESET synchronous_standby_names")
        postgres.execute("SELECT pg_reload_conf()")
    await until_well(store)
    await asyncio.wait_for(committing, 60)
    assert heard == [None]
    assert await noted(store, "committed")


async def test_what_went_down_with_its_commit_is_refused_once_that_is_known(
    postgres: PostgresServer, store: Store, url: str
) -> None:
    heard: list[None] = []
    ends = "BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END"
    postgres.execute(f"CREATE FUNCTION end_session() RETURNS trigger LANGUAGE plpgsql AS '{ends}'", url)
    trigger = "CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON requests DEFERRABLE INITIALLY DEFERRED"
    postgres.execute(f"{trigger} FOR EACH ROW EXECUTE FUNCTION end_session()", url)
    try:
        committing = asyncio.create_task(store.write(note("lost"), heard.append))
        await until(lambda: store.problem is not None)
        assert not committing.done()
    finally:
        postgres.execute("DROP FUNCTION end_session CASCADE", url)
    await until_well(store)
    with pytest.raises(Unavailable, match="went away before this was stored: try again"):
        await committing
    assert heard == []
    assert not await noted(store, "lost")
    assert store.writer.link.doubt is None


async def test_what_a_crash_of_the_server_took_with_its_commit_is_refused_though_another_gets_its_number(
    postgres: PostgresServer, store: Store, url: str
) -> None:
    heard: list[None] = []
    await store.write(note("before"))
    waits = "BEGIN PERFORM pg_sleep(60); RETURN NULL; END"
    postgres.execute(f"CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS '{waits}'", url)
    trigger = "CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON requests DEFERRABLE INITIALLY DEFERRED"
    postgres.execute(f"{trigger} FOR EACH ROW EXECUTE FUNCTION wait()", url)
    # So that all of this but the commit is in the log that the crash leaves.
    postgres.execute("CHECKPOINT")
    committing = asyncio.create_task(store.write(note("lost"), heard.append))
    asleep = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    await until(lambda: bool(postgres.execute(asleep)))
    postgres.kill()
    try:
        await until(lambda: store.problem is not None)
        assert not committing.done()
    finally:
        postgres.start()
        # Its transaction gets a number that was given before: what was not flushed to the log, the server forgot.
        postgres.execute("DROP FUNCTION wait CASCADE", url)
    await until_well(store)
    with pytest.raises(Unavailable, match="went away before this was stored: try again"):
        await committing
    assert heard == []
    assert [await noted(store, name) for name in ("before", "lost")] == [True, False]
