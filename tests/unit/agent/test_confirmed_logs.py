"""Which logs are told to be whole as a host shuts down, and when that is believed."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fastflow_agent.identity import DataFolderLock, load_boot_id
from fastflow_agent.logs.confirmed import CONFIRMED_FILE, ConfirmedLogs, confirm_logs, load_confirmed_logs
from fastflow_agent.model import SlotId, new_slot_id

BOOT = "boot-1"
NEXT = "boot-2"

OPEN = "import os, sys; log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)"
MAPPED = "import mmap, os, sys; log = os.open(sys.argv[1], os.O_RDWR); kept = mmap.mmap(log, 4); os.close(log)"


def log_of(data_dir: Path, content: bytes = b"output\n") -> tuple[SlotId, Path]:
    """A new slot, and its log."""
    slot = new_slot_id()
    log = data_dir / "slots" / slot / "log"
    log.parent.mkdir(parents=True)
    log.write_bytes(content)
    return slot, log


def test_a_log_at_rest_is_told_to_the_agents_of_later_boots_as_often_as_they_ask(tmp_path: Path) -> None:
    slot, _ = log_of(tmp_path)
    confirm_logs(tmp_path, BOOT)
    for boot_id in (NEXT, NEXT, "boot-3"):
        assert load_confirmed_logs(tmp_path, boot_id).length(slot, BOOT) == 7
    assert load_confirmed_logs(tmp_path, NEXT).length(slot, NEXT) is None
    assert load_confirmed_logs(tmp_path, NEXT).length(new_slot_id(), BOOT) is None


@pytest.mark.parametrize("writer", [OPEN, MAPPED], ids=["open", "mapped"])
def test_a_log_that_somebody_may_write_to_is_left_out(tmp_path: Path, writer: str) -> None:
    at_rest, _ = log_of(tmp_path)
    slot, log = log_of(tmp_path)
    program = f"{writer}; print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(log)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert confirm_logs(tmp_path, BOOT).lengths == {at_rest: 7}
    assert confirm_logs(tmp_path, BOOT).lengths == {at_rest: 7, slot: 7}


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda log: log.symlink_to("/etc/passwd")])
def test_what_is_no_log_is_left_out(tmp_path: Path, make: Callable[[Path], None]) -> None:
    _, log = log_of(tmp_path)
    log.unlink()
    make(log)
    assert confirm_logs(tmp_path, BOOT).lengths == {}


def test_what_was_confirmed_before_more_is_begun_in_the_same_boot_is_never_believed(tmp_path: Path) -> None:
    log_of(tmp_path)
    confirm_logs(tmp_path, BOOT)
    assert load_confirmed_logs(tmp_path, BOOT) == ConfirmedLogs()
    assert not (tmp_path / CONFIRMED_FILE).exists()
    assert load_confirmed_logs(tmp_path, NEXT) == ConfirmedLogs()


def test_the_newest_confirmation_counts(tmp_path: Path) -> None:
    slot, log = log_of(tmp_path)
    confirm_logs(tmp_path, BOOT)
    log.write_bytes(b"longer output\n")
    confirm_logs(tmp_path, NEXT)
    assert load_confirmed_logs(tmp_path, "boot-3") == ConfirmedLogs(NEXT, {slot: 14})


@pytest.mark.parametrize("text", ["", "[]", '{"boot_id": "boot-1"}', '{"boot_id": "boot-1", "lengths": [1]}'])
def test_what_can_not_be_read_confirms_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / CONFIRMED_FILE).write_text(text)
    assert load_confirmed_logs(tmp_path, NEXT) == ConfirmedLogs()


def command(data_dir: Path) -> subprocess.CompletedProcess[str]:
    """Runs `fastflow-agent confirm-logs`, which sets up the logging of its process."""
    return subprocess.run(
        [sys.executable, "-m", "fastflow_agent", "confirm-logs"],
        env={**os.environ, "FASTFLOW_DATA_DIR": str(data_dir)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command_confirms_the_logs_of_this_boot(tmp_path: Path) -> None:
    slot, _ = log_of(tmp_path)
    done = command(tmp_path)
    assert done.returncode == 0, done.stderr
    assert load_confirmed_logs(tmp_path, NEXT) == ConfirmedLogs(load_boot_id(), {slot: 7})


def test_the_command_confirms_nothing_while_an_agent_works(tmp_path: Path) -> None:
    log_of(tmp_path)
    lock = DataFolderLock(tmp_path)
    done = command(tmp_path)
    lock.release()
    assert done.returncode == 1, done.stderr
    assert not (tmp_path / CONFIRMED_FILE).exists()


def test_agents_that_can_not_tell_one_boot_from_another_believe_nothing(tmp_path: Path) -> None:
    log_of(tmp_path)
    confirm_logs(tmp_path, "")
    assert load_confirmed_logs(tmp_path, "") == ConfirmedLogs()
