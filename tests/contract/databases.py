"""The databases that the store must behave the same on."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from tests.postgres import PostgresServer

DATABASES = ("postgresql", "sqlite")


def empty_database(kind: str, request: pytest.FixtureRequest, folder: Path) -> AbstractContextManager[str]:
    """Gives the URL of a database of this kind without tables."""
    return _sqlite(folder) if kind == "sqlite" else _server(request).empty_database()


def database(kind: str, request: pytest.FixtureRequest, folder: Path) -> AbstractContextManager[str]:
    """Gives the URL of a database of this kind without rows."""
    return _sqlite(folder) if kind == "sqlite" else _server(request).database()


def _sqlite(folder: Path) -> AbstractContextManager[str]:
    return nullcontext(f"sqlite:///{folder}/fastflow.db")


def _server(request: pytest.FixtureRequest) -> PostgresServer:
    server: PostgresServer = request.getfixturevalue("postgres")
    return server
