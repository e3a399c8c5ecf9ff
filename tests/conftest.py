"""What all tests share."""

import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import HealthCheck, settings

from tests import trees

if TYPE_CHECKING:
    from tests.postgres import PostgresServer

# So that a failing scenario shows its values.
PACKAGES = "bench chaos cluster contract crash docker hosts integration origins postgres slots soak unit upgrade"
pytest.register_assert_rewrite(*(f"tests.{package}" for package in PACKAGES.split()))

# How long one example takes, or is made, says something of the machine's load, nothing of the code.
settings.register_profile("fastflow", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fastflow")

# Tracebacks with the values of all variables take seconds each, where a test has an agent meet its errors.
structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)

# A shell starts jobs in the background with Ctrl-C ignored, and the programs under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

BUILD = Path(__file__).resolve().parents[1] / "deploy" / "runner" / "build"
BUILD_SECONDS = 900.0


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Fails a test that leaves another set-up of logs behind: a program's own main belongs in a process of its own."""
    before = structlog.get_config()
    yield
    assert structlog.get_config() == before, "the test set up logs for all tests after it in this process"


@pytest.fixture(scope="session")
def runner_image() -> str:
    """Tag of the runner image, built if it was not there."""
    command = [sys.executable, str(BUILD)]
    subprocess.run(command, check=True, timeout=BUILD_SECONDS)
    return subprocess.run([*command, "--print-tag"], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="session")
def postgres() -> "Iterator[PostgresServer]":
    """A PostgreSQL server, one per test process."""
    from tests.postgres import PostgresServer

    with PostgresServer() as server:
        yield server


@pytest.fixture
def make_deep() -> Iterator[Callable[[Path], None]]:
    """See `trees.make_deep`. What a test leaves of it is deleted: pytest itself can not, and ends with an error."""
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        trees.make_deep(folder)

    yield make
    subprocess.run(["rm", "-rf", "--", *made], check=True)


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
