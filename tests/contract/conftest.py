"""The databases that the store must behave the same on."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastflow_controlplane.store.engine import Store

DATABASES = {"sqlite": "sqlite:///{folder}/fastflow.db"}


@pytest.fixture(params=sorted(DATABASES))
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database, one per supported kind."""
    return DATABASES[request.param].format(folder=tmp_path)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    """An open store with the newest schema."""
    store = Store(database_url)
    store.open()
    await store.start()
    yield store
    await store.close()
