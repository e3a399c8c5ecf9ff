"""The verdict, as a table: what was seen, and what is said of it."""

from dataclasses import dataclass, replace

import pytest
from fastflow_agent.cgroups.stats import Reading, Usage
from fastflow_agent.cgroups.verdict import Evidence, OutsideSignal, judge, rests_on_oom_flag
from fastflow_agent.model import Limits, Reason, State, StopCause
from fastflow_agent.runtime.base import Observation, SlotState

MIB = 1 << 20
LIMIT = 100 * MIB
FULL = Usage(peak_memory_bytes=LIMIT - 4096)
HALF = Usage(peak_memory_bytes=LIMIT // 2)

NO_OOM_V2 = Reading(HALF, oom_kills=0, oom_group_kills=0, limit_hits=0)
GROUP_KILL_V2 = Reading(FULL, oom_kills=3, oom_group_kills=1, limit_hits=1)
HOST_OOM_V2 = Reading(HALF, oom_kills=1, oom_group_kills=0, limit_hits=0)
OLD_KERNEL_V2 = Reading(FULL, oom_kills=1, limit_hits=1)
ENDED_V1 = Reading(HALF)
ENDED_FULL_V1 = Reading(FULL)
CHILD_KILL_V1 = Reading(FULL, oom_kills=1)
HOST_KILL_V1 = Reading(HALF, oom_kills=1)


def exited(code: int, **more: object) -> Observation:
    return Observation(SlotState.EXITED, exit_code=code, **more)


def evidence(observation: Observation, cgroup: str = "v2", **more: object) -> Evidence:
    reading = {"v2": NO_OOM_V2, "hybrid": ENDED_V1, "none": None}[cgroup]
    base = Evidence(observation, Limits(1000, LIMIT), released=True, reading=reading, cgroup=cgroup)
    return replace(base, **more)


@dataclass(frozen=True)
class Case:
    name: str
    evidence: Evidence
    state: State
    reason: Reason
    oom: bool = False
    says: tuple[str, ...] = ()


def failed(name: str, evidence: Evidence, reason: Reason, *says: str, oom: bool = False) -> Case:
    return Case(name, evidence, State.FAILED, reason, oom, says)


GONE = Observation(SlotState.ABSENT)
UNSEEN = Observation(SlotState.EXITED, end_unseen=True)
PERHAPS_UNSEEN = Observation(SlotState.EXITED, 255, end_unseen=True)
ENDINGS = [
    Case("success", evidence(exited(0)), State.SUCCEEDED, Reason.NONE),
    failed("exit code", evidence(exited(7)), Reason.EXIT_CODE, "exit code 7"),
    failed("exit code without groups", evidence(exited(1), "none"), Reason.EXIT_CODE),
    failed("segfault", evidence(exited(139)), Reason.SIGNAL, "SIGSEGV"),
    failed("own sigkill", evidence(exited(137)), Reason.SIGNAL, "SIGKILL"),
    failed("killed as it began", evidence(exited(137), withdrawn=True), Reason.RUNTIME, "agent was interrupted"),
    failed("ended before it was killed", evidence(exited(7), withdrawn=True), Reason.EXIT_CODE),
    failed("255 is a code, not signal 127", evidence(exited(255)), Reason.EXIT_CODE),
    failed("128 is a code, not signal 0", evidence(exited(128)), Reason.EXIT_CODE),
]
STOPS = [
    Case("cancelled", evidence(exited(143), stop=StopCause.CANCEL), State.CANCELLED, Reason.CANCEL_REQUESTED),
    Case("cancelled, exits 0", evidence(exited(0), stop=StopCause.CANCEL), State.CANCELLED, Reason.CANCEL_REQUESTED),
    Case("superseded", evidence(exited(137), stop=StopCause.SUPERSEDED), State.CANCELLED, Reason.CANCEL_REQUESTED),
    Case("orphan", evidence(exited(137), stop=StopCause.ORPHAN), State.CANCELLED, Reason.CANCEL_REQUESTED),
    Case(
        "timeout",
        evidence(exited(137), stop=StopCause.TIMEOUT, timeout_seconds=90.0),
        State.TIMED_OUT,
        Reason.TIMEOUT,
        says=("90 s", "`timeout`"),
    ),
    Case(
        "over memory while it was cancelled",
        evidence(exited(137), stop=StopCause.CANCEL, reading=GROUP_KILL_V2),
        State.CANCELLED,
        Reason.CANCEL_REQUESTED,
        oom=True,
    ),
    Case("cancelled and removed", evidence(GONE, stop=StopCause.CANCEL), State.CANCELLED, Reason.CANCEL_REQUESTED),
]
MEMORY = [
    failed(
        "group kill",
        evidence(exited(137), reading=GROUP_KILL_V2),
        Reason.OOM_KILLED,
        "100 MiB",
        "process: unknown",
        "`mem_hard_limit`",
        oom=True,
    ),
    failed(
        "group kill, and the kernel's log names whom it chose",
        evidence(exited(137), reading=GROUP_KILL_V2, victims=("python3",)),
        Reason.OOM_KILLED,
        "process: python3)",
        oom=True,
    ),
    failed("kernel before 5.17", evidence(exited(137), reading=OLD_KERNEL_V2), Reason.OOM_KILLED, oom=True),
    failed(
        "a child, and the program exits 0",
        evidence(exited(0), reading=OLD_KERNEL_V2),
        Reason.OOM_KILLED,
        "exited 0",
        oom=True,
    ),
    failed("the host's own shortage", evidence(exited(137), reading=HOST_OOM_V2), Reason.SIGNAL, "host itself"),
    failed("137 and flag, but version 2 says no", evidence(exited(137, oom_flag=True)), Reason.SIGNAL),
    failed(
        "full page cache on version 2",
        evidence(exited(137), reading=Reading(FULL, oom_kills=0, limit_hits=0)),
        Reason.SIGNAL,
    ),
    failed(
        "version 1, gone first: 137, flag and peak",
        evidence(exited(137, oom_flag=True), "hybrid", reading=ENDED_FULL_V1),
        Reason.OOM_KILLED,
        "100 MiB",
        oom=True,
    ),
    failed("version 1, gone first: no flag", evidence(exited(137), "hybrid", reading=ENDED_FULL_V1), Reason.SIGNAL),
    failed("version 1, gone first: no peak", evidence(exited(137, oom_flag=True), "hybrid"), Reason.SIGNAL),
    failed(
        "version 1, a child seen while it lived",
        evidence(exited(137), "hybrid", reading=CHILD_KILL_V1, oom_seen=True),
        Reason.OOM_KILLED,
        oom=True,
    ),
    failed(
        "version 1, a child in the last sample",
        evidence(exited(1), "hybrid", reading=CHILD_KILL_V1),
        Reason.OOM_KILLED,
        oom=True,
    ),
    failed(
        "version 1, exit 0 before the agent could act",
        evidence(exited(0, oom_flag=True), "hybrid", reading=ENDED_FULL_V1),
        Reason.OOM_KILLED,
        "exited 0",
        oom=True,
    ),
    failed("version 1, the host's own shortage", evidence(exited(137), "hybrid", reading=HOST_KILL_V1), Reason.SIGNAL),
    failed(
        "version 1, gone first: the kernel's log alone tells of a child",
        evidence(exited(0), "hybrid", reading=ENDED_FULL_V1, victims=("cc1plus",)),
        Reason.OOM_KILLED,
        "process: cc1plus)",
        "exited 0",
        oom=True,
    ),
    failed("no groups: 137 and flag alone", evidence(exited(137, oom_flag=True), "none"), Reason.SIGNAL),
]
TERM_BEFORE = OutsideSignal(15, 1.25)
SIGNALS = [
    failed(
        "tidied up and said 0 at somebody else's SIGTERM",
        evidence(exited(0), outside=TERM_BEFORE),
        Reason.SIGNAL,
        "exit code 0",
        "1.2 s after",
        "SIGTERM",
        "Fast-Flow did not send",
        "`docker stop`",
    ),
    failed("said 3 at it", evidence(exited(3), outside=TERM_BEFORE), Reason.SIGNAL, "cut short"),
    failed(
        "did not handle it",
        evidence(exited(143), outside=TERM_BEFORE),
        Reason.SIGNAL,
        "ended by signal 15",
        "Fast-Flow did not send",
    ),
    failed(
        "ran out of memory",
        evidence(exited(137), reading=GROUP_KILL_V2, outside=TERM_BEFORE),
        Reason.OOM_KILLED,
        oom=True,
    ),
    failed("shutdown that goes on", evidence(exited(0), outside=TERM_BEFORE, shutdown=True), Reason.HOST_REBOOT),
]
MISHAPS = [
    failed("vanished", evidence(GONE), Reason.CONTAINER_VANISHED, "removed it"),
    failed("vanished with a reboot", evidence(GONE, rebooted=True), Reason.HOST_REBOOT),
    failed("power cut", evidence(UNSEEN, rebooted=True), Reason.HOST_REBOOT),
    failed(
        "unseen end of an engine's restart",
        evidence(UNSEEN),
        Reason.RUNTIME,
        "how is not known",
        "engine was restarted",
    ),
    failed(
        "an end that the engine may have seen",
        evidence(PERHAPS_UNSEEN),
        Reason.RUNTIME,
        "ended with 255",
        "either the program's own exit code or",
    ),
    failed("perhaps a power cut", evidence(PERHAPS_UNSEEN, rebooted=True), Reason.HOST_REBOOT),
    Case("unseen end, cancelled", evidence(UNSEEN, stop=StopCause.CANCEL), State.CANCELLED, Reason.CANCEL_REQUESTED),
    failed("shutdown", evidence(exited(143), rebooted=True), Reason.HOST_REBOOT),
    failed(
        "killed before a shutdown that was seen", evidence(exited(143), rebooted=True, shutdown=False), Reason.SIGNAL
    ),
    failed(
        "tidied up and said 0 in a shutdown",
        evidence(exited(0), rebooted=True, shutdown=True),
        Reason.HOST_REBOOT,
        "exit code 0",
        "shut down",
    ),
    failed("said 3 in a shutdown that goes on", evidence(exited(3), shutdown=True), Reason.HOST_REBOOT),
    Case(
        "cancelled as the shutdown began",
        evidence(exited(0), rebooted=True, shutdown=True, stop=StopCause.CANCEL),
        State.CANCELLED,
        Reason.CANCEL_REQUESTED,
    ),
    Case(
        "succeeded some time before the reboot",
        evidence(exited(0), rebooted=True),
        State.SUCCEEDED,
        Reason.NONE,
        says=("is not known",),
    ),
    failed(
        "failed some time before the reboot",
        evidence(exited(3), rebooted=True),
        Reason.EXIT_CODE,
        "exit code 3",
        "is not known",
    ),
    failed(
        "wrapper failed before the release", evidence(exited(125, wrapper_failed=True), released=False), Reason.WRAPPER
    ),
    failed("killed before the release", evidence(exited(137), released=False), Reason.WRAPPER),
    failed("uv missing", evidence(exited(125, wrapper_failed=True)), Reason.WRAPPER, "log"),
    failed("the program's own 125", evidence(exited(125)), Reason.EXIT_CODE),
    failed(
        "could not be started",
        evidence(exited(127, error="exec format error"), released=False),
        Reason.RUNTIME,
        "exec format error",
    ),
]


@pytest.mark.parametrize("case", [*ENDINGS, *STOPS, *MEMORY, *SIGNALS, *MISHAPS], ids=lambda case: case.name)
def test_the_verdict_follows_from_the_evidence(case: Case) -> None:
    verdict = judge(case.evidence)
    assert (verdict.state, verdict.reason) == (case.state, case.reason)
    assert (verdict.out_of_memory is not None) == case.oom
    assert verdict.exit_code == case.evidence.observation.exit_code
    for word in case.says:
        assert word in verdict.message
    assert verdict.state is State.SUCCEEDED or verdict.message.endswith(".")


def test_of_a_success_before_a_shutdown_that_was_seen_nothing_is_said() -> None:
    verdict = judge(evidence(exited(0), rebooted=True, shutdown=False))
    assert (verdict.state, verdict.reason, verdict.message) == (State.SUCCEEDED, Reason.NONE, "")
    assert (verdict.exit_code, verdict.out_of_memory) == (0, None)


def test_the_finding_names_limit_peak_and_what_it_rests_on() -> None:
    finding = judge(evidence(exited(137), reading=GROUP_KILL_V2)).out_of_memory
    assert finding
    assert (finding.limit_bytes, finding.peak_bytes, finding.process) == (LIMIT, LIMIT - 4096, "unknown")
    assert finding.evidence == "memory.events of the slot's group: oom_kill 3, oom_group_kill 1"


def test_each_process_the_kernel_chose_is_named_once() -> None:
    found = judge(evidence(exited(137), "hybrid", reading=ENDED_FULL_V1, victims=("cc1plus", "ld", "cc1plus")))
    assert found.out_of_memory
    assert found.out_of_memory.process == "cc1plus, ld"
    assert found.out_of_memory.evidence == "the kernel's log: oom-kill in the slot's group, 3 at its memory limit"


@pytest.mark.parametrize(
    ("sign", "worth"),
    [
        (evidence(exited(0)), False),
        (evidence(exited(137), "none"), False),
        (evidence(exited(0), "hybrid", reading=ENDED_FULL_V1), True),
        (evidence(exited(137), reading=OLD_KERNEL_V2), True),
        (evidence(exited(137, oom_flag=True), "none"), True),
        (evidence(exited(137), "none", oom_seen=True), True),
    ],
)
def test_the_kernels_log_is_asked_only_where_something_points_to_a_kill(sign: Evidence, worth: bool) -> None:
    assert sign.may_be_oom is worth


@pytest.mark.parametrize(
    ("sign", "worth"),
    [
        (evidence(exited(0)), False),
        (evidence(exited(0), outside=TERM_BEFORE), True),
        (evidence(exited(143)), True),
        (evidence(exited(143), stop=StopCause.CANCEL), False),
        (evidence(exited(137), oom_seen=True), False),
    ],
)
def test_the_host_is_asked_only_where_somebody_elses_signal_ended_the_program(sign: Evidence, worth: bool) -> None:
    assert sign.may_be_shutdown is worth


@pytest.mark.parametrize(("code", "number"), [(137, 9), (143, 15), (139, 11), (128, None), (7, None), (255, None)])
def test_the_signal_is_the_one_the_exit_code_stands_for(code: int, number: int | None) -> None:
    assert judge(evidence(exited(code))).signal == number


@pytest.mark.parametrize("code", [0, 1, 137])
def test_the_engines_flag_is_asked_for_only_where_it_decides(code: int) -> None:
    full = evidence(exited(code), "hybrid", reading=ENDED_FULL_V1)
    assert rests_on_oom_flag(full)
    assert not rests_on_oom_flag(replace(full, observation=GONE))
    assert not rests_on_oom_flag(replace(full, observation=exited(code, oom_flag=True)))
    assert not rests_on_oom_flag(replace(full, reading=CHILD_KILL_V1))
    assert not rests_on_oom_flag(replace(full, oom_seen=True))
    assert not rests_on_oom_flag(evidence(exited(code), "hybrid"))
    assert not rests_on_oom_flag(evidence(exited(code), reading=Reading(FULL, oom_kills=0)))
    assert not rests_on_oom_flag(evidence(exited(code), "none"))
