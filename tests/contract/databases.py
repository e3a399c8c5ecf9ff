"""The databases that the store must behave the same on, and what tests do to them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path

import pytest
from fastflow_controlplane.store.connections import make_engine, parse_url
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.queries import requests
from sqlalchemy import Connection, text

from tests.contract.rows import NOW
from tests.postgres import PostgresServer

DATABASES = ("postgresql", "sqlite")


def empty_database(kind: str, request: pytest.FixtureRequest, folder: Path) -> AbstractContextManager[str]:
    """Gives the URL of a database of this kind without tables."""
    return _sqlite(folder) if kind == "sqlite" else _server(request).empty_database()


def database(kind: str, request: pytest.FixtureRequest, folder: Path) -> AbstractContextManager[str]:
    """Gives the URL of a database of this kind without rows."""
    return _sqlite(folder) if kind == "sqlite" else _server(request).database()


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    """An open store with the newest schema."""
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
    """Whether what `note` wrote by this name is there."""
    found = partial(requests.answered, kind="test", request_id=name, fingerprint="")
    return await store.read(found) is not None


def execute(url: str, *statements: str) -> list[object]:
    """Writes to a database behind the back of everybody, and returns what the last statement gives."""
    engine = make_engine(parse_url(url), "test", writing=True, size=1)
    with engine.begin() as connection:
        for statement in statements:
            result = connection.execute(text(statement))
        found = [row[0] for row in result] if result.returns_rows else []
    engine.dispose()
    return found


def end_sessions(postgres: PostgresServer, url: str) -> None:
    """Ends the sessions of whoever uses the database, as a restart of the server would."""
    name = url.rpartition("/")[2]
    postgres.execute(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'")


async def until(condition: Callable[[], bool]) -> None:
    """Waits for the server to be in a state that only asking it tells."""
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("waited in vain")


def _sqlite(folder: Path) -> AbstractContextManager[str]:
    return nullcontext(f"sqlite:///{folder}/fastflow.db")


def _server(request: pytest.FixtureRequest) -> PostgresServer:
    server: PostgresServer = request.getfixturevalue("postgres")
    return server
