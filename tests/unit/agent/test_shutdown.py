"""What an agent notes of its host's shutdown, for the next one."""

import asyncio
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fastflow_agent.shutdown import SHUTDOWN_FILE, Shutdown, host_is_shutting_down, load_shutdown, note_shutdown

NOW = datetime(2026, 3, 1, 12, 0, 0, 250000, tzinfo=UTC)


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Has `systemctl` say so, and end with that exit code, as systemd's own does."""

    def say(state: str, code: int) -> None:
        program = tmp_path / "systemctl"
        program.write_text(f'#!/bin/sh\n[ "$*" = is-system-running ] && echo {state}\nexit {code}\n')
        program.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return say


async def stopped(data_dir: Path) -> Shutdown | None:
    """What the next agent reads, after this one was told to stop."""
    stopping = asyncio.Event()
    noting = asyncio.create_task(note_shutdown(stopping, data_dir, "boot", lambda: NOW))
    await asyncio.sleep(0)
    stopping.set()
    await noting
    return load_shutdown(data_dir)


async def test_the_next_agent_reads_when_the_host_began_to_shut_down(
    systemd: Callable[[str, int], None], tmp_path: Path
) -> None:
    systemd("stopping", 1)
    assert await stopped(tmp_path) == Shutdown("boot", NOW)


@pytest.mark.parametrize(("state", "code"), [("running", 0), ("degraded", 1), ("offline", 1), ("", 127)])
async def test_an_agent_that_is_stopped_alone_notes_no_shutdown(
    systemd: Callable[[str, int], None], tmp_path: Path, state: str, code: int
) -> None:
    systemd(state, code)
    assert await stopped(tmp_path) is None


async def test_a_host_without_systemd_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not await host_is_shutting_down()


@pytest.mark.parametrize("text", ["", "[]", '{"boot_id": "boot"}', '{"boot_id": "boot", "time": "yesterday"}'])
def test_what_can_not_be_read_is_no_shutdown(tmp_path: Path, text: str) -> None:
    (tmp_path / SHUTDOWN_FILE).write_text(text)
    assert load_shutdown(tmp_path) is None
