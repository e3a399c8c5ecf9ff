"""A control plane with its database, two worker hosts, and time: what they do together, step by step."""

from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastflow_controlplane.clock import MICROSECONDS, ManualClock
from fastflow_controlplane.runs.model import NewRun
from sqlalchemy import Engine

from tests.contract.state_agents import Host, Local, Number
from tests.contract.state_checks import LIVE, TERMINAL, Rows, check, read_rows
from tests.contract.state_loop import settled
from tests.contract.state_plane import HOP_SECONDS, ControlPlane, Secrets, Turn

ROUNDS = 60
"""Of a world in which all goes well, until everything has ended."""


@dataclass(frozen=True)
class Fate:
    """How far the control plane gets with a step: `commits` of it (None = all). Then the rest waits, or it dies.

    `alone` = the hosts do not come to the next one by themselves.
    """

    commits: int | None = None
    dies: bool = False
    alone: bool = False


AT_ONCE = Fate()


class World:
    """Everybody. A step is what somebody does and what follows of it at once; `rows` is the last look at the rows."""

    def __init__(self, url: str, folder: Path, looking: Engine) -> None:
        self._url = url
        self._folder = folder
        self._looking = looking
        self.clock = ManualClock()
        self.secrets = Secrets()
        self.hosts = [Host("a", self._begins), Host("b", self._begins)]
        self.rows = Rows()
        self.plane: ControlPlane
        self._answers: dict[str, str] = {}
        self._abandoned: set[str] = set()
        self._started: set[Number] = set()
        self._held: list[Turn] = []
        self._up = False

    async def begin(self, speaks: tuple[int, int]) -> None:
        """Brings everybody up; the hosts speak these protocols."""
        for host, newest in zip(self.hosts, speaks, strict=True):
            host.speaks = newest
        await self._take_over()
        for host in self.hosts:
            host.connect(self.plane)
        await self.carry_out()

    async def end(self) -> None:
        """Takes everything down."""
        if self._up:
            await self.plane.die()

    # What happens

    async def create(self, request_id: str, pipeline: str) -> None:
        """Asks for a run, perhaps again."""
        run = await self.plane.runs.create(NewRun(pipeline, request_id=request_id))
        assert self._answers.setdefault(request_id, run.id) == run.id

    def ask(self, call: Coroutine[Any, Any, Any]) -> None:
        """Somebody asks something of the control plane."""
        self.plane.start_task(call)

    async def abandon(self, run_id: str, request_id: str) -> None:
        """An operator gives a run up."""
        self._abandoned.add(run_id)
        await self.plane.reaper.abandon(run_id, request_id)

    async def all_go_on(self, fate: Fate) -> None:
        """What is on the hosts goes on by one step, and all of it is told."""
        for host, local in self.here():
            host.go_on(local)
            host.send(local.unacked)
            if local.gone and not local.sealed and not local.unacked:
                self.seal(local)
        await self.carry_out(fate)

    def seal(self, local: Local) -> None:
        """The log of an attempt is delivered."""

        async def seal() -> None:
            await self.plane.seal(local.key)
            local.sealed = True

        self.ask(seal())

    def wipe(self, host: Host) -> None:
        """A host loses its journals and containers."""
        if host.speaks == 1:
            # It begins before anybody noted that it has an attempt, so of such a one nobody knows.
            self._started -= {number for number in host.attempts if not self.rows.events.get(number)}
        host.wipe()

    async def pass_time(self, hops: int, fate: Fate = AT_ONCE) -> None:
        """Time passes, and who is in reach is heard of."""
        for _ in range(hops):
            await self.clock.advance(HOP_SECONDS)
            self._come_back()
            for host in self.hosts:
                host.heartbeat()
            await settled()
            self.plane.look_after()
            await self.carry_out(fate)
            if fate == AT_ONCE and not self.waiting():
                self._check_deadlines()

    def _come_back(self) -> None:
        for host in self.hosts:
            if not host.connected and not host.away:
                host.connect(self.plane)

    async def _crash(self, *, alone: bool) -> None:
        await self.plane.die()
        await self._take_over()
        for host in self.hosts:
            host.disconnect()
        if not alone:
            self._come_back()
            await self.carry_out()

    async def carry_out(self, fate: Fate = AT_ONCE) -> None:
        """Lets what began go on: writes that are not held are committed one by one, as fate allows."""
        store = self.plane.store
        left = fate.commits
        while True:
            await settled()
            self.plane.raise_failures()
            turns = [turn for turn in store.waiting if turn not in self._held]
            if turns and left != 0:
                left = None if left is None else left - 1
                await self.commit(turns[0], seen=not (fate.dies and left == 0))
            elif not sum(host.hear() for host in self.hosts):
                break
        self._held = list(store.waiting)
        if fate.dies:
            await self._crash(alone=fate.alone)
        await self.clock.advance(0.001)
        await settled()
        self.look()

    async def commit(self, *turns: Turn, seen: bool = True) -> None:
        """Lets these writes through, as one group; the control plane may not live to see it."""
        for turn in turns:
            self.plane.start_task(self.plane.store.let_through(turn, seen=seen))
        await settled()
        self.plane.raise_failures()
        self.look(alive=seen)

    def look(self, *, alive: bool = True) -> None:
        """Checks all that is seen; of a control plane that is about to die, what is stored."""
        rows = read_rows(self._looking)
        check(self.rows, rows)
        self._check_lost(rows)
        self.rows = rows
        self._check_hosts()
        if alive and not self.plane.store.waiting:
            self._check_memory()

    def waiting(self) -> list[Turn]:
        """Writes that wait for their turn."""
        return self.plane.store.waiting

    def here(self) -> list[tuple[Host, Local]]:
        """All attempts on hosts, in the order of their runs."""
        order = {run_id: place for place, run_id in enumerate(self.rows.runs)}
        found = [(host, local) for host in self.hosts for local in host.attempts.values()]
        return sorted(found, key=lambda pair: (order[pair[1].key.run_id], pair[1].key.attempt))

    async def heal(self) -> None:
        """Nothing fails any more: everything comes to its end by itself, and nothing is held."""
        self.secrets.readable = True
        for host in self.hosts:
            host.mend()
            host.away = False
        self._held = []
        await self.carry_out()
        self.plane.wait_for_ever()
        for host in self.hosts:
            self.ask(self.plane.operations.resume(host.name))
            await self.carry_out()
        for _ in range(ROUNDS):
            for host in self.hosts:
                host.strays.clear()
            await self.pass_time(1)
            await self.all_go_on(AT_ONCE)
            if self._quiet():
                return
        raise AssertionError(f"not everything ended: {self._unfinished()}")

    # What must hold beside the rows

    def _begins(self, local: Local) -> None:
        """A program begins."""
        assert local.number not in self._started, "a program is started twice"
        self._started.add(local.number)

    def _check_hosts(self) -> None:
        """What a host was told of is stored, and what is there holds capacity."""
        for host, local in self.here():
            attempt = self.rows.attempts[local.number]
            history = self.rows.events.get(local.number, [])
            told = [event for event in local.events if event.sequence <= local.acked]
            assert local.acked <= len(history), "acknowledged and not stored"
            for event in told:
                stored = history[event.sequence - 1]
                assert (stored.sequence, stored.kind) == (event.sequence, event.WhichOneof("fact"))
            if local.program:
                assert not attempt.released, f"capacity of a program on {host.name} is free"
        for host in self.hosts:
            for number in host.strays:
                assert not self.rows.attempts[number].released, f"capacity of a stray on {host.name} is free"
        for run_id in self._answers.values():
            assert run_id in self.rows.runs, "a run was accepted and is not stored"

    def _check_lost(self, rows: Rows) -> None:
        """Nothing is given up but what an operator named, and what is on a host that is out of reach."""
        in_reach = {host.name for host in self.hosts if host.in_reach}
        for number, attempt in rows.attempts.items():
            known = self.rows.attempts.get(number)
            if attempt.state == "LOST" and (known is None or known.state != "LOST"):
                if attempt.reason == "ABANDONED":
                    assert attempt.run_id in self._abandoned, "a run is lost that nobody gave up"
                else:
                    assert rows.agents[attempt.agent_id].name not in in_reach, "an agent is lost that is in reach"

    def _check_deadlines(self) -> None:
        """What was left on an agent at the end of its time is to stop."""
        over = self.clock.now() - round(HOP_SECONDS * MICROSECONDS)
        for attempt in self.rows.attempts.values():
            agent = self.rows.agents[attempt.agent_id]
            if attempt.state in LIVE and agent.draining and (agent.drain_deadline_time or over) < over:
                assert attempt.desired == "STOP", "the deadline of a drain passed, and what is there goes on"

    def _check_memory(self) -> None:
        """What the scheduler keeps is what the rows say, once all is written."""
        scheduler = self.plane.scheduler
        waiting = {run_id for run_id, run in self.rows.runs.items() if run.state == "QUEUED"}
        assert scheduler.waiting() == waiting
        for lane in scheduler.lanes():
            assert lane == sorted(lane), "a run was passed by one that came later"
            assert all(self.rows.runs[run_id].queue_time == queue_time for queue_time, run_id in lane)
        held = self.rows.held()
        assert scheduler.reserved() == {agent_id: held[agent_id] for agent_id in scheduler.reserved()}

    async def _take_over(self) -> None:
        self._held = []
        self.plane = ControlPlane(self._url, self._folder, self.clock, self.secrets)
        await self.plane.start()
        self._up = True
        await settled()

    def _quiet(self) -> bool:
        ended = all(run.state in TERMINAL for run in self.rows.runs.values())
        settled = all(attempt.desired == "FORGET" for attempt in self.rows.attempts.values())
        return ended and settled and not any(host.attempts for host in self.hosts)

    def _unfinished(self) -> list[str]:
        runs = [f"run {run.id} {run.state}: {run.message}" for run in self.rows.runs.values()]
        attempts = [
            f"attempt {attempt.number} of {attempt.run_id} {attempt.state} {attempt.desired} on {attempt.agent_id}"
            for attempt in self.rows.attempts.values()
            if attempt.state in LIVE or attempt.desired != "FORGET"
        ]
        return [*runs, *attempts, *(str(local) for _, local in self.here())]
