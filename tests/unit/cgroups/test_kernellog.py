"""The kernel's log: whom it chose to kill in a slot, and nothing that others did or made up."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastflow_agent.cgroups import kernellog
from fastflow_agent.cgroups.kernellog import oom_victims
from fastflow_agent.model import SlotId

SLOT = SlotId("5412f331d7f29f4c")
CONTAINER = "b28d3e861e5c0975415ae1b6a719d2870dcc468f53d3d48c8b959a9c3f5eb309"
CGROUPFS = f"/fastflow/{SLOT}/{CONTAINER}"
SYSTEMD = f"/fastflow.slice/fastflow-{SLOT}.slice/docker-{CONTAINER}.scope"


def killed(group: str = CGROUPFS, name: str = "python3", constraint: str = "CONSTRAINT_MEMCG", level: int = 6) -> str:
    """A record as kernel 6.18 writes it; 6.1 writes the same."""
    return (
        f"{level},28970,12281651109,-;oom-kill:constraint={constraint},nodemask=(null),cpuset={CONTAINER},"
        f"mems_allowed=0,oom_memcg={group},task_memcg={group},task={name},pid=27543,uid=1000\n"
    )


def kill_reported(name: str) -> str:
    """What the kernel says of everyone it ends, chosen or not."""
    return f"3,28971,12281651124,-;Memory cgroup out of memory: Killed process 27543 ({name}) total-vm:136676kB\n"


@pytest.fixture
def kernel_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log that gives one record a read, as the kernel's does; a line "overrun" stands for one overwritten."""
    path = tmp_path / "kmsg"
    path.touch()
    pending: list[Iterator[str]] = []

    def read_record(descriptor: int, size: int) -> bytes:
        if not pending:
            with open(descriptor, closefd=False) as file:
                pending.append(iter(file.read().split("\n\n")))
        record = next(pending[0], "")
        if not record:
            pending.clear()
            raise BlockingIOError
        if record == "overrun":
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        return record.encode()

    monkeypatch.setattr(kernellog.os, "read", read_record)
    return path


def write(path: Path, *records: str) -> None:
    path.write_text("\n\n".join(records))


@pytest.mark.parametrize("group", [CGROUPFS, SYSTEMD, f"/docker/c0ffee{CGROUPFS}", f"{SYSTEMD}/container"])
def test_the_process_chosen_in_the_slots_group_is_named(kernel_log: Path, group: str) -> None:
    write(kernel_log, "6,1,1,-;eth0: link is up\n SUBSYSTEM=net\n", killed(group), kill_reported("python3"))
    assert oom_victims(SLOT, kernel_log) == ("python3",)


def test_those_who_only_die_with_it_are_not_named(kernel_log: Path) -> None:
    write(kernel_log, killed(name="python3"), kill_reported("python3"), kill_reported("uv"), kill_reported("tini"))
    assert oom_victims(SLOT, kernel_log) == ("python3",)


def test_several_kills_are_told_in_their_order(kernel_log: Path) -> None:
    write(kernel_log, killed(name="cc1plus"), killed("/fastflow/ffffffffffffffff/c"), killed(name="ld"))
    assert oom_victims(SLOT, kernel_log) == ("cc1plus", "ld")


def test_records_lost_to_an_overrun_do_not_hide_later_ones(kernel_log: Path) -> None:
    write(kernel_log, "overrun", "overrun", killed())
    assert oom_victims(SLOT, kernel_log) == ("python3",)


@pytest.mark.parametrize(
    "record",
    [
        killed("/fastflow/ffffffffffffffff/c"),
        killed(f"/docker/{CONTAINER}"),
        killed("/"),
        killed(constraint="CONSTRAINT_NONE"),
        killed(level=(1 << 3) + 6),
        killed().replace(f"oom_memcg={CGROUPFS}", "oom_memcg=/"),
        killed()[:200],
        kill_reported("python3"),
    ],
    ids=[
        "another slot",
        "another container",
        "no group",
        "the host's shortage",
        "a user's words",
        "a limit above ours",
        "cut off",
        "no choice",
    ],
)
def test_what_is_no_kill_at_the_slots_limit_names_nobody(kernel_log: Path, record: str) -> None:
    write(kernel_log, record)
    assert oom_victims(SLOT, kernel_log) == ()


@pytest.mark.parametrize("name", ["a,pid=1,uid=0", "task=x", "a\\x0ab", "my program", "", "oom_memcg=/"])
def test_a_program_can_choose_its_name_and_nothing_else(kernel_log: Path, name: str) -> None:
    write(kernel_log, killed(name=name))
    assert oom_victims(SLOT, kernel_log) == (name,)


def test_a_host_that_shows_no_log_names_nobody(tmp_path: Path) -> None:
    assert oom_victims(SLOT, tmp_path / "absent") == ()


def test_the_log_of_this_host_is_read_to_its_end() -> None:
    assert oom_victims(SlotId("0000000000000000")) == ()
