"""What contract tests of the store begin with, once per kind of database."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fastflow_controlplane.store.engine import Store

from tests.contract.databases import DATABASES, database, empty_database, opened


@pytest.fixture(params=DATABASES)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database without tables."""
    with empty_database(request.param, request, tmp_path) as url:
        yield url


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database without rows."""
    with database(request.param, request, tmp_path) as url:
        yield url


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    """An open store with the newest schema."""
    async with opened(database_url) as store:
        yield store
