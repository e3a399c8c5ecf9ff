"""What anybody may do, in any order: callers, operators, worker hosts, networks, time, and death."""

import itertools
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fastflow.agent.v1 import attempts_pb2
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from sqlalchemy import Engine

from tests.contract.state_agents import ENDS, Host, Local
from tests.contract.state_checks import LIVE
from tests.contract.state_loop import StepLoop
from tests.contract.state_model import AT_ONCE, Fate, World
from tests.contract.state_plane import HOP_SECONDS

T = TypeVar("T")

pick = st.integers(0, 1_000)
which_host = st.integers(0, 1)
fates = st.sampled_from(
    [
        *[AT_ONCE] * 9,
        *[Fate(0), Fate(0), Fate(1)] * 2,
        *[Fate(commits, dies=True) for commits in (0, 1, 2)],
        Fate(1, dies=True, alone=True),
    ]
)


def of(choices: Sequence[T], picked: int) -> T:
    """One of the choices; the newest are picked more often, since little is left to happen to the others."""
    return choices[-1 - picked % min(len(choices), 3 if picked % 2 else len(choices))]


class Actions(RuleBasedStateMachine):
    """Everybody around one database."""

    def __init__(self, url: str, folder: Path, looking: Engine) -> None:
        super().__init__()
        self.loop = StepLoop()
        self.world = World(url, folder, looking)
        self.numbers = itertools.count()
        self.failed = False

    def teardown(self) -> None:
        """Everything that began comes to its end."""
        try:
            if self.world.rows.runs and not self.failed:
                self.does(self.world.heal())
        finally:
            self.does(self.world.end())
            self.loop.close()

    def does(self, step: Coroutine[Any, Any, None]) -> None:
        """Has something happen."""
        try:
            self.loop.run_until_complete(step)
        except BaseException:
            self.failed = True
            raise

    def asks(self, call: Coroutine[Any, Any, Any], fate: Fate) -> None:
        """Somebody asks something of the control plane."""

        async def ask() -> None:
            self.world.ask(call)
            await self.world.carry_out(fate)

        self.does(ask())

    def goes_on(self, fate: Fate = AT_ONCE) -> None:
        """What was begun goes on."""
        self.does(self.world.carry_out(fate))

    def host(self, number: int) -> Host:
        """One of the hosts."""
        return self.world.hosts[number]

    def local(self, picked: int) -> tuple[Host, Local]:
        """One of the attempts that are on hosts."""
        return of(self.world.here(), picked)

    def run_id(self, picked: int) -> str:
        """One of the runs."""
        return of(list(self.world.rows.runs), picked)

    def wishes(self, host: Host) -> set[str]:
        """What is desired of all that lives on a host."""
        rows = self.world.rows
        return {
            attempt.desired
            for attempt in rows.attempts.values()
            if rows.agents[attempt.agent_id].name == host.name and attempt.state in LIVE
        }

    def make_room(self, host: Host) -> None:
        """Lets what there is come to its end, so that the host can take a run."""
        self.world.secrets.readable = True
        if not host.in_reach:
            host.connect(self.world.plane)
            self.goes_on()
        for _ in range(4):
            self.does(self.world.all_go_on(AT_ONCE))

    def request_id(self) -> str:
        """One that was never used."""
        return f"own {next(self.numbers)}"

    # Callers

    @initialize(speaks=st.sampled_from([(2, 2), (2, 2), (2, 1)]), steps=st.integers(0, 3), faulty=st.booleans())
    def begin(self, speaks: tuple[int, int], steps: int, faulty: bool) -> None:
        """Something to work on, else most steps would find nothing."""
        self.does(self.world.begin(speaks))
        for number in range(4):
            self.create(number, AT_ONCE)
        if faulty:
            self.talk_nonsense(["QUEUED", "PREPARING", "ASSIGNED", "SUCCEEDED"], AT_ONCE)
        for _ in range(steps):
            self.does(self.world.all_go_on(AT_ONCE))

    @rule(number=st.integers(0, 7), fate=fates)
    def create(self, number: int, fate: Fate) -> None:
        self.asks(self.world.create(f"request {number}", "again" if number % 2 else "once"), fate)

    @precondition(lambda self: self.world.rows.runs)
    @rule(picked=pick, fate=fates)
    def rerun(self, picked: int, fate: Fate) -> None:
        self.asks(self.world.plane.runs.rerun(self.run_id(picked)), fate)

    @precondition(lambda self: self.world.rows.runs)
    @rule(picked=pick, every=st.integers(0, 9), grace=st.sampled_from([None, None, 1.0]), fate=fates)
    def cancel(self, picked: int, every: int, grace: float | None, fate: Fate) -> None:
        """One run, or once in a while all of them at the same time."""
        for run_id in self.world.rows.runs if every == 9 else [self.run_id(picked)]:
            self.world.ask(self.world.plane.runs.cancel(run_id, grace))
        self.goes_on(fate)

    # Operators

    @precondition(lambda self: self.world.rows.attempts)
    @rule(picked=pick, again=st.booleans(), fate=fates)
    def abandon(self, picked: int, again: bool, fate: Fate) -> None:
        run_id = of([number[0] for number in self.world.rows.attempts], picked)
        request_id = f"abandon {run_id}" if again else self.request_id()
        self.asks(self.world.abandon(run_id, request_id), fate)

    @rule(number=which_host, how=st.sampled_from(["for good", "deadline", "stop"]), placing=st.booleans(), fate=fates)
    def drain(self, number: int, how: str, placing: bool, fate: Fate) -> None:
        """An agent is emptied, perhaps while runs are being placed on it."""
        host, operations = self.host(number), self.world.plane.operations
        if placing:
            self.make_room(host)
            for _ in self.world.hosts:
                self.asks(self.world.create(self.request_id(), "again"), Fate(1))
            fate = AT_ONCE
        deadline = 2 * HOP_SECONDS if how == "deadline" else None
        self.asks(operations.drain(host.name, deadline=deadline, stop=how == "stop"), fate)
        if how == "stop" and fate is AT_ONCE and host.in_reach:
            assert self.wishes(host) <= {"STOP"}, "what runs on an agent that is emptied is not to stop"
        if placing:
            self.does(self.world.commit(*self.world.waiting()))
            self.goes_on()

    @rule(number=which_host, fate=fates)
    def resume(self, number: int, fate: Fate) -> None:
        self.asks(self.world.plane.operations.resume(self.host(number).name), fate)

    @rule(number=which_host, away=st.booleans(), force=st.booleans(), fate=fates)
    def remove(self, number: int, away: bool, force: bool, fate: Fate) -> None:
        if away:
            self.host(number).disconnect()
            self.goes_on()
        self.asks(self.world.plane.operations.remove(self.host(number).name, force=force), fate)

    @rule(readable=st.sampled_from([True, True, False]))
    def key_comes_and_goes(self, readable: bool) -> None:
        self.world.secrets.readable = readable

    # The control plane by itself

    @rule(hops=st.integers(1, 5), fate=fates)
    def time_passes(self, hops: int, fate: Fate) -> None:
        self.does(self.world.pass_time(hops, fate))

    @rule(steps=st.integers(1, 3), fate=fates)
    def all_go_on(self, steps: int, fate: Fate) -> None:
        for _ in range(steps):
            self.does(self.world.all_go_on(fate))

    @precondition(lambda self: self.world.waiting())
    @rule(picked=pick, seen=st.sampled_from([True, True, True, False]))
    def commit_what_waited(self, picked: int, seen: bool) -> None:
        async def commit() -> None:
            await self.world.commit(of(self.world.waiting(), picked), seen=seen)
            await self.world.carry_out(Fate(dies=not seen))

        self.does(commit())

    @precondition(lambda self: len(self.world.waiting()) > 1)
    @rule()
    def commit_all_in_one_group(self) -> None:
        self.does(self.world.commit(*self.world.waiting()))
        self.goes_on()

    # Networks

    @rule(number=which_host, fate=fates)
    def connect(self, number: int, fate: Fate) -> None:
        """A new stream, while the one before may still be open."""
        self.host(number).connect(self.world.plane)
        self.goes_on(fate)

    @rule(number=which_host, what=st.sampled_from(["told", "told", "lost", "removed"]), seen=st.booleans())
    def connect_in_between(self, number: int, what: str, seen: bool) -> None:
        """A session begins while something that rests on the one before still waits to be written."""
        host = self.host(number)
        if what == "told":
            for owner, local in self.world.here():
                if owner is host:
                    host.go_on(local)
                    host.send(local.unacked)
            self.goes_on(Fate(0))
        else:
            host.disconnect()
            host.away = True
            self.does(self.world.pass_time(4, Fate(0)) if what == "lost" else self.world.carry_out())
        if what == "removed":
            self.asks(self.world.plane.operations.remove(host.name, force=True), Fate(0))
        host.connect(self.world.plane)
        self.goes_on()
        self.does(self.world.commit(*self.world.waiting(), seen=seen))
        self.goes_on(Fate(dies=not seen))

    @rule(number=which_host, hops=st.integers(0, 5), cancelled=st.booleans(), fate=fates)
    def stay_away(self, number: int, hops: int, cancelled: bool, fate: Fate) -> None:
        """Long enough, and what is there is lost, though somebody wanted it to stop."""
        host = self.host(number)
        host.disconnect()
        host.away = True
        for owner, local in self.world.here():
            if cancelled and owner is host:
                self.world.ask(self.world.plane.runs.cancel(local.key.run_id))
        self.goes_on()
        self.does(self.world.pass_time(hops, fate))

    @rule(number=which_host)
    def cut(self, number: int) -> None:
        """Nothing comes through in either direction, and nobody is told."""
        stream = self.host(number).stream
        if stream is not None:
            stream.cut = True

    @rule(number=which_host, fate=fates)
    def mend(self, number: int, fate: Fate) -> None:
        """What was on its way comes, also what was said on streams of before."""
        self.host(number).mend()
        self.goes_on(fate)

    @rule(number=which_host, chance=st.integers(0, 2), fate=fates)
    def wipe(self, number: int, chance: int, fate: Fate) -> None:
        """A host loses its data folder, and comes back."""
        if not chance:
            self.world.wipe(self.host(number))
            self.goes_on()
            self.host(number).connect(self.world.plane)
            self.goes_on(fate)

    # Worker hosts

    @rule(number=which_host)
    def remove_strays(self, number: int) -> None:
        """A host has found and removed what no journal is about."""
        self.host(number).strays.clear()

    @precondition(lambda self: self.world.here())
    @rule(picked=pick, steps=st.integers(1, 4), told=st.booleans(), fate=fates)
    def go_on(self, picked: int, steps: int, told: bool, fate: Fate) -> None:
        """All goes well for some steps, so that more is seen than beginnings; the control plane may hear it later."""
        host, local = self.local(picked)
        for _ in range(steps):
            host.go_on(local)
            if told:
                host.send(local.unacked)
                self.goes_on(fate)

    @precondition(lambda self: self.world.here())
    @rule(picked=pick, state=st.sampled_from([*ENDS, "QUEUED"]), fate=fates)
    def end(self, picked: int, state: str, fate: Fate) -> None:
        """The program ends somehow; where it did not begin, it could not start."""
        host, local = self.local(picked)
        if state == "QUEUED" or not local.begun:
            host.could_not_start(local)
        elif not local.ended:
            local.end(state, "TIMEOUT" if state == "TIMED_OUT" else "")
        host.send(local.unacked)
        self.goes_on(fate)

    @precondition(lambda self: self.world.here())
    @rule(picked=pick, fate=fates)
    def seal(self, picked: int, fate: Fate) -> None:
        _, local = self.local(picked)
        if local.ended and not local.sealed:
            self.world.seal(local)
            self.goes_on(fate)

    @precondition(lambda self: self.world.here())
    @rule(picked=pick, step=st.sampled_from([1, -1, 2, -2]), skipped=st.integers(0, 2), fate=fates)
    def tell_again(self, picked: int, step: int, skipped: int, fate: Fate) -> None:
        """Sends everything twice and in another order, but for the first, which are lost."""
        host, local = self.local(picked)
        left = local.events[skipped:]
        host.send([*left[::step], *left])
        self.goes_on(fate)

    @precondition(lambda self: self.world.here())
    @rule(states=st.permutations(["QUEUED", "PREPARING", "ASSIGNED", "SUCCEEDED"]), fate=fates)
    def talk_nonsense(self, states: list[str], fate: Fate) -> None:
        """Agents with a fault say that what runs, or has ended, went back."""
        for _ in range(2):
            self.does(self.world.all_go_on(AT_ONCE))
        for (host, local), state in zip(self.world.here(), itertools.cycle(states), strict=False):
            if local.begun:
                local.note(state)
                host.send(local.unacked)
        self.goes_on(fate)

    @precondition(lambda self: self.world.here())
    @rule(picked=pick, state=st.sampled_from(ENDS), own=st.booleans(), fate=fates)
    def forge(self, picked: int, state: str, own: bool, fate: Fate) -> None:
        """An end under another token, or from a host that does not have the attempt."""
        host, local = self.local(picked)
        other = next(host_ for host_ in self.world.hosts if host_ is not host)
        forged = attempts_pb2.AttemptEvent(
            key=local.wire_key(),
            sequence=len(self.world.rows.events.get(local.number, ())) + 1,
            ended=attempts_pb2.Ended(state=f"RUN_STATE_{state}"),
        )
        if own:
            forged.key.claim_token = "another's"
        known = self.world.rows.events.get(local.number, [])
        other.send([forged])
        self.goes_on(fate)
        assert self.world.rows.events.get(local.number, []) == known
