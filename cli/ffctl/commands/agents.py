"""`ffctl agents`: the worker hosts, what they can take, what is wrong with them; draining and removing them."""

from collections.abc import Iterable

import click
from fastflow.ids import new_id, short
from fastflow.v1 import agents_pb2, runs_pb2
from rich.console import RenderableType
from rich.table import Table

from ffctl import details, draining, output, wording
from ffctl.connection import Connection
from ffctl.options import complete_agent, confirm, output_option, server_option, span, yes_option
from ffctl.output import cell, facts, fit, table
from ffctl.session import ask, connected, pages, still_trying


@click.group("agents")
def group() -> None:
    """Lists, shows, drains, removes and accepts agents, the worker hosts."""


@group.command("list")
@output_option
@server_option
@click.pass_context
def list_agents(context: click.Context, as_json: bool) -> None:
    """Lists agents by name, and what troubles them or the control plane.

    \b
    Example: ffctl agents list
    """
    whole = agents_pb2.ListAgentsResponse()

    def keep(answer: agents_pb2.ListAgentsResponse) -> None:
        # What all pages say alike is taken from the last.
        whole.ClearField("controlplane_conditions")
        whole.MergeFrom(answer)

    async def work(connection: Connection) -> None:
        await pages(connection, connection.agents.ListAgents, agents_pb2.ListAgentsRequest(), "agents", on_page=keep)

    connected(context, work)
    _show_list(whole, as_json=as_json)


def _show_list(whole: agents_pb2.ListAgentsResponse, *, as_json: bool) -> None:
    if as_json:
        conditions = [output.as_mapping(condition) for condition in whole.controlplane_conditions]
        agents = [output.as_mapping(agent) for agent in whole.agents]
        output.show_json({"agents": agents, "controlplane_conditions": conditions})
        return
    now = details.seconds_now()
    for condition in whole.controlplane_conditions:
        since = wording.ago(condition.since, now)
        output.say(f"control plane, {condition.type}: {condition.message} (since {since})")
    if whole.agents:
        output.show(agents_table(whole.agents, now))
    else:
        output.say("No agents yet. On a worker host start: FASTFLOW_CONTROLPLANE=HOST:PORT fastflow-agent run")


def agents_table(agents: Iterable[agents_pb2.Agent], now: float) -> Table:
    """Returns one row per agent: what is reserved of what there is, and what an operator should know."""
    grid = table("AGENT", "STATE", "RUNS", "CPU", "MEMORY", "SEEN", "NOTE")
    for agent in agents:
        name = wording.agent_state(agent.state)
        grid.add_row(
            cell(agent.name),
            cell(name, wording.STYLES.get(name, "")),
            str(len(agent.attempts)),
            f"{agent.reserved.cpu_milli_cores / 1000:g}/{agent.capacity.cpu_milli_cores / 1000:g}",
            f"{_gib(agent.reserved.memory_bytes)}/{_gib(agent.capacity.memory_bytes)} GiB",
            wording.ago(agent.last_seen_time, now),
            cell(_note(agent)),
        )
    return fit(grid, AGENT=8, NOTE=16)


def _note(agent: agents_pb2.Agent) -> str:
    notes = [f"drained: {draining.left(agent.drain)}"] if agent.HasField("drain") else []
    # Of an agent that is well otherwise the message only repeats the conditions, of a drained one that it is drained.
    if agent.message and agent.state not in (agents_pb2.AGENT_STATE_ACTIVE, agents_pb2.AGENT_STATE_DRAINING):
        notes.append(agent.message)
    notes += [f"{condition.type}: {condition.message}" for condition in agent.conditions]
    return "; ".join(notes) or agent.message


def _gib(count: int) -> str:
    return f"{count / 1024**3:.1f}".removesuffix(".0")


@group.command("show")
@click.argument("name", shell_complete=complete_agent)
@output_option
@server_option
@click.pass_context
def show_agent(context: click.Context, name: str, as_json: bool) -> None:
    """Shows one agent: capacity, conditions, runtime, what runs there.

    Of one in quarantine also the attempts there that the database does not know, and what becomes of them once it is
    accepted.

    \b
    Example: ffctl agents show worker-1
    """
    answer = ask(context, "agents", "GetAgent", agents_pb2.GetAgentRequest(name=name))
    _show(answer.agent, as_json=as_json)


def _show(agent: agents_pb2.Agent, *, as_json: bool) -> None:
    if as_json:
        output.show_json(agent)
        return
    shown: list[RenderableType] = [facts(_rows(agent, details.seconds_now()))]
    if agent.attempts:
        grid = table("RUN", "ATTEMPT", "PIPELINE")
        for attempt in agent.attempts:
            grid.add_row(short(attempt.run_id), str(attempt.attempt), cell(attempt.pipeline))
        shown += ["", grid]
    if agent.HasField("unknown_attempts"):
        shown += ["", *_unknown(agent)]
    output.show(*shown)


def _unknown(agent: agents_pb2.Agent) -> list[RenderableType]:
    """What to know before an agent in quarantine is accepted."""
    unknown = agent.unknown_attempts
    since = f"when it connected ({wording.local(agent.connect_time)})"
    if not unknown.attempts:
        return [cell(f"It had nothing {since} that the database does not know.")]
    grid = table("RUN", "ATTEMPT", "PIPELINE", "THERE", "DATABASE", "ONCE ACCEPTED")
    for attempt in unknown.attempts:
        there = wording.run_state(attempt.state) if attempt.state else wording.UNKNOWN
        here = wording.run_state(attempt.run_state) if attempt.run_state else wording.UNKNOWN
        fate = "forgotten" if attempt.state in wording.TERMINAL else "stopped"
        again = ", begins again" if attempt.run_state == runs_pb2.RUN_STATE_QUEUED else ""
        grid.add_row(
            short(attempt.run_id),
            str(attempt.attempt),
            cell(attempt.pipeline or wording.UNKNOWN),
            cell(there, wording.STYLES.get(there, "")),
            cell(here, wording.STYLES.get(here, "")),
            f"{fate}{again}",
        )
    told = cell(f"What it had {since} and the database does not know:", "bold")
    more = [cell(f"These are the first {len(unknown.attempts)}; there are more.")] if unknown.more else []
    return [told, fit(grid, PIPELINE=8), *more]


@group.command("accept")
@click.argument("name", shell_complete=complete_agent)
@output_option
@server_option
@click.pass_context
def accept_agent(context: click.Context, name: str, as_json: bool) -> None:
    """Ends an agent's quarantine, so that the database holds again.

    For a database that was restored from an older copy, and for an agent of another cluster. What the database does
    not know is stopped after a grace; runs that had begun since the copy was made and are queued in it begin again,
    so cancel those first that must not: `ffctl agents show` names them. An agent that is away may come back from
    another machine.

    \b
    Example: ffctl agents accept worker-1
    """
    request = agents_pb2.AcceptAgentRequest(name=name, request_id=new_id())
    agent = ask(context, "agents", "AcceptAgent", request).agent
    if as_json:
        output.show_json(agent)
    else:
        output.say(f"agent {agent.name} is accepted; see what becomes of it: ffctl agents show {agent.name}")


def _rows(agent: agents_pb2.Agent, now: float) -> list[tuple[str, RenderableType]]:
    state = wording.agent_state(agent.state)
    rows: list[tuple[str, RenderableType]] = [
        ("Agent", cell(agent.name)),
        ("State", cell(state, wording.STYLES.get(state, ""))),
    ]
    if agent.message:
        rows.append(("", cell(agent.message)))
    if agent.HasField("drain"):
        since = wording.ago(agent.drain.start_time, now)
        rows.append(("Drain", cell(f"since {since}: {draining.left(agent.drain)}", "yellow")))
    for condition in agent.conditions:
        since = f" (since {wording.ago(condition.since, now)})" if condition.HasField("since") else ""
        text = f"{condition.type}: {condition.message}{since}; {_effect(condition, agent.state)}"
        rows.append(("Condition", cell(text, "red" if condition.blocks_placement else "yellow")))
    slots = f", {agent.capacity.slots} slots" if agent.capacity.slots else ""
    rows += [
        ("Capacity", _capacity(agent.capacity) + slots),
        (
            "Reserved",
            f"{_capacity(agent.reserved)} by {len(agent.attempts)} run{'' if len(agent.attempts) == 1 else 's'}",
        ),
        ("Runtime", cell(f"{agent.runtime} {agent.runtime_version}".strip() + f", cgroup {agent.cgroup or 'unknown'}")),
        ("Image", cell(agent.image or "none")),
        ("Python", cell(", ".join(agent.python_versions) or wording.UNKNOWN)),
        ("Host", cell(f"{agent.host_name}, {agent.kernel}".strip(", "))),
        ("Version", cell(agent.version)),
        ("Seen", f"{wording.ago(agent.last_seen_time, now)}, connected since {wording.local(agent.connect_time)}"),
    ]
    if agent.labels:
        labels = ", ".join(f"{name}={value}" for name, value in sorted(agent.labels.items()))
        rows.append(("Labels", cell(labels)))
    return rows


def _effect(condition: agents_pb2.Condition, state: agents_pb2.AgentState) -> str:
    if condition.blocks_placement:
        return "gets no runs"
    return "still gets runs" if state == agents_pb2.AGENT_STATE_ACTIVE else "is not why it gets no runs"


def _capacity(capacity: agents_pb2.Capacity) -> str:
    return f"{wording.cores(capacity.cpu_milli_cores)}, {wording.size(capacity.memory_bytes)}"


@group.command("drain")
@click.argument("name", shell_complete=complete_agent)
@click.option(
    "--deadline", metavar="TIME", type=span, help="Stop runs that are left after this time, for example 10m or 2h."
)
@click.option("--stop", is_flag=True, help="Stop all runs now.")
@click.option("--wait/--no-wait", "waiting", default=True, help="Return once it is empty, or at once.  [default: wait]")
@output_option
@server_option
@click.pass_context
def drain_agent(
    context: click.Context, name: str, deadline: float | None, stop: bool, waiting: bool, as_json: bool
) -> None:
    """Empties an agent, for example before its host is restarted.

    It gets no new runs; runs that have not begun there are placed elsewhere. Those under way end by themselves, however
    long it takes, unless there is a deadline: what is left then is stopped as by a cancel. The agent is empty once its
    last run has ended and all output has arrived. It stays drained until `ffctl agents resume`.

    Ctrl-C ends the waiting, not the drain.

    \b
    Example: ffctl agents drain worker-1 --deadline 10m
    """
    if stop and deadline is not None:
        raise click.UsageError("--stop and --deadline exclude each other: --stop is a deadline of now.")
    request = agents_pb2.DrainAgentRequest(name=name, stop=stop, request_id=new_id())
    if deadline is not None:
        request.deadline.FromMicroseconds(round(deadline * 1e6))

    async def work(connection: Connection) -> agents_pb2.Agent:
        answer = await connection.call(connection.agents.DrainAgent, request, on_lost=still_trying)
        return await draining.until_empty(connection, answer.agent) if waiting else answer.agent

    agent = connected(context, work)
    if as_json:
        output.show_json(agent)
    elif agent.drain.complete:
        output.say(f"{name} is empty. It takes runs again after: ffctl agents resume {name}")
    else:
        output.say(f"{name} is being drained: {draining.left(agent.drain)}; see how far: ffctl agents show {name}")


@group.command("resume")
@click.argument("name", shell_complete=complete_agent)
@output_option
@server_option
@click.pass_context
def resume_agent(context: click.Context, name: str, as_json: bool) -> None:
    """Lets a drained agent take runs again.

    \b
    Example: ffctl agents resume worker-1
    """
    request = agents_pb2.ResumeAgentRequest(name=name, request_id=new_id())
    agent = ask(context, "agents", "ResumeAgent", request).agent
    if as_json:
        output.show_json(agent)
    else:
        output.say(f"{name} takes runs again" + (f", once it can: it {agent.message}" if agent.message else ""))


@group.command("remove")
@click.argument("name", shell_complete=complete_agent)
@click.option("--force", is_flag=True, help="Also where it has runs or output left: its runs become LOST.")
@yes_option
@output_option
@server_option
@click.pass_context
def remove_agent(context: click.Context, name: str, force: bool, yes: bool, as_json: bool) -> None:
    """Takes an agent that is gone for good off the list.

    Refused while it is connected, and without --force while it has runs, or output that has not arrived. Should it
    connect again it is back on the list, and what it brings of lost runs is kept as history.

    \b
    Example: ffctl agents remove worker-1
    """
    if force:
        confirm(f"Remove {name} and give up all that it has not delivered?", yes=yes)
    request = agents_pb2.RemoveAgentRequest(name=name, force=force, request_id=new_id())
    answer = ask(context, "agents", "RemoveAgent", request)
    if as_json:
        output.show_json(answer)
    else:
        lost = ", ".join(map(short, answer.lost_run_ids))
        output.say(f"{name} is removed" + (f"; LOST: {lost}" if lost else ""))
