"""Fail points: harmless until armed, exact when armed, loud when misspelt."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fastflow.service import failpoints
from fastflow.service.failpoints import CATALOGUE, VARIABLE, AgentPoint, UnknownFailPoint, arm, mark, reach

from tests.cluster.program import BIN

POINT = AgentPoint.CREATED
PASS_FIVE_TIMES = f"""
from fastflow.service.failpoints import VARIABLE, AgentPoint, arm, reach
import os
arm(os.environ.get(VARIABLE, ""))
for number in range(1, 6):
    reach(AgentPoint.{POINT.name})
    print(number, flush=True)
"""
SECONDS = 60.0


def pass_five_times(words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PASS_FIVE_TIMES],
        env={**os.environ, VARIABLE: words},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_point_that_is_not_armed_is_passed_in_silence() -> None:
    reach(POINT)
    with pass_five_times(f"{AgentPoint.BOUND}=kill") as process:
        assert process.communicate(timeout=SECONDS) == ("1\n2\n3\n4\n5\n", "")
    assert process.returncode == 0


def test_a_process_is_killed_at_the_passing_that_is_named_and_says_where() -> None:
    with pass_five_times(f"{POINT}=kill@3") as process:
        assert process.communicate(timeout=SECONDS) == ("1\n2\n", f"{mark(POINT)}\n")
    assert process.returncode == -signal.SIGKILL


def test_a_process_is_frozen_until_it_is_told_to_go_on() -> None:
    with pass_five_times(f"{POINT}=freeze@2") as process:
        deadline = time.monotonic() + SECONDS
        while _state(process.pid) != "T":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=SECONDS) == ("1\n2\n3\n4\n5\n", f"{mark(POINT)}\n")
    assert process.returncode == 0


def test_a_point_is_armed_by_a_file_while_the_process_runs(tmp_path: Path) -> None:
    words = tmp_path / "points"
    ask_before_each = PASS_FIVE_TIMES.replace("    reach", "    input()\n    reach")
    with subprocess.Popen(
        [sys.executable, "-c", ask_before_each],
        env={**os.environ, VARIABLE: f"@{words}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in ("1\n", "2\n"):
            print(file=process.stdin, flush=True)
            assert process.stdout.readline() == number
        words.write_text(f"{POINT}=kill")
        assert process.communicate("\n", timeout=SECONDS) == ("", f"{mark(POINT)}\n")
    assert process.returncode == -signal.SIGKILL


def test_a_file_of_points_that_is_removed_just_then_arms_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = tmp_path / "points"
    words.write_text(f"{POINT}=kill")
    read_text = Path.read_text

    def removed_first(path: Path) -> str:
        path.unlink(missing_ok=True)
        return read_text(path)

    monkeypatch.setattr(failpoints, "_file", None)
    arm(f"@{words}")
    monkeypatch.setattr(Path, "read_text", removed_first)
    reach(POINT)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("agent.no-such-point=kill", "there is no point 'agent.no-such-point'; there are: controlplane.run-stored, "),
        ("agent.created", "'agent.created' is not of the form"),
        ("agent.created=explode", "'agent.created=explode' is not of the form"),
        ("agent.created=kill@0", "'agent.created=kill@0' is not of the form"),
    ],
)
def test_what_is_misspelt_is_refused(words: str, what: str) -> None:
    with pytest.raises(UnknownFailPoint, match=what):
        arm(words)


@pytest.mark.parametrize("command", [["fastflow-agent", "run"], ["fastflow-controlplane", "serve"]], ids=" ".join)
def test_a_program_with_a_misspelt_point_does_not_start(command: list[str], tmp_path: Path) -> None:
    settings = {"FASTFLOW_DATA_DIR": str(tmp_path), "FASTFLOW_PIPELINES_DIR": str(tmp_path)}
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        env={**os.environ, **settings, VARIABLE: "agent.no-such-point=kill"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 2
    assert "there is no point 'agent.no-such-point'" in done.stderr


def test_every_point_has_a_name_of_its_own_and_a_sentence() -> None:
    assert len({str(point) for point in CATALOGUE}) == len(CATALOGUE)
    assert all(point.sentence.endswith(".") for point in CATALOGUE)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
