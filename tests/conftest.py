"""What all tests share."""

import signal
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.postgres import PostgresServer

# So that a failing scenario shows its values.
pytest.register_assert_rewrite("tests.cluster")

# How long one example takes says something of the machine's load, nothing of the code.
settings.register_profile("fastflow", deadline=None)
settings.load_profile("fastflow")

# A shell starts jobs in the background with Ctrl-C ignored, and the programs under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres() -> "Iterator[PostgresServer]":
    """A PostgreSQL server, one per test process."""
    from tests.postgres import PostgresServer

    with PostgresServer() as server:
        yield server


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows how the programs of a failed test fared."""
    from tests.cluster import Cluster

    report = yield
    if report.failed and isinstance(item, pytest.Function):
        for used in item.funcargs.values():
            if type(used) is Cluster:
                report.sections += [(program.describe(), program.tail()) for program in used.programs]
    return report
