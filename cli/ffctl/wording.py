"""Numbers, times and states as people read them."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from fastflow.pipelines.sizes import format_size
from fastflow.v1 import agents_pb2, limits_pb2, pipelines_pb2, runs_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

TERMINAL = frozenset(
    {
        runs_pb2.RUN_STATE_SUCCEEDED,
        runs_pb2.RUN_STATE_FAILED,
        runs_pb2.RUN_STATE_CANCELLED,
        runs_pb2.RUN_STATE_TIMED_OUT,
        runs_pb2.RUN_STATE_LOST,
    }
)
"""States after which nothing more happens to a run."""

LIVE = frozenset(
    {
        runs_pb2.RUN_STATE_ASSIGNED,
        runs_pb2.RUN_STATE_PREPARING,
        runs_pb2.RUN_STATE_RUNNING,
        runs_pb2.RUN_STATE_STOPPING,
    }
)
"""States in which an agent has the run; their message tells of its absence."""

SAID_OTHERWISE = frozenset({runs_pb2.REASON_EXIT_CODE, runs_pb2.REASON_CANCEL_REQUESTED, runs_pb2.REASON_TIMEOUT})
"""Reasons that a run's exit code or its state tells already."""

STYLES = {
    "QUEUED": "yellow",
    "ASSIGNED": "cyan",
    "PREPARING": "cyan",
    "RUNNING": "blue",
    "STOPPING": "magenta",
    "SUCCEEDED": "green",
    "FAILED": "red",
    "CANCELLED": "magenta",
    "TIMED_OUT": "red",
    "LOST": "red",
    "READY": "green",
    "INVALID": "red",
    "DISABLED": "yellow",
    "WAITING": "yellow",
    "ACTIVE": "green",
    "SUSPECT": "yellow",
    "OFFLINE": "red",
    "DRAINING": "yellow",
    "QUARANTINED": "red",
}
"""Colour of each state's name, for rich."""

UNKNOWN = "–"
"""Shown for what is not known (yet); never a zero."""


def run_state(value: runs_pb2.RunState) -> str:
    """Returns "SUCCEEDED" for RUN_STATE_SUCCEEDED; a state of a newer server by its number."""
    return _name(runs_pb2.RunState.Name, value, "RUN_STATE_")


def reason(value: runs_pb2.Reason) -> str:
    """Returns "OOM_KILLED" for REASON_OOM_KILLED, "" for none."""
    return _name(runs_pb2.Reason.Name, value, "REASON_") if value else ""


def pipeline_state(value: pipelines_pb2.PipelineState) -> str:
    """Returns "READY" for PIPELINE_STATE_READY."""
    return _name(pipelines_pb2.PipelineState.Name, value, "PIPELINE_STATE_")


def environment_state(value: pipelines_pb2.EnvironmentState) -> str:
    """Returns "READY" for ENVIRONMENT_STATE_READY."""
    return _name(pipelines_pb2.EnvironmentState.Name, value, "ENVIRONMENT_STATE_")


def agent_state(value: agents_pb2.AgentState) -> str:
    """Returns "ACTIVE" for AGENT_STATE_ACTIVE."""
    return _name(agents_pb2.AgentState.Name, value, "AGENT_STATE_")


def loss_kind(value: runs_pb2.LogLossKind) -> str:
    """Returns "TRUNCATED" for LOG_LOSS_KIND_TRUNCATED."""
    return _name(runs_pb2.LogLossKind.Name, value, "LOG_LOSS_KIND_")


def size(count: int) -> str:
    """Returns bytes as "512 MiB", "1.5 GiB", "17 bytes": rounded as in the server's own sentences."""
    return format_size(count) if count >= 1024 else f"{count} byte{'' if count == 1 else 's'}"


def count(number: int, noun: str) -> str:
    """Returns "1 warning", "3 warnings"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def cores(milli_cores: int) -> str:
    """Returns "1 core", "0.5 cores"."""
    return f"{milli_cores / 1000:.3g} core{'' if milli_cores == 1000 else 's'}"


def span(seconds: float) -> str:
    """Returns a duration as "0.29 s", "12 s", "3 min 5 s", "2 h 5 min", "3 d 4 h"."""
    seconds = max(0.0, seconds)
    if seconds < 9.995:
        return f"{seconds:.2f} s" if seconds < 0.995 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for unit, length, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length} {unit}" + (f" {rest} {smaller}" if rest else "")
    raise AssertionError("a minute or more is one of the units above")


def ago(moment: Timestamp, now: float) -> str:
    """Returns "just now", "12 s ago", "3 min ago"; `now` is seconds since 1970 UTC."""
    seconds = now - moment.seconds
    if seconds < 2:
        return "just now"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return f"{int(seconds)} s ago"


def digest(value: str) -> str:
    """Returns the beginning of a digest, "sha256:0123456789ab…", enough to recognize it by."""
    kind, separator, digits = value.partition(":")
    return f"{kind}{separator}{digits[:12]}…" if len(digits) > 12 else value


def local(moment: Timestamp) -> str:
    """Returns a moment in the local time zone (set TZ for another), "2025-11-23 20:31:05"."""
    return datetime.fromtimestamp(seconds_of(moment)).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def clock(moment: Timestamp) -> str:
    """Returns the time of day in the local time zone, "20:31:05"."""
    return datetime.fromtimestamp(seconds_of(moment)).astimezone().strftime("%H:%M:%S")


def seconds_of(value: Timestamp | Duration) -> float:
    """Returns a protobuf time or duration in seconds."""
    return value.seconds + value.nanos / 1e9


def took(run: runs_pb2.Run | runs_pb2.Attempt, now: float) -> str:
    """Returns for how long user code ran, or has been running; UNKNOWN where it never did."""
    if not run.HasField("start_time"):
        return UNKNOWN
    end = seconds_of(run.end_time) if run.HasField("end_time") else now
    return span(end - seconds_of(run.start_time))


def limits(value: limits_pb2.Limits) -> str:
    """Returns "1 core, 512 MiB (soft: 0.8 cores, 400 MiB)"."""
    hard = f"{cores(value.cpu_hard_milli_cores)}, {size(value.memory_hard_bytes)}"
    soft = [cores(value.cpu_soft_milli_cores)] if value.cpu_soft_milli_cores else []
    soft += [size(value.memory_soft_bytes)] if value.memory_soft_bytes else []
    return hard + (f" (soft: {', '.join(soft)})" if soft else "")


def retry(value: limits_pb2.RetryPolicy) -> str:
    """Returns after which endings a run is started again, "when its agent is lost, 3 times at most"."""
    if not (value.on_lost and value.attempts):
        return "never"
    return f"when its agent is lost, {'once' if value.attempts == 1 else f'{value.attempts} times'} at most"


def warning(value: runs_pb2.SoftLimitWarning) -> str:
    """Returns one crossing of a soft limit as a sentence without its times."""
    if value.kind == runs_pb2.SOFT_LIMIT_KIND_LOG_BACKLOG:
        verb = "was paused" if value.HasField("clear_time") else "is paused"
        return f"{verb}: {size(value.peak)} of output waited for delivery, the worker keeps {size(value.limit)}"
    if value.kind == runs_pb2.SOFT_LIMIT_KIND_CPU:
        return f"CPU above its soft limit of {cores(value.limit)}, peak {cores(value.peak)}"
    return f"memory above its soft limit of {size(value.limit)}, peak {size(value.peak)}"


def _name(name_of: Callable[[Any], str], value: int, prefix: str) -> str:
    try:
        return name_of(value).removeprefix(prefix)
    except ValueError:
        return str(value)
