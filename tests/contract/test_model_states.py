"""Agents, reaper, scheduler, callers, operators and a crashing control plane in any order.

What must never happen does not, and once nothing fails any more, everything ends. `MODEL_EXAMPLES` and `MODEL_STEPS` in
the environment go deeper than `make test` does. An example that failed is shown as the steps that lead there, each of
which does the same every time, and with a line that repeats it.
"""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from fastflow_controlplane.store.engine import Store
from fastflow_controlplane.store.models import metadata
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import Engine, text

from tests.contract.state_actions import Actions
from tests.contract.state_checks import open_rows

MEMORY = Path("/dev/shm")
"""Where the files are: what a power cut would take is not under test, and a busy disk takes a second per commit."""
EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "12"))
STEPS = int(os.environ.get("MODEL_STEPS", "40"))


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    with TemporaryDirectory(prefix="fastflow-model-", dir=MEMORY if MEMORY.is_dir() else tmp_path) as folder:
        yield Path(folder)


# What fails is made as short as it gets, for up to five minutes.
@pytest.mark.timeout(400 + EXAMPLES * STEPS / 4)
def test_whatever_happens_in_whatever_order_each_run_ends_once(database_url: str, tmp_path: Path) -> None:
    _make(database_url)
    looking = open_rows(database_url)

    def world() -> Actions:
        _clear(looking)
        return Actions(database_url, tmp_path, looking)

    try:
        run_state_machine_as_test(
            world,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                print_blob=True,
                report_multiple_bugs=False,
            ),
        )
    finally:
        looking.dispose()


def _make(url: str) -> None:
    store = Store(url)
    store.open()
    asyncio.run(store.close())


def _clear(database: Engine) -> None:
    """Leaves nothing of the example before."""
    with database.connect() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(text(f"DELETE FROM {table.name}"))
