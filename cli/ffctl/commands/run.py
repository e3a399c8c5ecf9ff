"""`ffctl run`: queues a run, and waits for it or follows its output where that is asked for."""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click
from fastflow.ids import new_id, short
from fastflow.pipelines.environment import read_assignments
from fastflow.v1 import logs_pb2, runs_pb2

from ffctl import failures, follow, output
from ffctl.connection import Connection
from ffctl.interrupts import Interrupts
from ffctl.local import instead, local_options
from ffctl.options import complete_pipeline, output_option, server_option
from ffctl.progress import Progress
from ffctl.session import connected, still_trying

Function = TypeVar("Function", bound=Callable[..., Any])


def queueing_options(command: Function) -> Function:
    """Adds what commands that queue a run have in common, as `following`, `waiting` and `request_id`."""
    options = (
        click.option(
            "--follow", "-f", "following", is_flag=True, help="Print the output as it is written, until the end."
        ),
        click.option("--wait", "-w", "waiting", is_flag=True, help="Wait for the end without printing the output."),
        click.option(
            "--request-id",
            metavar="ID",
            help="Makes the command safe to repeat: the same ID gives the same run.  [default: a random one]",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command("run")
@click.argument("pipeline", metavar="NAME", shell_complete=complete_pipeline)
@click.option(
    "--env",
    "-e",
    "environment",
    metavar="K=V",
    multiple=True,
    help="Environment variable of the run; may be repeated. K alone takes the value from your own environment.",
)
@click.option(
    "--ref", metavar="COMMIT|BRANCH", default="", help="Run the code at this commit or branch.  [default: the newest]"
)
@queueing_options
@local_options
@output_option
@server_option
@click.pass_context
def command(
    context: click.Context,
    pipeline: str,
    environment: tuple[str, ...],
    ref: str,
    following: bool,
    waiting: bool,
    request_id: str | None,
    as_json: bool,
) -> int:
    """Runs the pipeline NAME.

    Prints the run's id and returns; with --follow or --wait it stays until the run ended, and exits with 0 if the
    run succeeded and 1 otherwise.

    \b
    Example: ffctl run etl --env DAY=2025-11-23 --follow
             ffctl run --local pipelines/etl --env-file .env
    """
    instead(context, pipeline, environment)
    request = runs_pb2.CreateRunRequest(
        pipeline=pipeline, environment=parse_environment(environment), request_id=request_id or new_id(), ref=ref
    )
    return queue(context, "CreateRun", request, following=following, waiting=waiting, as_json=as_json)


def queue(
    context: click.Context,
    method: str,
    request: runs_pb2.CreateRunRequest | runs_pb2.RerunRunRequest,
    *,
    following: bool,
    waiting: bool,
    as_json: bool,
) -> int:
    """Makes the call that queues a run, waits for or follows it where asked to, and returns the exit code."""
    if following and as_json:
        raise click.UsageError("--follow prints the program's output; use --wait with -o json")

    async def work(connection: Connection) -> int:
        call = getattr(connection.runs, method)
        return await _run(connection, call, request, following=following, waiting=waiting, as_json=as_json)

    return connected(context, work)


def parse_environment(assignments: tuple[str, ...]) -> dict[str, str]:
    """Returns the variables of "K=V" and "K" (value from our environment). The server judges the names."""
    try:
        return read_assignments(assignments, os.environ)
    except ValueError as fault:
        raise click.BadParameter(str(fault), param_hint="--env") from None


async def _run(
    connection: Connection, call: Any, request: Any, *, following: bool, waiting: bool, as_json: bool
) -> int:
    try:
        answer = await connection.call(call, request, on_lost=still_trying)
    except asyncio.CancelledError:
        output.say(f"it is not known whether the run was created; repeat with --request-id {request.request_id}")
        raise
    run = answer.run
    if not (following or waiting):
        return _queued(run, as_json)
    if not (following or as_json):
        output.answer(short(run.id))
    progress = Progress(f"run {short(run.id)}")
    with Interrupts() as interrupts:
        follower = follow.Follower(connection, run.id, progress, interrupts, sink=write_output if following else None)
        run = await follower.until_end()
    if as_json:
        output.show_json(run)
    conclude(run, progress, hint=True)
    return follow.exit_code(run)


def _queued(run: runs_pb2.Run, as_json: bool) -> int:
    if as_json:
        output.show_json(run)
    else:
        output.answer(short(run.id))
    if sys.stderr.isatty():
        output.say(f"{follow.doing(run)}; follow it with: ffctl logs -f {short(run.id)}")
    return failures.SUCCEEDED


def write_output(message: logs_pb2.ReadLogResponse, stop: Callable[[], bool]) -> int:
    """Writes the program's bytes to stdout (a sink of follow.Follower)."""
    return output.write_bytes(message.data, stop)


def conclude(run: runs_pb2.Run, progress: Progress, *, hint: bool) -> None:
    """Says on stderr how the run ended."""
    progress.note(follow.verdict(run, time.time()))
    if hint and follow.exit_code(run) != failures.SUCCEEDED:
        progress.note(f"More: ffctl runs show {short(run.id)}")
