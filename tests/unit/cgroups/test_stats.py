"""What is read from real control group files, and that what is not there is None."""

from collections.abc import Callable
from pathlib import Path

from fastflow_agent.cgroups.paths import CgroupHost, SlotGroup
from fastflow_agent.cgroups.stats import Reading, Usage, read_v2
from fastflow_agent.model import SlotId

MIB = 1 << 20
Recorded = Callable[[str], SlotGroup]


def test_a_live_slot_on_version_2_tells_all_but_pressure_its_kernel_has_not(recorded: Recorded) -> None:
    reading = recorded("v2-busy").read()
    usage = reading.usage
    assert usage.cpu_usec == 2_350_000
    assert usage.throttled_usec == 6_490_000
    assert usage.io_write_bytes == 13_152_256
    assert usage.io_read_bytes == 2_035_712
    assert usage.pids
    assert 40 * MIB < (usage.working_set_bytes or 0) < (reading.memory_bytes or 0) <= (usage.peak_memory_bytes or 0)
    assert (reading.oom_kills, reading.oom_group_kills, reading.limit_hits) == (0, 0, 0)
    assert usage.memory_pressure_percent is None
    assert usage.cpu_milli_cores is None


def test_an_ended_slot_on_version_2_still_tells_peak_cpu_time_and_io(recorded: Recorded) -> None:
    usage = recorded("v2-busy-ended").read().usage
    assert (usage.peak_memory_bytes, usage.cpu_usec) == (75_190_272, 3_110_000)
    assert (usage.io_read_bytes, usage.io_write_bytes) == (2_240_512, 21_053_440)
    assert usage.throttled_usec is None


def test_an_oom_on_version_2_stands_in_the_parent_group_after_the_end(recorded: Recorded) -> None:
    reading = recorded("v2-oom-ended").read()
    assert (reading.oom_kills, reading.oom_group_kills, reading.limit_hits) == (3, 1, 1)
    assert reading.usage.peak_memory_bytes == 100_671_488


def test_a_live_slot_on_version_1_tells_all_but_bytes_written(recorded: Recorded) -> None:
    reading = recorded("v1-busy").read()
    usage = reading.usage
    assert 500_000 < (usage.cpu_usec or 0) < 1_000_000
    assert (usage.throttled_usec or 0) > 100_000
    assert usage.pids == 5
    assert 40 * MIB < (usage.working_set_bytes or 0) < (reading.memory_bytes or 0) <= (usage.peak_memory_bytes or 0)
    assert (usage.io_read_bytes, usage.io_write_bytes) == (0, None)
    assert (usage.memory_pressure_percent, usage.io_pressure_percent) == (0.0, 0.0)
    assert (usage.cpu_pressure_percent or 0) > 1
    assert (reading.oom_kills, reading.limit_hits) == (0, None)


def test_a_childs_oom_on_version_1_stands_in_the_containers_group_while_it_lives(recorded: Recorded) -> None:
    assert recorded("v1-oom").read().oom_kills == 1


def test_an_ended_slot_on_version_1_tells_peak_and_cpu_time_but_no_oom(recorded: Recorded) -> None:
    reading = recorded("v1-oom-ended").read()
    assert reading.oom_kills is None
    assert reading.usage.throttled_usec is None
    assert 0.98 * 96 * MIB < (reading.usage.peak_memory_bytes or 0) < 97 * MIB
    assert reading.usage.cpu_usec


def test_pressure_is_read_where_the_kernel_has_it(tmp_path: Path) -> None:
    for name, share in (("memory", "1.50"), ("cpu", "65.39"), ("io", "0.00")):
        (tmp_path / f"{name}.pressure").write_text(
            f"some avg10={share} avg60=57.99 avg300=59.12 total=1763976957\nfull avg10=9.00 avg60=0 avg300=0 total=0\n"
        )
    usage = read_v2(tmp_path, None).usage
    pressures = (usage.memory_pressure_percent, usage.cpu_pressure_percent, usage.io_pressure_percent)
    assert pressures == (1.5, 65.39, 0.0)


def test_bytes_of_several_devices_are_added_and_none_at_all_are_zero(tmp_path: Path) -> None:
    (tmp_path / "io.stat").write_text("8:0 rbytes=10 wbytes=1 rios=1\n8:16 rbytes=20 wbytes=2 rios=1\n253:0 \n")
    assert read_v2(tmp_path, None).usage == Usage(io_read_bytes=30, io_write_bytes=3)
    (tmp_path / "io.stat").write_text("")
    assert read_v2(tmp_path, None).usage == Usage(io_read_bytes=0, io_write_bytes=0)


def test_a_group_that_is_gone_tells_nothing(tmp_path: Path) -> None:
    for version in ("v1", "v2"):
        host = CgroupHost("v2" if version == "v2" else "hybrid", "cgroupfs", tmp_path)
        assert host.group(SlotId("ffffffffffffffff")).read() == Reading()


def test_files_with_unknown_content_tell_nothing(tmp_path: Path) -> None:
    for name in ("memory.current", "memory.stat", "cpu.stat", "pids.current"):
        (tmp_path / name).write_text("what a later kernel may write\n")
    assert read_v2(tmp_path, None) == Reading()


def test_a_peak_the_kernel_does_not_keep_is_the_highest_use_seen() -> None:
    readings = [Reading(memory_bytes=size) for size in (10, 30, 20)]
    last = Reading()
    for reading in readings:
        last = reading.over(last)
    assert last.usage.peak_memory_bytes == 30


def test_after_the_end_counters_are_the_last_ones_and_moments_those_of_the_living() -> None:
    alive = Reading(
        Usage(cpu_usec=5, throttled_usec=7, working_set_bytes=100, pids=4, cpu_milli_cores=900), memory_bytes=120
    )
    ended = Reading(Usage(cpu_usec=9, peak_memory_bytes=150, working_set_bytes=1, pids=0), memory_bytes=2)
    final = ended.after(alive)
    assert final.usage == Usage(
        peak_memory_bytes=150, cpu_usec=9, throttled_usec=7, working_set_bytes=100, pids=4, cpu_milli_cores=900
    )


def test_a_sample_taken_when_the_last_process_is_gone_says_nothing_of_the_runs_last_moment() -> None:
    alive = Reading(Usage(cpu_usec=5, working_set_bytes=100, pids=4, cpu_milli_cores=900), memory_bytes=120)
    emptied = Reading(Usage(cpu_usec=9, peak_memory_bytes=150, working_set_bytes=1, pids=0), memory_bytes=2)
    seen = emptied.over(alive)
    assert seen.usage == Usage(peak_memory_bytes=150, cpu_usec=9, working_set_bytes=100, pids=4, cpu_milli_cores=900)
    first = emptied.over(Reading()).usage
    assert (first.pids, first.working_set_bytes, first.peak_memory_bytes) == (None, None, 150)
