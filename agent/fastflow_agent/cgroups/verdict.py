"""The verdict: how an attempt ended and why, from all evidence there is. Pure.

Neither exit code 137 nor the engine's out-of-memory flag decides alone. On cgroup version 2 the slot's parent group
tells what happened. On version 1 the container's own group tells it while it lives, and the kernel's log after that
where it may be read; without both, the engine's flag and a peak at the limit have to agree.
"""

from __future__ import annotations

import signal as signals
from dataclasses import dataclass, replace

from fastflow.pipelines.sizes import format_size

from fastflow_agent.cgroups.stats import Reading
from fastflow_agent.facts import OutOfMemory
from fastflow_agent.model import Limits, Reason, State, StopCause
from fastflow_agent.runtime.base import KILLED, WRAPPER_FAILED, Observation, SlotState

PEAK_SHARE = 0.98
"""A peak from this share of the limit on has reached it: the kernel charges pages in batches per CPU."""

ENDED_BY_STOP = (128 + signals.SIGTERM, KILLED)
"""Exit codes of a program that let what stops it end it: the agent, a shutdown, or `docker stop`."""

_WHO_SENDS_SIGNALS = (
    "Look on the worker host for `docker stop`, `docker kill` or an engine that was restarted without live-restore."
)


@dataclass(frozen=True)
class OutsideSignal:
    """A signal that somebody else sent to the program, `seconds` before its end."""

    number: int
    seconds: float


@dataclass(frozen=True)
class Evidence:
    """All that is known of an attempt's end.

    `observation` is EXITED or ABSENT. `reading` is what `Sampler.finish` gave, or None (no control groups). `cgroup` is
    that group's version. `stop` is set only if a signal reached the program before its end. `outside` is a signal that
    was not the agent's and asked the program to end, so shortly before its end that it ended by it. `rebooted`: the
    boot id changed since the release. `shutdown`: the program ended after the host's shutdown had begun, or before it
    (false), None = nobody knows. `oom_seen`: the agent itself ended the container over a child's OOM kill. `withdrawn`:
    the agent killed it so that it would not begin, as nobody knew whether it had. `victims` is what `oom_victims` found
    in the kernel's log; it need not be asked unless `may_be_oom`.
    """

    observation: Observation
    limits: Limits
    released: bool
    reading: Reading | None = None
    cgroup: str = "none"
    stop: StopCause | None = None
    timeout_seconds: float = 0.0
    outside: OutsideSignal | None = None
    rebooted: bool = False
    shutdown: bool | None = None
    oom_seen: bool = False
    withdrawn: bool = False
    victims: tuple[str, ...] = ()

    @property
    def may_be_oom(self) -> bool:
        """Whether anything points to a kill at the memory limit, so that the kernel's log is worth its reading."""
        kills = self.reading.oom_kills if self.reading else None
        return bool(kills) or self.oom_seen or self.observation.oom_flag or self.peaked

    @property
    def may_be_shutdown(self) -> bool:
        """Whether somebody else's signal ended the program, so that it is worth asking if the host shuts down."""
        by_signal = self.outside is not None or self.observation.exit_code in ENDED_BY_STOP
        return by_signal and self.stop is None and not self.oom_seen and not self.withdrawn

    @property
    def peaked(self) -> bool:
        """Whether the use of memory has reached the limit."""
        peak, limit = self.reading.usage.peak_memory_bytes if self.reading else None, self.limits.memory_hard_bytes
        return peak is not None and limit > 0 and peak >= PEAK_SHARE * limit


@dataclass(frozen=True)
class Verdict:
    """An attempt's end. `message` is one sentence for people: what happened, and what to do about it."""

    state: State
    reason: Reason
    message: str
    exit_code: int | None = None
    signal: int | None = None
    out_of_memory: OutOfMemory | None = None


def judge(evidence: Evidence) -> Verdict:
    """The verdict on an attempt whose container has ended or is gone."""
    found = _out_of_memory(evidence)
    verdict = (
        _absent(evidence)
        or _rebooted(evidence)
        or _stopped(evidence)
        or _over_memory(evidence, found)
        or _withdrawn(evidence)
        or _unseen(evidence)
        or _never_began(evidence)
        or _cut_short(evidence)
        or _ended_by_itself(evidence)
    )
    seen = evidence.observation
    if seen.state is SlotState.ABSENT:
        return verdict
    return Verdict(
        verdict.state,
        verdict.reason,
        verdict.message,
        exit_code=seen.exit_code,
        signal=_signal(seen.exit_code),
        out_of_memory=found,
    )


def rests_on_oom_flag(evidence: Evidence) -> bool:
    """Whether only the engine's flag, which comes late, can tell if the container ran out of memory."""
    seen = evidence.observation
    if seen.state is SlotState.ABSENT or seen.oom_flag:
        return False
    flagged = replace(evidence, observation=replace(seen, oom_flag=True))
    return _out_of_memory(evidence) is None and _out_of_memory(flagged) is not None


def _absent(evidence: Evidence) -> Verdict | None:
    if evidence.observation.state is not SlotState.ABSENT:
        return None
    if evidence.rebooted:
        return _reboot()
    if evidence.stop:
        return _stop(evidence, evidence.stop)
    message = (
        "The container disappeared and nobody saw its end; something else on the worker host removed it. "
        "Start the run again, and look there for a `docker rm` or a clean-up job that prunes containers."
    )
    return Verdict(State.FAILED, Reason.CONTAINER_VANISHED, message)


def _rebooted(evidence: Evidence) -> Verdict | None:
    """An end that came with the host's: by a power cut, which nobody saw, or by its shutdown.

    A shutdown signals the container, and what a program says then is its own affair: it tidies up and exits 0, as it
    would once its work is done. Where nobody can tell when the shutdown began, an end by those signals is its work.
    """
    seen = evidence.observation
    if evidence.rebooted:
        by_signal = seen.exit_code in ENDED_BY_STOP and evidence.shutdown is not False
        if by_signal or seen.end_unseen:
            return _reboot()
    return _shutdown(seen.exit_code) if evidence.shutdown and not evidence.stop else None


def _reboot() -> Verdict:
    message = "The worker host was restarted during the run; start the run again."
    return Verdict(State.FAILED, Reason.HOST_REBOOT, message)


def _shutdown(code: int | None) -> Verdict:
    message = (
        f"The worker host was shut down during the run, and the program ended with exit code {code} after that had "
        "begun; start the run again."
    )
    return Verdict(State.FAILED, Reason.HOST_REBOOT, message)


def _stopped(evidence: Evidence) -> Verdict | None:
    return _stop(evidence, evidence.stop) if evidence.stop else None


def _stop(evidence: Evidence, cause: StopCause) -> Verdict:
    if cause is StopCause.TIMEOUT:
        message = (
            f"The run was stopped because it took longer than its time limit of {evidence.timeout_seconds:g} s; "
            "raise `timeout` in the pipeline's metadata if it needs more."
        )
        return Verdict(State.TIMED_OUT, cause.reason, message)
    messages = {
        StopCause.CANCEL: "The run was cancelled.",
        StopCause.DRAIN: "The run was stopped because its agent was drained and the time for that was over.",
        StopCause.SUPERSEDED: "The attempt was stopped because the control plane had given it up as lost.",
        StopCause.ORPHAN: "The attempt was stopped because the control plane no longer knows it.",
    }
    return Verdict(State.CANCELLED, cause.reason, messages[cause])


def _over_memory(evidence: Evidence, found: OutOfMemory | None) -> Verdict | None:
    if found is None:
        return None
    peak = f"its peak was {format_size(found.peak_bytes)}" if found.peak_bytes is not None else "its peak is unknown"
    code = evidence.observation.exit_code
    survived = " The program itself went on and exited 0, but what the kernel killed is missing." if code == 0 else ""
    message = (
        f"Killed by the kernel at the hard memory limit of {format_size(found.limit_bytes)} ({peak}; process: "
        f"{found.process}): raise `mem_hard_limit` or let the program use less.{survived}"
    )
    return Verdict(State.FAILED, Reason.OOM_KILLED, message)


def _withdrawn(evidence: Evidence) -> Verdict | None:
    if not evidence.withdrawn or evidence.observation.exit_code != KILLED:
        return None
    message = (
        "The agent was interrupted while it let the program begin, and killed it before it knew that it had begun; "
        "start the run again."
    )
    return Verdict(State.FAILED, Reason.RUNTIME, message)


def _unseen(evidence: Evidence) -> Verdict | None:
    seen = evidence.observation
    if not seen.end_unseen:
        return None
    how = (
        ", and how is not known: the Docker engine was restarted meanwhile and lost its exit code"
        if seen.exit_code is None
        else f" with {seen.exit_code}, which is either the program's own exit code or what Docker gives for an end it "
        "did not see, as after a restart of the engine"
    )
    message = f"The container has ended{how}. The log may tell; start the run again if the program was not done."
    return Verdict(State.FAILED, Reason.RUNTIME, message)


def _never_began(evidence: Evidence) -> Verdict | None:
    seen = evidence.observation
    if seen.error and not evidence.released:
        return Verdict(State.FAILED, Reason.RUNTIME, f"The container could not be started: {seen.error.rstrip('.')}.")
    if not evidence.released or (seen.wrapper_failed and seen.exit_code == WRAPPER_FAILED):
        message = (
            f"The start wrapper ended with exit code {seen.exit_code} before the program began; its message is in the "
            "log. The runner image or the worker host needs mending, not the pipeline."
        )
        return Verdict(State.FAILED, Reason.WRAPPER, message)
    return None


def _cut_short(evidence: Evidence) -> Verdict | None:
    """An end that the program chose itself, because somebody else's signal told it to end."""
    outside, code = evidence.outside, evidence.observation.exit_code
    if outside is None or _signal(code) is not None:
        return None
    message = (
        f"The program ended with exit code {code}, {outside.seconds:.1f} s after it got signal {outside.number} "
        f"({_signal_name(outside.number)}), which Fast-Flow did not send: it was cut short. {_WHO_SENDS_SIGNALS}"
    )
    return Verdict(State.FAILED, Reason.SIGNAL, message)


def _ended_by_itself(evidence: Evidence) -> Verdict:
    code = evidence.observation.exit_code
    if code == 0:
        return Verdict(State.SUCCEEDED, Reason.NONE, _shutdown_in_doubt(evidence))
    number = _signal(code)
    if number is None:
        message = f"The program ended with exit code {code}; the log tells why. {_shutdown_in_doubt(evidence)}"
        return Verdict(State.FAILED, Reason.EXIT_CODE, message.rstrip())
    reading = evidence.reading
    if number == signals.SIGKILL and reading and reading.oom_kills and reading.limit_hits == 0:
        message = (
            "Killed because the worker host itself ran out of memory, while the run was within its limit: "
            "the host promises more memory than it has."
        )
        return Verdict(State.FAILED, Reason.SIGNAL, message)
    message = f"The program was ended by signal {number} ({_signal_name(number)}), which Fast-Flow did not send."
    if number in (signals.SIGKILL, signals.SIGTERM):
        message += f" {_WHO_SENDS_SIGNALS}"
    return Verdict(State.FAILED, Reason.SIGNAL, message)


def _shutdown_in_doubt(evidence: Evidence) -> str:
    if not evidence.rebooted or evidence.shutdown is not None:
        return ""
    return (
        "It ended while no agent was there, and the worker host was restarted after that: whether it was done or a "
        "shutdown of the host cut it short is not known."
    )


def _out_of_memory(evidence: Evidence) -> OutOfMemory | None:
    """Whether the kernel killed a process of the container at its memory limit, and what says so."""
    reading = evidence.reading or Reading()
    proof = _proof(evidence, reading)
    if proof is None:
        return None
    return OutOfMemory(
        limit_bytes=evidence.limits.memory_hard_bytes,
        peak_bytes=reading.usage.peak_memory_bytes,
        process=", ".join(dict.fromkeys(evidence.victims)) or "unknown",
        evidence=proof,
    )


def _proof(evidence: Evidence, reading: Reading) -> str | None:
    if evidence.cgroup == "v2" and reading.oom_kills is not None:
        if not reading.oom_kills or reading.limit_hits == 0:
            return None
        group = f", oom_group_kill {reading.oom_group_kills}" if reading.oom_group_kills is not None else ""
        return f"memory.events of the slot's group: oom_kill {reading.oom_kills}{group}"
    if evidence.oom_seen:
        return "memory.oom_control of the container's group, seen by the agent while the container lived"
    # The counter of version 1 counts the host's own shortage too; at the limit there is a peak.
    if reading.oom_kills and evidence.peaked:
        return f"memory.oom_control of the container's group: oom_kill {reading.oom_kills}"
    if evidence.victims:
        return f"the kernel's log: oom-kill in the slot's group, {len(evidence.victims)} at its memory limit"
    if evidence.observation.oom_flag and evidence.peaked:
        code = evidence.observation.exit_code
        return f"exit code {code}, the engine's OOMKilled flag and a peak of at least {PEAK_SHARE:.0%} of the limit"
    return None


def _signal(exit_code: int | None) -> int | None:
    """The signal an exit code stands for by the shell's rule (128 + n), None for any other code."""
    if exit_code is None or not 128 < exit_code <= 128 + signals.SIGRTMAX:
        return None
    return exit_code - 128


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return "a real-time signal"
