"""Hard limits are Docker's, and what the control groups tell while and after they bite."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fastflow_agent.cgroups.kernellog import oom_victims
from fastflow_agent.cgroups.sampler import Sampler
from fastflow_agent.cgroups.stats import Usage
from fastflow_agent.cgroups.verdict import Evidence, Verdict, judge, rests_on_oom_flag
from fastflow_agent.clock import Clock
from fastflow_agent.facts import SoftLimitCrossed
from fastflow_agent.model import Limits, Reason, SlotId, State

from tests.cluster.scenarios import TRIES
from tests.slots import Slot, Workshop

MIB = 1 << 20
HOG = "blocks = []\nwhile True: blocks.append(bytearray(8 << 20))"
HOG_CHILD = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {HOG!r}])\n"


class Watch:
    """A sampler with what it told."""

    def __init__(self) -> None:
        self.usages: list[Usage] = []
        self.crossings: list[SoftLimitCrossed] = []
        self.kills: list[int] = []
        self.slots: dict[SlotId, Slot] = {}
        self.sampler = Sampler(
            Clock(),
            on_usage=lambda _, usage: self.usages.append(usage),
            on_crossing=lambda _, crossing: self.crossings.append(crossing),
            on_oom=self._on_oom,
        )
        self._stops: list[asyncio.Task[bool]] = []

    def add(self, slot: Slot) -> None:
        group = slot.runtime.group(slot.id)
        assert group
        self.slots[slot.id] = slot
        self.sampler.add(slot.id, group, slot.spec.limits)

    async def verdict(self, slot: Slot) -> Verdict:
        """Wait for the end and judge it, as the agent does."""
        ended = await slot.end()
        group = slot.runtime.group(slot.id)
        assert group
        evidence = Evidence(
            observation=ended.observation,
            limits=slot.spec.limits,
            released=await slot.runtime.was_released(slot.id),
            reading=await self.sampler.finish(slot.id),
            cgroup=group.version,
            oom_seen=bool(self.kills),
            victims=oom_victims(slot.id),
        )
        if rests_on_oom_flag(evidence):
            flag = await slot.runtime.oom_flag(slot.id)
            evidence = replace(evidence, observation=replace(ended.observation, oom_flag=flag))
        return judge(evidence)

    async def until_crossed(self, count: int) -> None:
        """Wait until so many crossings, of either way, were told."""
        async with asyncio.timeout(60):
            while len(self.crossings) < count:  # noqa: ASYNC110 - a list tells nobody that it grew
                await asyncio.sleep(0.05)

    def _on_oom(self, slot: SlotId, kills: int) -> None:
        self.kills.append(kills)
        self._stops.append(asyncio.ensure_future(self.slots[slot].runtime.signal(slot, 9)))


@pytest.fixture
async def watch() -> AsyncIterator[Watch]:
    watch = Watch()
    running = asyncio.ensure_future(watch.sampler.run())
    yield watch
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    watch.sampler.close()


def limited(memory: int = 256 * MIB, cpu: int = 2000, **soft: int) -> Limits:
    return Limits(cpu, memory, **soft)


async def test_memory_over_the_limit_ends_the_program_with_137_and_the_verdict_tells(
    workshop: Workshop, watch: Watch
) -> None:
    slot = workshop.slot(HOG, limits=limited(memory=96 * MIB))
    await slot.begin()
    watch.add(slot)
    verdict = await watch.verdict(slot)
    assert (verdict.state, verdict.reason, verdict.exit_code) == (State.FAILED, Reason.OOM_KILLED, 137)
    found = verdict.out_of_memory
    assert found
    assert found.limit_bytes == 96 * MIB
    assert 0.98 * 96 * MIB <= (found.peak_bytes or 0) <= 97 * MIB
    assert "96 MiB" in verdict.message
    assert found.process == "python3", "the kernel's log names whom it chose"


async def test_an_oom_of_a_child_ends_the_whole_container(workshop: Workshop, watch: Watch) -> None:
    # What lives on is not waited for as long as it sleeps.
    slot = workshop.slot(f"{HOG_CHILD}import time\ntime.sleep(600)\n", limits=limited(memory=96 * MIB))
    await slot.begin()
    watch.add(slot)
    verdict = await watch.verdict(slot)
    assert (verdict.state, verdict.reason) == (State.FAILED, Reason.OOM_KILLED)


async def test_an_exit_of_0_right_after_a_childs_oom_is_a_failure_with_its_code_kept(
    workshop: Workshop, watch: Watch
) -> None:
    slot = workshop.slot(HOG_CHILD, limits=limited(memory=96 * MIB))
    await slot.begin()
    watch.add(slot)
    verdict = await watch.verdict(slot)
    assert (verdict.state, verdict.reason) == (State.FAILED, Reason.OOM_KILLED)
    assert verdict.exit_code in (0, 137)


async def test_a_childs_oom_is_told_after_the_end_by_the_kernels_log_alone(workshop: Workshop) -> None:
    name = "import ctypes\nctypes.CDLL(None).prctl(15, b'eater', 0, 0, 0)\n"
    slot = workshop.slot(
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {name + HOG!r}])\n",
        limits=limited(memory=96 * MIB),
    )
    ended = await slot.run()
    verdict = judge(Evidence(ended.observation, slot.spec.limits, released=True, victims=oom_victims(slot.id)))
    assert (verdict.state, verdict.reason) == (State.FAILED, Reason.OOM_KILLED)
    assert verdict.out_of_memory
    assert verdict.out_of_memory.process == "eater"
    assert "the kernel's log" in verdict.out_of_memory.evidence


async def test_a_program_that_kills_itself_at_a_full_page_cache_is_no_oom(workshop: Workshop, watch: Watch) -> None:
    slot = workshop.slot(
        """
        import os, signal
        with open("/tmp/big", "wb") as file:
            for _ in range(200):
                file.write(bytes(1 << 20))
        print("full", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        limits=limited(memory=96 * MIB),
    )
    await slot.begin()
    watch.add(slot)
    verdict = await watch.verdict(slot)
    assert (verdict.state, verdict.reason, verdict.signal) == (State.FAILED, Reason.SIGNAL, 9)
    assert slot.log() == b"full\n"


async def test_there_is_no_swap_to_escape_to(workshop: Workshop) -> None:
    slot = workshop.slot("import time; print('up', flush=True); time.sleep(60)", limits=limited(memory=96 * MIB))
    await slot.begin()
    await slot.said("up")
    group = slot.runtime.group(slot.id)
    assert group
    container = group.container()
    if group.version == "v2":
        assert (container[""] / "memory.swap.max").read_text().strip() == "0"
    else:
        assert int((container["memory"] / "memory.memsw.limit_in_bytes").read_text()) == 96 * MIB


async def test_cpu_over_the_limit_is_throttled_and_both_are_measured(workshop: Workshop, watch: Watch) -> None:
    slot = workshop.slot(
        """
        import os, time
        begin, used, child = time.monotonic(), time.process_time(), os.fork()
        while time.process_time() < used + 0.2: pass
        if not child: os._exit(0)
        os.wait()
        print(time.monotonic() - begin, flush=True)
        while not os.path.exists("/tmp/go"): time.sleep(0.05)
        """,
        limits=limited(cpu=100),
    )
    await slot.begin()
    watch.add(slot)
    await slot.said("\n")
    group = slot.runtime.group(slot.id)
    assert group
    kernel = group.read().usage.throttled_usec
    # How much it is depends on those who want the processors too: they leave so little of one in any case.
    assert kernel
    async with asyncio.timeout(60):
        while not watch.usages or (watch.usages[-1].throttled_usec or 0) < kernel:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)
    (slot.spec.paths.tmp / "go").touch()
    verdict = await watch.verdict(slot)
    assert verdict.state is State.SUCCEEDED
    # 0.4 s of CPU time take four at a tenth of a core, or longer where others want the processors too.
    assert float(slot.log()) > 3.2
    assert any(0 < (usage.cpu_milli_cores or 0) < 160 for usage in watch.usages)


async def test_throttling_is_told_up_to_the_end_also_of_a_run_too_short_for_a_sample(workshop: Workshop) -> None:
    """On a host too busy the container's group may be gone first, so one of some runs is enough."""
    told: list[int | None] = []
    while len(told) < TRIES and not any(value is not None for value in told):
        slot = workshop.slot(
            """
            import time
            end = time.process_time() + 0.05
            while time.process_time() < end: pass
            """,
            limits=limited(cpu=200),
        )
        await slot.begin()
        # It does not run, so it takes no samples.
        sampler = Sampler(Clock(), on_usage=lambda *_: None, on_crossing=lambda *_: None, on_oom=lambda *_: None)
        group = slot.runtime.group(slot.id)
        assert group
        sampler.add(slot.id, group, slot.spec.limits)
        await slot.end()
        reading = await sampler.finish(slot.id)
        sampler.close()
        assert reading
        told.append(reading.usage.throttled_usec)
        assert reading.usage.working_set_bytes is None, "no moment of the program was seen"
    assert any(value is not None for value in told)


async def test_soft_limits_warn_of_memory_and_harm_nothing(workshop: Workshop, watch: Watch) -> None:
    slot = workshop.slot(
        """
        import os, time
        def wait_for(name):
            while not os.path.exists("/tmp/" + name): time.sleep(0.05)
        block = bytearray(80 << 20)
        wait_for("free")
        del block
        wait_for("go")
        print("unharmed")
        """,
        limits=limited(memory_soft_bytes=64 * MIB),
    )
    began, begin = datetime.now(UTC), time.monotonic()
    await slot.begin()
    watch.add(slot)
    # Not for so many seconds: on a crowded machine they may bring too few samples.
    for count, name in ((1, "free"), (2, "go")):
        await watch.until_crossed(count)
        await asyncio.sleep(1.5)
        (slot.spec.paths.tmp / name).touch()
    verdict = await watch.verdict(slot)
    assert (verdict.state, slot.log()) == (State.SUCCEEDED, b"unharmed\n")
    raised, cleared = watch.crossings
    assert (raised.crossing, raised.kind, raised.limit, raised.clear_time) == (1, "MEMORY", 64 * MIB, None)
    assert (cleared.crossing, cleared.kind) == (1, "MEMORY")
    assert cleared.peak > 80 * MIB
    assert 1 < cleared.seconds_above < time.monotonic() - begin
    assert began < cleared.raise_time < datetime.now(UTC)


async def test_the_parent_group_tells_peak_and_cpu_time_after_the_end_and_goes_with_the_slot(
    workshop: Workshop,
) -> None:
    slot = workshop.slot("block = bytearray(60 << 20)\nprint(sum(range(5_000_000)))")
    await slot.run()
    group = slot.runtime.group(slot.id)
    assert group
    usage = group.read().usage
    assert 60 * MIB < (usage.peak_memory_bytes or 0) < 256 * MIB
    assert (usage.cpu_usec or 0) > 50_000
    await slot.runtime.remove(slot.id)
    assert not list(Path("/sys/fs/cgroup").glob(f"*/fastflow/{slot.id}"))
    assert not list(Path("/sys/fs/cgroup").glob(f"fastflow/{slot.id}"))
    assert group.read().usage == Usage()
