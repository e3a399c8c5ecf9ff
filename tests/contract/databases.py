"""The databases that the store must behave the same on."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from tests.postgres import PostgresServer

DATABASES = ("postgresql", "sqlite")


def empty_database(request: pytest.FixtureRequest, folder: Path) -> AbstractContextManager[str]:
    """Gives the URL of a database without tables, of the kind that is `request`'s parameter."""
    return _sqlite(folder) if request.param == "sqlite" else _server(request).empty_database()


def database(request: pytest.FixtureRequest, folder: Path) -> AbstractContextManager[str]:
    """Gives the URL of a database without rows, of the kind that is `request`'s parameter."""
    return _sqlite(folder) if request.param == "sqlite" else _server(request).database()


def _sqlite(folder: Path) -> AbstractContextManager[str]:
    return nullcontext(f"sqlite:///{folder}/fastflow.db")


def _server(request: pytest.FixtureRequest) -> PostgresServer:
    server: PostgresServer = request.getfixturevalue("postgres")
    return server
