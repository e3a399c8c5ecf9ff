"""`ffctl pipelines`: lists and shows what the server discovered, and validates a folder before it gets there."""

import time
from collections import Counter
from pathlib import Path

import click
from fastflow.pipelines.code import CODE_LIMIT
from fastflow.pipelines.discovery import Pipeline as FoundPipeline
from fastflow.pipelines.folder import FolderFault
from fastflow.pipelines.problems import Severity
from fastflow.pipelines.validation import Report, validate
from fastflow.v1 import pipelines_pb2
from rich.console import RenderableType
from rich.table import Table

from ffctl import environments, failures, output, wording
from ffctl.connection import Connection
from ffctl.failures import Failure
from ffctl.options import complete_pipeline, output_option, server_option, size
from ffctl.output import cell, facts, fit, table
from ffctl.session import ask, connected, pages


@click.group("pipelines")
def group() -> None:
    """Lists, shows and validates pipelines."""


@group.command("list")
@output_option
@server_option
@click.pass_context
def list_pipelines(context: click.Context, as_json: bool) -> None:
    """Lists pipelines by name.

    PACKAGES tells the worst that an agent says of a pipeline's packages, and how many say so: FAILED 1/3. Where it is
    FAILED, runs would fail there; `ffctl pipelines show` tells why.

    \b
    Example: ffctl pipelines list
    """

    async def work(connection: Connection) -> tuple[list[pipelines_pb2.Pipeline], bool]:
        request = pipelines_pb2.ListPipelinesRequest()
        return await pages(connection, connection.pipelines.ListPipelines, request, "pipelines")

    found, _ = connected(context, work)
    _show_list(found, as_json=as_json)


def _show_list(pipelines: list[pipelines_pb2.Pipeline], *, as_json: bool) -> None:
    if as_json:
        output.listing("pipelines", pipelines)
    elif pipelines:
        output.show(pipelines_table(pipelines))
    else:
        output.say(
            "No pipelines yet: a pipeline is a folder with a main.py. Where they are looked for: ffctl sources list"
        )


def pipelines_table(pipelines: list[pipelines_pb2.Pipeline], *, listed: bool = True) -> Table:
    """Returns one row per pipeline; of those that a server `listed` also how far packages are, and what is wrong."""
    packages = ["PACKAGES"] if listed else []
    grid = table("PIPELINE", "STATE", *packages, "CPU", "MEMORY", "DESCRIPTION")
    for pipeline in pipelines:
        name = wording.pipeline_state(pipeline.state)
        known = pipeline.limits.memory_hard_bytes > 0
        grid.add_row(
            cell(pipeline.name),
            cell(name, wording.STYLES.get(name, "")),
            *([environments.summary(pipeline)] if listed else []),
            f"{pipeline.limits.cpu_hard_milli_cores / 1000:g}" if known else wording.UNKNOWN,
            wording.size(pipeline.limits.memory_hard_bytes) if known else wording.UNKNOWN,
            cell(_note(pipeline) if listed else pipeline.description),
        )
    return fit(grid, PIPELINE=16, DESCRIPTION=20)


def _note(pipeline: pipelines_pb2.Pipeline) -> str:
    errors = [problem for problem in pipeline.problems if problem.severity != pipelines_pb2.PROBLEM_SEVERITY_WARNING]
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        return problem_line(errors[0]) + more
    if failure := environments.failure(pipeline):
        return failure
    if pipeline.problems:
        warnings = wording.count(len(pipeline.problems), "warning")
        return f"{pipeline.description} ({warnings})" if pipeline.description else warnings
    return pipeline.description


def problem_line(problem: pipelines_pb2.Problem) -> str:
    """Returns "pipeline.json: cpu_hard_limit: …"."""
    return ": ".join(part for part in (problem.file, problem.field, problem.message) if part)


@group.command("show")
@click.argument("name", shell_complete=complete_pipeline)
@output_option
@server_option
@click.pass_context
def show_pipeline(context: click.Context, name: str, as_json: bool) -> None:
    """Shows one pipeline: limits, problems, environment, packages.

    \b
    Example: ffctl pipelines show etl
    """
    answer = ask(context, "pipelines", "GetPipeline", pipelines_pb2.GetPipelineRequest(name=name))
    _show(answer.pipeline, as_json=as_json)


def _show(pipeline: pipelines_pb2.Pipeline, *, as_json: bool) -> None:
    if as_json:
        output.show_json(pipeline)
    else:
        output.show(facts(_rows(pipeline)))


def _rows(pipeline: pipelines_pb2.Pipeline) -> list[tuple[str, RenderableType]]:
    state = wording.pipeline_state(pipeline.state)
    rows: list[tuple[str, RenderableType]] = [
        ("Pipeline", cell(pipeline.name)),
        ("State", cell(state, wording.STYLES.get(state, ""))),
    ]
    for problem in pipeline.problems:
        warning = problem.severity == pipelines_pb2.PROBLEM_SEVERITY_WARNING
        rows.append(("Warning" if warning else "Error", cell(problem_line(problem), "yellow" if warning else "red")))
    if pipeline.description:
        rows.append(("Description", cell(pipeline.description)))
    if pipeline.tags:
        rows.append(("Tags", cell(", ".join(pipeline.tags))))
    if pipeline.limits.memory_hard_bytes:
        rows.append(("Limits", cell(wording.limits(pipeline.limits))))
    timeout = wording.seconds_of(pipeline.timeout)
    rows.append(("Timeout", wording.span(timeout) if timeout else "none"))
    if pipeline.HasField("retry"):
        rows.append(("Retry", wording.retry(pipeline.retry)))
    if pipeline.on_log_backlog == pipelines_pb2.ON_LOG_BACKLOG_PAUSE:
        rows.append(("Log backlog", "pauses the program"))
    rows.append(("Python", cell(pipeline.python_version or "the image's")))
    rows.append(("Requirements", _requirements(pipeline)))
    rows.extend(environments.environment_rows(pipeline, time.time()))
    for number, (name, value) in enumerate(sorted(pipeline.default_environment.items())):
        rows.append(("Environment" if number == 0 else "", cell(f"{name}={value}")))
    rows.append(("Metadata", cell(pipeline.metadata_file or "none: defaults")))
    rows.append(("Folder", cell("/".join(part for part in (pipeline.source, pipeline.path) if part))))
    if pipeline.commit:
        rows.append(("Commit", cell(pipeline.commit)))
    if pipeline.bundle_digest:
        rows.append(("Code", cell(pipeline.bundle_digest)))
    return rows


def _requirements(pipeline: pipelines_pb2.Pipeline) -> str:
    header = "header of main.py" if pipeline.has_script_header else ""
    return ", ".join(filter(None, ["requirements.txt" if pipeline.has_requirements else "", header])) or "none"


@group.command("validate")
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--code-limit",
    type=size,
    metavar="SIZE",
    default=CODE_LIMIT,
    show_default=True,
    help="The most code that a pipeline may have: what code_limit is on the server that it is for.",
)
@output_option
def validate_path(path: Path, code_limit: int, as_json: bool) -> int:
    """Checks all pipelines in the folder PATH; needs no server.

    PATH may be a repository or one pipeline's own folder. What a repository of the original, single-host Fast-Flow
    says that means nothing or something else here is told too. Exits with 1 if one is invalid or there is none.

    \b
    Example: ffctl pipelines validate ./pipelines
    """
    try:
        report = validate(path, code_limit)
    except FolderFault as fault:
        raise Failure(f"{path}: {fault}") from None
    pipelines = [_as_message(pipeline) for pipeline in report.pipelines]
    if as_json:
        output.listing("pipelines", pipelines)
    elif pipelines:
        output.show(pipelines_table(pipelines, listed=False), *_problem_lines(pipelines), *_summary(report))
    for note in report.notes:
        output.say(f"note: {note}")
    if not pipelines:
        output.say(f"There is no pipeline in {path}: a pipeline is a folder with a main.py.")
    return failures.SUCCEEDED if report.valid else failures.RUN_FAILED


def _problem_lines(pipelines: list[pipelines_pb2.Pipeline]) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for pipeline in pipelines:
        for problem in pipeline.problems:
            warning = problem.severity == pipelines_pb2.PROBLEM_SEVERITY_WARNING
            place = f"{pipeline.path or pipeline.name}{'/' if problem.file else ': '}"
            lines.append(
                cell("warning: " if warning else "error: ", "yellow" if warning else "red").append(
                    output.clean(f"{place}{problem_line(problem)}"), style="default"
                )
            )
    return ["", *lines] if lines else []


def _summary(report: Report) -> list[RenderableType]:
    states = Counter(pipeline.state.value for pipeline in report.pipelines)
    found = ", ".join(f"{count} {state}" for state, count in sorted(states.items(), reverse=True))
    problems = [
        wording.count(report.count(severity), severity.value.lower()) for severity in (Severity.ERROR, Severity.WARNING)
    ]
    counted = wording.count(len(report.pipelines), "pipeline")
    lines: list[RenderableType] = ["", cell(f"{counted}: {found}; {', '.join(problems)}")]
    if fields := report.without_effect:
        uses = ", ".join(f"{field} ({wording.count(number, 'pipeline')})" for field, number in fields.items())
        lines.append(cell(f"Fields of the original Fast-Flow without effect here: {uses}"))
    return lines


def _as_message(pipeline: FoundPipeline) -> pipelines_pb2.Pipeline:
    message = pipelines_pb2.Pipeline(
        name=pipeline.name,
        state=f"PIPELINE_STATE_{pipeline.state.value}",
        metadata_file=pipeline.metadata_file,
        has_requirements=pipeline.has_requirements,
        path=pipeline.path,
    )
    for problem in pipeline.problems:
        message.problems.add(
            severity=f"PROBLEM_SEVERITY_{problem.severity.value}",
            file=problem.file,
            field=problem.field,
            message=problem.message,
        )
    metadata = pipeline.metadata
    if metadata is not None:
        message.description = metadata.description
        message.tags.extend(metadata.tags)
        message.limits.cpu_hard_milli_cores = metadata.limits.cpu_hard_milli_cores
        message.limits.memory_hard_bytes = metadata.limits.memory_hard_bytes
        message.limits.cpu_soft_milli_cores = metadata.limits.cpu_soft_milli_cores
        message.limits.memory_soft_bytes = metadata.limits.memory_soft_bytes
        message.timeout.FromNanoseconds(round(metadata.timeout_seconds * 1e9))
        message.on_log_backlog = (
            pipelines_pb2.ON_LOG_BACKLOG_PAUSE
            if metadata.on_log_backlog == "pause"
            else pipelines_pb2.ON_LOG_BACKLOG_DROP
        )
        message.python_version = metadata.python_version
        message.default_environment.update(metadata.default_environment)
        if metadata.retry_on:
            message.retry.attempts = metadata.retry_attempts
            message.retry.on_lost = "lost" in metadata.retry_on
    return message
