"""Logs for people."""

import subprocess
import sys

FAIL = """
import structlog
from fastflow.service.logging import configure_logging

configure_logging("info", human=True)

def use(secret):
    raise ValueError("it does not fit")

try:
    use("-".join(["correct", "horse"]))
except ValueError as error:
    structlog.get_logger().error("an error", exc_info=error)
"""


def test_a_traceback_on_a_terminal_shows_where_it_was_and_no_values() -> None:
    done = subprocess.run([sys.executable, "-c", FAIL], capture_output=True, text=True, timeout=60, check=True)
    assert "ValueError: it does not fit" in done.stderr
    assert "in use" in done.stderr
    assert "correct-horse" not in done.stderr
