"""`ffctl runs`: lists, shows, repeats, compares, cancels and gives up runs."""

import click
from fastflow.ids import new_id, short
from fastflow.v1 import runs_pb2

from ffctl import details, differences, follow, output, wording
from ffctl.commands.run import queue, queueing_options
from ffctl.connection import Connection
from ffctl.options import (
    complete_pipeline,
    complete_run,
    confirm,
    output_option,
    run_argument,
    server_option,
    span,
    yes_option,
)
from ffctl.session import ask, connected, pages

STATES = [name.removeprefix("RUN_STATE_").lower() for name in runs_pb2.RunState.keys()[1:]]
NEWEST = 20
"""Rows of a list without --limit: what fits on a screen."""


@click.group("runs")
def group() -> None:
    """Lists, shows, repeats, compares, cancels and gives up runs."""


@group.command("list")
@click.option("--pipeline", metavar="NAME", default="", shell_complete=complete_pipeline, help="Only its runs.")
@click.option(
    "--state", "states", type=click.Choice(STATES, case_sensitive=False), multiple=True, help="Only in it; repeatable."
)
@click.option(
    "--limit", type=click.IntRange(min=0), default=NEWEST, show_default=True, help="How many at most; 0 = all."
)
@output_option
@server_option
@click.pass_context
def list_runs(context: click.Context, pipeline: str, states: tuple[str, ...], limit: int, as_json: bool) -> None:
    """Lists runs, newest first.

    \b
    Example: ffctl runs list --pipeline etl --state failed
    """
    request = runs_pb2.ListRunsRequest(pipeline=pipeline, states=[f"RUN_STATE_{state.upper()}" for state in states])

    async def work(connection: Connection) -> tuple[list[runs_pb2.Run], bool]:
        return await pages(connection, connection.runs.ListRuns, request, "runs", limit)

    runs, more = connected(context, work)
    _show_list(runs, more=more, filtered=bool(pipeline or states), as_json=as_json)


def _show_list(runs: list[runs_pb2.Run], *, more: bool, filtered: bool, as_json: bool) -> None:
    if as_json:
        output.listing("runs", runs)
    elif runs:
        output.show(details.runs_table(runs, details.seconds_now()), *details.waits_lines(runs))
    elif filtered:
        output.say("No such runs. Leave out --pipeline and --state to see all.")
    else:
        output.say("No runs yet. Start one with: ffctl run NAME (ffctl pipelines list shows the names)")
    if more and not as_json:
        output.say("There are older ones: --limit 0 lists all.")


@group.command("show")
@run_argument
@output_option
@server_option
@click.pass_context
def show_run(context: click.Context, run: str, as_json: bool) -> None:
    """Shows one run: verdict, usage, why it waits, what exactly ran.

    \b
    Example: ffctl runs show 1a2b3c4d
    """
    _show(ask(context, "runs", "GetRun", runs_pb2.GetRunRequest(id=run)).run, as_json=as_json)


def _show(run: runs_pb2.Run, *, as_json: bool) -> None:
    if as_json:
        output.show_json(run)
    else:
        output.show(*details.run_details(run, details.seconds_now()))


@group.command("rerun")
@run_argument
@click.option("--latest", is_flag=True, help="With the newest code, limits and packages; only the parameters are kept.")
@queueing_options
@output_option
@server_option
@click.pass_context
def rerun_run(
    context: click.Context,
    run: str,
    latest: bool,
    following: bool,
    waiting: bool,
    request_id: str | None,
    as_json: bool,
) -> int:
    """Repeats a run: same code, limits, parameters and packages.

    Packages are the same as long as an agent or the package index has them; `ffctl runs diff` tells. Secrets have
    their newest values. Prints the new run's id and returns, like `ffctl run`.

    \b
    Example: ffctl runs rerun 1a2b3c4d --follow
    """
    request = runs_pb2.RerunRunRequest(id=run, latest=latest, request_id=request_id or new_id())
    return queue(context, "RerunRun", request, following=following, waiting=waiting, as_json=as_json)


@group.command("diff")
@click.argument("a", metavar="A", shell_complete=complete_run)
@click.argument("b", metavar="B", shell_complete=complete_run)
@output_option
@server_option
@click.pass_context
def diff_runs(context: click.Context, a: str, b: str, as_json: bool) -> None:
    """Shows what differs between two runs, code included.

    Compares code, packages, parameters, limits, agent, image, Python, uv and secrets. The values of parameters are
    compared and never shown.

    \b
    Example: ffctl runs diff 1a2b3c4d 5e6f7a8b
    """
    found = ask(context, "runs", "DiffRuns", runs_pb2.DiffRunsRequest(a=a, b=b))
    if as_json:
        output.show_json(found)
    else:
        differences.show(found)


@group.command("cancel")
@run_argument
@click.option(
    "--grace",
    metavar="TIME",
    type=span,
    help="Time from SIGTERM to SIGKILL, for example 30s or 2m; 0 = kill at once.  [default: the control plane's "
    "stop_grace]",
)
@output_option
@server_option
@click.pass_context
def cancel_run(context: click.Context, run: str, grace: float | None, as_json: bool) -> None:
    """Asks a run to stop: SIGTERM, then SIGKILL after a grace.

    A run that waits ends at once. One that had ended before the signal keeps its result. Repeat it with a shorter
    --grace for a run that takes too long to stop.

    \b
    Example: ffctl runs cancel 1a2b3c4d --grace 30s
    """
    request = runs_pb2.CancelRunRequest(id=run, request_id=new_id())
    if grace is not None:
        request.grace.FromMicroseconds(round(grace * 1e6))
    _tell_cancelled(ask(context, "runs", "CancelRun", request).run, as_json=as_json)


def _tell_cancelled(run: runs_pb2.Run, *, as_json: bool) -> None:
    if as_json:
        output.show_json(run)
    elif run.state in wording.TERMINAL:
        output.say(follow.verdict(run, details.seconds_now()))
    else:
        output.say(f"run {short(run.id)} is asked to stop; see it end with: ffctl logs -f {short(run.id)}")
        if run.message:
            output.say(run.message)


@group.command("abandon")
@run_argument
@yes_option
@output_option
@server_option
@click.pass_context
def abandon_run(context: click.Context, run: str, yes: bool, as_json: bool) -> None:
    """Gives a run up whose agent does not come back: it is LOST now.

    Without it a run is LOST once its agent has been away for `lost_after`. What the agent brings later, should it
    return, is kept as history; the program is stopped then. A run whose agent is there is better cancelled.

    \b
    Example: ffctl runs abandon 1a2b3c4d
    """

    found = ask(context, "runs", "GetRun", runs_pb2.GetRunRequest(id=run)).run
    if found.state not in wording.TERMINAL and found.attempts:
        agent = found.attempts[-1].agent
        confirm(f"Give up run {short(found.id)} of {found.pipeline}? Its program may still run on {agent}.", yes=yes)
    request = runs_pb2.AbandonRunRequest(id=found.id, request_id=new_id())
    abandoned = ask(context, "runs", "AbandonRun", request).run
    if as_json:
        output.show_json(abandoned)
    else:
        output.say(follow.verdict(abandoned, details.seconds_now()))
