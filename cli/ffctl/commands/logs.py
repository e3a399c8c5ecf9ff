"""`ffctl logs`: prints a run's output, byte for byte."""

from collections.abc import Callable

import click
from fastflow.ids import short
from fastflow.v1 import logs_pb2, runs_pb2

from ffctl import failures, follow, output
from ffctl.commands.run import conclude, write_output
from ffctl.connection import Connection
from ffctl.interrupts import Interrupts
from ffctl.options import output_option, run_argument, server_option
from ffctl.progress import Progress
from ffctl.session import connected, still_trying


@click.command("logs")
@run_argument
@click.option("--follow", "-f", "following", is_flag=True, help="Go on until the run ended; exit as `run --follow`.")
@click.option("--attempt", type=click.IntRange(min=1), metavar="N", help="Of this attempt.  [default: the newest]")
@click.option("--tail", type=click.IntRange(min=1), metavar="N", help="Only the last N lines there are now.")
@click.option("--from", "offset", type=click.IntRange(min=0), metavar="OFFSET", help="From this byte on.")
@output_option
@server_option
@click.pass_context
def command(
    context: click.Context,
    run: str,
    following: bool,
    attempt: int | None,
    tail: int | None,
    offset: int | None,
    as_json: bool,
) -> int:
    """Prints the output of RUN to stdout, byte for byte (secrets masked).

    \b
    Example: ffctl logs -f 1a2b3c4d --tail 20
    """
    if tail and offset is not None:
        raise click.UsageError("--tail and --from exclude each other")
    position = follow.Position(attempt=attempt or 0, offset=offset or 0, tail_lines=tail or 0)
    sink = write_message if as_json else write_output

    async def work(connection: Connection) -> int:
        if following:
            return await _follow(connection, run, position, sink)
        return await _print(connection, run, position, sink)

    return connected(context, work)


def write_message(message: logs_pb2.ReadLogResponse, _stop: Callable[[], bool]) -> int:
    """Writes a message of the log as one line of JSON (a sink of follow.Follower)."""
    output.stream_json(message)
    return len(message.data)


async def _follow(connection: Connection, name: str, position: follow.Position, sink: follow.Sink) -> int:
    # The whole id first: with a short one each reconnection could meet another run of the same digits.
    request = runs_pb2.GetRunRequest(id=name)
    run = (await connection.call(connection.runs.GetRun, request, on_lost=still_trying)).run
    progress = Progress(f"run {short(run.id)}")
    with Interrupts() as interrupts:
        follower = follow.Follower(connection, run.id, progress, interrupts, sink=sink, position=position)
        run = await follower.until_end()
    conclude(run, progress, hint=True)
    return follow.exit_code(run)


async def _print(connection: Connection, name: str, position: follow.Position, sink: follow.Sink) -> int:
    notes = follow.Notes(output.say)
    printed = 0

    def counting(message: logs_pb2.ReadLogResponse, stop: Callable[[], bool]) -> int:
        nonlocal printed
        for loss in message.losses:
            notes.loss(message.attempt, loss)
        printed += len(message.data)
        return sink(message, stop)

    await follow.read_once(connection, name, position, counting)
    if not printed and not position.offset:
        request = runs_pb2.GetRunRequest(id=name)
        run = (await connection.call(connection.runs.GetRun, request, on_lost=still_trying)).run
        output.say(f"no output{'' if run.HasField('end_time') else ' yet'}: run {short(run.id)} is {_now(run)}")
    return failures.SUCCEEDED


def _now(run: runs_pb2.Run) -> str:
    return follow.doing(run).lower()
