"""Everything about one run, for `ffctl runs show`."""

import shlex
import time
from collections.abc import Sequence

from fastflow.ids import short
from fastflow.v1 import limits_pb2, runs_pb2
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ffctl import wording
from ffctl.output import cell, facts, fit, table

Row = tuple[str, RenderableType]


def run_details(run: runs_pb2.Run, now: float) -> list[RenderableType]:
    """Returns what to print; `now` is seconds since 1970 UTC."""
    newest = run.attempts[-1] if run.attempts else None
    rows: list[Row] = [
        ("Run", cell(f"{short(run.id)}  ({run.id})")),
        ("Pipeline", cell(run.pipeline)),
        ("State", state_line(run)),
    ]
    if run.message:
        rows.append(("", cell(run.message)))
    elif run.state == runs_pb2.RUN_STATE_PREPARING:
        where = f"ffctl pipelines show {shlex.quote(run.pipeline)}"
        rows.append(("", cell(f"its agent fetches code and packages; how far packages are: {where}")))
    rows += _times(run, now)
    if newest is not None:
        rows.append(("Agent", cell(newest.agent + (f"  (attempt {run.attempt})" if run.attempt > 1 else ""))))
    rows.append(("Limits", cell(_limits(run))))
    if run.HasField("retry"):
        rows.append(("Retry", wording.retry(run.retry)))
    if newest is not None:
        rows += _attempt_rows(newest)
        rows.append(("Log", cell(_log(run, newest))))
    rows += _origin(run)
    shown: list[RenderableType] = [facts(rows)]
    if len(run.attempts) > 1:
        shown += ["", attempts_table(run.attempts, now)]
    if run.placements:
        shown += ["", placements_table(run.placements)]
    return shown


def state_line(run: runs_pb2.Run | runs_pb2.Attempt) -> Text:
    """Returns the coloured state with reason and exit code."""
    name = wording.run_state(run.state)
    line = Text().append_text(cell(name, wording.STYLES.get(name, "")))
    if run.reason:
        line.append(f"  {wording.reason(run.reason)}")
    if run.HasField("exit_code"):
        line.append(f"  exit code {run.exit_code}")
    if isinstance(run, runs_pb2.Attempt) and run.HasField("signal"):
        line.append(f"  signal {run.signal}")
    return line


def attempts_table(attempts: Sequence[runs_pb2.Attempt], now: float) -> Table:
    """Returns one row per attempt."""
    grid = table("ATTEMPT", "AGENT", "STATE", "ASSIGNED", "TOOK", "WHAT HAPPENED")
    for attempt in attempts:
        name = wording.run_state(attempt.state)
        grid.add_row(
            str(attempt.number),
            cell(attempt.agent),
            cell(name, wording.STYLES.get(name, "")),
            wording.clock(attempt.assign_time),
            wording.took(attempt, now),
            cell(_what_happened(attempt)),
        )
    return fit(grid, AGENT=8, **{"WHAT HAPPENED": 20})


def _what_happened(attempt: runs_pb2.Attempt) -> str:
    late = f"; {_late_result(attempt.late_result)}" if attempt.HasField("late_result") else ""
    return (attempt.message or wording.reason(attempt.reason)) + late


def _late_result(late: runs_pb2.LateResult) -> str:
    """What an agent told once it was back, which changed nothing any more."""
    facts = [wording.run_state(late.state)]
    facts += [wording.reason(late.reason)] if late.reason and late.reason not in wording.SAID_OTHERWISE else []
    facts += [f"exit code {late.exit_code}"] if late.HasField("exit_code") else []
    return f"told later: {', '.join(facts)} at {wording.clock(late.end_time)}. {late.message}".rstrip()


def placements_table(placements: Sequence[runs_pb2.Placement]) -> Table:
    """Returns why a run waits, one row per agent."""
    grid = table("AGENT", "FITS", "WHY")
    for placement in placements:
        fits = cell("yes", "green") if placement.fits else cell("no", "red")
        grid.add_row(cell(placement.agent), fits, cell(placement.explanation))
    return grid


def _times(run: runs_pb2.Run, now: float) -> list[Row]:
    rows: list[Row] = [("Queued", f"{wording.local(run.create_time)}  ({wording.ago(run.create_time, now)})")]
    if run.HasField("start_time"):
        waited = wording.seconds_of(run.start_time) - wording.seconds_of(run.create_time)
        rows.append(("Started", f"{wording.local(run.start_time)}  (waited {wording.span(waited)})"))
    if run.HasField("end_time"):
        after = f"  (ran {wording.took(run, now)})" if run.HasField("start_time") else ""
        rows.append(("Ended", f"{wording.local(run.end_time)}{after}"))
    elif run.HasField("start_time"):
        rows.append(("Running", f"for {wording.took(run, now)}"))
    return rows


def _limits(run: runs_pb2.Run) -> str:
    text = wording.limits(run.limits)
    timeout = wording.seconds_of(run.timeout)
    return text + (f", stopped after {wording.span(timeout)}" if timeout else "")


def _attempt_rows(attempt: runs_pb2.Attempt) -> list[Row]:
    rows: list[Row] = []
    if attempt.HasField("late_result"):
        rows.append(("Late result", cell(_late_result(attempt.late_result))))
    rows.append(("Usage", cell(usage(attempt.usage))))
    if attempt.state == runs_pb2.RUN_STATE_RUNNING and attempt.usage.HasField("working_set_bytes"):
        rows.append(("Now", cell(usage_now(attempt.usage))))
    if attempt.HasField("out_of_memory"):
        rows.append(("Out of memory", cell(out_of_memory(attempt.out_of_memory))))
        if attempt.out_of_memory.evidence:
            rows.append(("", cell(f"according to {attempt.out_of_memory.evidence}", "dim")))
    for number, warning in enumerate(attempt.warnings):
        rows.append(("Warnings" if number == 0 else "", cell(warning_line(warning), "yellow")))
    for number, loss in enumerate(attempt.log_losses):
        lost = wording.size(loss.bytes) if loss.HasField("bytes") else "bytes"
        text = f"{wording.loss_kind(loss.kind)}: {lost} lost at offset {loss.offset}. {loss.message}"
        rows.append(("Log losses" if number == 0 else "", cell(text.rstrip(), "yellow")))
    return rows


def usage(value: limits_pb2.Usage) -> str:
    """Returns peak memory, CPU seconds and throttled time; what the host could not tell is "unavailable"."""
    peak = wording.size(value.peak_memory_bytes) if value.HasField("peak_memory_bytes") else "unavailable"
    cpu = f"{value.cpu_usec / 1e6:.2f} s" if value.HasField("cpu_usec") else "unavailable"
    throttled = f"{value.throttled_usec / 1e6:.2f} s" if value.HasField("throttled_usec") else "unavailable"
    return f"peak memory {peak}, CPU time {cpu}, throttled {throttled}"


def usage_now(value: limits_pb2.Usage) -> str:
    """Returns what the last sample saw: memory that can not be taken back, CPU, processes."""
    parts = [f"memory {wording.size(value.working_set_bytes)} without page cache"]
    parts += [wording.cores(value.cpu_milli_cores)] if value.HasField("cpu_milli_cores") else []
    parts += [f"{value.pids} processes and threads"] if value.HasField("pids") else []
    return ", ".join(parts)


def out_of_memory(verdict: runs_pb2.OutOfMemory) -> str:
    """Returns which limit was passed, with what peak, and which process the kernel chose."""
    peak = wording.size(verdict.peak_bytes) if verdict.HasField("peak_bytes") else "unavailable"
    return (
        f"limit {wording.size(verdict.limit_bytes)} (mem_hard_limit), peak {peak}, "
        f"process {verdict.process or 'unknown'}"
    )


def warning_line(warning: runs_pb2.SoftLimitWarning) -> str:
    """Returns one crossing of a soft limit with its times."""
    since = wording.clock(warning.raise_time)
    if warning.HasField("clear_time"):
        times = f"{since} to {wording.clock(warning.clear_time)} ({wording.span(warning.seconds_above)})"
    else:
        times = f"since {since}"
    return f"{times}  {wording.warning(warning)}"


def _log(run: runs_pb2.Run, attempt: runs_pb2.Attempt) -> str:
    if attempt.HasField("log_remove_time"):
        removed = wording.local(attempt.log_remove_time)
        return f"removed by retention on {removed} (setting {attempt.log_removed_by})"
    state = "complete" if attempt.log_sealed else "still growing"
    if not attempt.log_sealed and run.state in wording.TERMINAL:
        state = "the end has not arrived yet"
    return f"{wording.size(attempt.log_bytes)}, {state}: ffctl logs {short(run.id)}"


def _origin(run: runs_pb2.Run) -> list[Row]:
    """What exactly ran."""
    rows: list[Row] = []
    if run.HasField("rerun"):
        rows.append(("Repeats", cell(_repeats(run))))
    rows += _code(run)
    if run.environment_names:
        rows.append(("Parameters", cell(", ".join(run.environment_names))))
    if run.default_environment_names:
        rows.append(("Defaults", cell(", ".join(run.default_environment_names))))
    if run.provenance.secret_versions:
        versions = sorted(run.provenance.secret_versions.items())
        rows.append(("Secrets", cell(", ".join(f"{name} (version {version})" for name, version in versions))))
    python = run.provenance.python_version or run.python_version
    if python:
        uv = f", uv {run.provenance.uv_version}" if run.provenance.uv_version else ""
        rows.append(("Python", cell(f"{python}{uv}")))
    if run.provenance.image:
        rows.append(("Image", cell(f"{run.provenance.image}  {wording.digest(run.provenance.image_digest)}".rstrip())))
    if run.provenance.packages:
        rows.append(("Packages", cell(", ".join(run.provenance.packages))))
    return rows


def is_prepared(run: runs_pb2.Run) -> bool:
    """Tells whether an agent said what the run got: packages, image, Python."""
    return bool(run.provenance.image or run.provenance.uv_version)


def _repeats(run: runs_pb2.Run) -> str:
    former = short(run.rerun.run_id)
    if run.rerun.latest:
        return f"{former}: its parameters, with the newest code"
    if is_prepared(run) and run.rerun.packages and list(run.rerun.packages) != list(run.provenance.packages):
        return f"{former}: its code and parameters, but other packages (ffctl runs diff {former} {short(run.id)})"
    return f"{former}: its code, parameters and packages"


def _code(run: runs_pb2.Run) -> list[Row]:
    rows: list[Row] = []
    if run.commit:
        rows.append(("Commit", cell(run.commit + (f"  ({run.ref})" if run.ref not in ("", run.commit) else ""))))
        author = f"  ({run.commit_author})" if run.commit_author else ""
        if run.commit_subject or author:
            rows.append(("", cell(f"{run.commit_subject}{author}".strip())))
    parts = [f"tree {run.tree}"] if run.tree else []
    parts += [f"bundle {wording.digest(run.bundle_digest)}"] if run.bundle_digest else []
    if parts:
        rows.append(("Code", cell(", ".join(parts))))
    return rows


def runs_table(runs: Sequence[runs_pb2.Run], now: float) -> Table:
    """Returns one row per run, newest first as the server sends them."""
    grid = table("RUN", "PIPELINE", "STATE", "CREATED", "TOOK", "AGENT", "REASON")
    for run in runs:
        name = wording.run_state(run.state)
        grid.add_row(
            short(run.id),
            cell(run.pipeline),
            cell(name, wording.STYLES.get(name, "")),
            wording.ago(run.create_time, now),
            wording.took(run, now),
            cell(run.attempts[-1].agent if run.attempts else wording.UNKNOWN),
            cell(_why(run)),
        )
    return fit(grid, PIPELINE=12, AGENT=8, REASON=10)


def waits_lines(runs: Sequence[runs_pb2.Run]) -> list[RenderableType]:
    """Returns one line per run that waits for a reason; a sentence has no room in the table."""
    lines: list[RenderableType] = [
        cell(f"{short(run.id)} waits: {run.message}", "yellow")
        for run in runs
        if run.state == runs_pb2.RUN_STATE_QUEUED and run.message
    ]
    return ["", *lines] if lines else []


def _why(run: runs_pb2.Run) -> str:
    if run.reason == runs_pb2.REASON_EXIT_CODE:
        return f"exit code {run.exit_code}"
    return "" if run.reason in wording.SAID_OTHERWISE else wording.reason(run.reason)


def seconds_now() -> float:
    """Returns the wall clock, for ages."""
    return time.time()
