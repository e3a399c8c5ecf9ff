"""What a local run says on stderr."""

from datetime import UTC, datetime

import pytest
from fastflow_agent.cgroups.stats import Usage
from fastflow_agent.facts import Ended, LogLossFound, SoftLimitCrossed
from fastflow_agent.local import screen
from fastflow_agent.local.screen import Screen
from fastflow_agent.model import Limits, Reason, State

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
LIMITS = Limits(1500, 128 << 20)


def test_a_success_is_one_short_line() -> None:
    ended = Ended(State.SUCCEEDED, message="not for this line", exit_code=0)
    assert screen.verdict("etl", ended, 1.234) == "local run of etl SUCCEEDED after 1.23 s"


def test_a_failure_tells_reason_exit_code_and_message() -> None:
    ended = Ended(State.FAILED, Reason.OOM_KILLED, "Killed by the kernel.", exit_code=137)
    words = "local run of etl FAILED (OOM_KILLED, exit code 137) after 2.00 s: Killed by the kernel."
    assert screen.verdict("etl", ended, 2.0) == words


def test_what_never_ran_took_no_time() -> None:
    ended = Ended(State.FAILED, Reason.IMAGE, "The image is not here.")
    assert screen.verdict("etl", ended, None) == "local run of etl FAILED (IMAGE): The image is not here."


def test_usage_is_told_beside_its_limits() -> None:
    used = Usage(peak_memory_bytes=64 << 20, cpu_usec=1_500_000, throttled_usec=0)
    told = "peak memory 64 MiB of 128 MiB, CPU time 1.50 s at most 1.5 cores, throttled 0.00 s"
    assert screen.usage(used, LIMITS) == told


def test_what_the_host_can_not_tell_is_unavailable_and_never_zero() -> None:
    assert screen.usage(None, LIMITS).count("unavailable") == 3


def test_a_soft_limit_is_told_when_it_is_crossed_and_when_that_is_over() -> None:
    begun = SoftLimitCrossed(1, "MEMORY", 64 << 20, 80 << 20, NOW)
    assert "warning: memory above its soft limit of 64 MiB, peak 80 MiB at" in screen.crossing(begun)
    over = SoftLimitCrossed(1, "CPU", 500, 1000, NOW, clear_time=NOW, seconds_above=3.0)
    assert screen.crossing(over) == "warning over: CPU was above its soft limit of 0.5 cores for 3.0 s, peak 1 core"


@pytest.mark.parametrize(("count", "said"), [(1024, "1 KiB lost"), (None, "output lost")])
def test_lost_output_is_told(count: int | None, said: str) -> None:
    assert f"warning: {said} at offset 7 (DROPPED): why" in screen.loss(LogLossFound("DROPPED", 7, NOW, count, "why"))


def test_what_is_said_can_not_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().say("pipeline \x1b[31mred\x9b")
    assert capsys.readouterr().err == "pipeline \ufffd[31mred\ufffd\n"
