"""Carries out a script on real programs: a control plane, agents behind relays, and clients that never give up.

Whatever goes wrong in here is written down as a FAULT and judged with the rest.
"""

import json
import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from tests.chaos.clients import Clients
from tests.chaos.diary import Diary
from tests.chaos.host import Host
from tests.chaos.ledger import Recorder
from tests.chaos.script import AGENTS, CONTROLPLANE, KINDS, OPERATOR, RETRIED, RETRIES, WHOLE, Act, Script, Step
from tests.chaos.settings import (
    AGENT_SETTINGS,
    BOXED_SETTINGS,
    CONTROLPLANE_SETTINGS,
    CORES,
    HOG_MEMORY,
    MEMORY,
    READY,
    TIMEOUT_SECONDS,
    logged_as,
)
from tests.cluster import Cluster, Program
from tests.cluster.relay import Relay

PIPELINE = Path(__file__).parent / "pipeline"
CALLERS = 16
"""Threads that submit and cancel: more than are ever waiting for an answer in the longest outage, mostly."""
ENDING_SECONDS = 30.0
"""A program that was told to stop has ended by then, on a machine that is busy."""
BEGINNING_SECONDS = 90.0
"""The same for one that was told so before it had begun: it begins first, which takes 34 s on a flooded machine."""
SETTLED_SECONDS = 180.0
"""After the last outage every call is answered, every run has ended and nothing of it is left by then."""
FILLED_SECONDS = 60.0
"""Agents that hold nothing all run something by then."""
FILLING = f"SELECT count(*) FROM runs WHERE pipeline = '{WHOLE}' AND state = 'RUNNING'"
LOOK_SECONDS = 0.2
"""Pause between two looks for new journals."""


class Stage:
    """Everything a chaos run needs, in one folder that is its evidence; a context manager that stops it all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._relays: dict[str, Relay] = {}
        self._over = threading.Event()
        self._callers = ThreadPoolExecutor(CALLERS, "caller")
        self._victims = {name: ThreadPoolExecutor(1, name) for name in (CONTROLPLANE, *AGENTS)}
        self._operators = {name: ThreadPoolExecutor(1, f"operator of {name}") for name in AGENTS}
        self._keeper = ThreadPoolExecutor(1, "journals")

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            self._open(opened)
            # Unless all of it stands, what was started by then is stopped here: nobody else would.
            self._opened = opened.pop_all()
        return self

    def _open(self, opened: ExitStack) -> None:
        self.ledger.mkdir()
        self._diary = opened.enter_context(Diary(self.folder))
        network, address = opened.enter_context(_network())
        self._recorder = opened.enter_context(Recorder(self.ledger, address, self._keep_journal))
        self.cluster = opened.enter_context(Cluster(self.folder / "cluster", "docker", **CONTROLPLANE_SETTINGS))
        self._clients = Clients(self.cluster.server, self._diary)
        for kind in (*KINDS, WHOLE):
            self._add_pipeline(kind)
        self.cluster.controlplane.start()
        for name in AGENTS:
            relay = self._relays[name] = opened.enter_context(Relay(self.cluster.server))
            own = {"FASTFLOW_CONTROLPLANE": relay.address, "FASTFLOW_RUNTIME": "process"}
            if name.startswith("boxed"):
                own |= {"FASTFLOW_RUNTIME": "docker", "FASTFLOW_NETWORK": network, **BOXED_SETTINGS}
            self.cluster.add_agent(name, **{**AGENT_SETTINGS, **own})
        for name in AGENTS:
            self.cluster.wait_for_agent(name)
        self._keeping = self._keeper.submit(self._keep_journals)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._clients.close()
        for pool in (self._callers, *self._victims.values(), *self._operators.values(), self._keeper):
            pool.shutdown(wait=True, cancel_futures=True)
        self._opened.close()

    @property
    def ledger(self) -> Path:
        """Folder of the ledger."""
        return self.folder / "ledger"

    def play(self, script: Script) -> None:
        """Does what the script says when it says so, heals everything, and waits until all runs have settled.

        Then it fills each agent with a run that takes all of it, which only what holds nothing can take.
        """
        (self.folder / "script.json").write_text(script.to_json())
        begun = time.monotonic()
        done: dict[Future[None], str] = {}
        for step in script.steps:
            time.sleep(max(0.0, begun + step.at - time.monotonic()))
            done[self._begin(step)] = f"{step.act} {step.target}"
        time.sleep(max(0.0, begun + script.seconds - time.monotonic()))
        self._await(done)
        self._diary.deed("HEALED")
        runs = len(script.keys())
        self._until("SETTLED", SETTLED_SECONDS, lambda: self._settled(runs - len(AGENTS)))
        self._fill(script.filling)
        self._until("SETTLED AGAIN", SETTLED_SECONDS, lambda: self._settled(runs))

    def finish(self) -> None:
        """Stops all programs as an operator would, and keeps what is left on this machine."""
        codes = {program.log.stem: self._stop(program) for program in self.cluster.programs}
        (self.folder / "endings.json").write_text(json.dumps(codes))
        self._over.set()
        self._await({self._keeping: "journals", self._keeper.submit(self._look): "this machine"})

    def _look(self) -> None:
        agents = {name: self.cluster.agents[name].settings for name in AGENTS}
        folders = [Path(settings["FASTFLOW_DATA_DIR"]) for settings in agents.values()]
        environments = [Path(settings["FASTFLOW_ENV_DIR"]) for settings in agents.values()]
        host = Host.look(self.folder, self._recorder.address, folders, environments)
        (self.folder / "host.json").write_text(host.to_json())

    def _add_pipeline(self, kind: str) -> None:
        metadata: dict[str, Any] = {
            "cpu_hard_limit": CORES if kind == WHOLE else 0.5,
            "mem_hard_limit": HOG_MEMORY if kind == "hog" else MEMORY,
            "default_env": {"KIND": kind, "LEDGER_ADDRESS": self._recorder.address},
        }
        if kind in RETRIED:
            metadata |= {"retry_on": ["lost"], "retry_attempts": RETRIES}
        if kind == "late":
            metadata["timeout"] = TIMEOUT_SECONDS
        folder = self.cluster.add_pipeline(kind, (PIPELINE / "main.py").read_bytes(), pipeline=metadata)
        shutil.copy(PIPELINE / "ledger.py", folder)

    def _begin(self, step: Step) -> Future[None]:
        if step.act is Act.SUBMIT:
            return self._callers.submit(self._clients.submit, step)
        if step.act is Act.CANCEL:
            return self._callers.submit(self._clients.cancel, step)
        if step.act in OPERATOR:
            return self._operators[step.target].submit(self._clients.operate, step)
        return self._victims[step.target].submit(self._do, step)

    def _await(self, done: dict[Future[None], str]) -> None:
        """Waits for what was begun, each with its name, and writes down what failed."""
        wait(done, SETTLED_SECONDS)
        for future, what in done.items():
            error = future.exception() if future.done() else "it takes for ever"
            if error is not None:
                self._diary.deed("FAULT", what, error=repr(error))

    def _do(self, step: Step) -> None:
        begun = time.monotonic()
        program = self._program(step.target)
        if step.act is Act.START:
            self._await_end(program)
        # Nothing but this script ends a program: what a deed found, the rules compare with that.
        found = program.code
        heard = {"catches": program.catches(signal.SIGTERM)} if step.act is Act.STOP and found is None else {}
        match step.act:
            case Act.KILL:
                program.kill()
            case Act.STOP if found is None:
                os.kill(program.pid, signal.SIGTERM)
            case Act.START:
                program.start()
            case Act.FREEZE if found is None:
                program.freeze()
            case Act.THAW if found is None:
                program.thaw()
            case Act.CUT:
                self._relays[step.target].cut()
            case Act.STALL:
                self._relays[step.target].stall()
            case Act.HEAL:
                self._relays[step.target].heal()
        self._diary.deed(step.act, step.target, begun=begun, found=found, **heard)

    def _program(self, name: str) -> Program:
        return self.cluster.controlplane if name == CONTROLPLANE else self.cluster.agents[name]

    def _stop(self, program: Program) -> int | None:
        """The exit code of a program that is stopped, or had ended before."""
        if program.alive:
            os.kill(program.pid, signal.SIGTERM)
        self._await_end(program)
        return program.code

    def _await_end(self, program: Program) -> None:
        begun = program.has_said(logged_as(READY[program.log.stem]))
        deadline = time.monotonic() + (ENDING_SECONDS if begun else BEGINNING_SECONDS)
        while program.alive:
            if time.monotonic() > deadline:
                self._diary.deed("HUNG", program.log.stem)
                program.kill()
            time.sleep(0.02)

    def _until(self, what: str, seconds: float, holds: Callable[[], bool]) -> None:
        """Waits, and writes down whether it came so far: what is missing the rules say."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            # The database can not be opened while its control plane begins.
            with suppress(sqlite3.OperationalError):
                if holds():
                    self._diary.deed(what)
                    return
            time.sleep(0.5)
        self._diary.deed("FAULT", what, error=f"not within {seconds:g} s")

    def _settled(self, runs: int) -> bool:
        """Whether so many runs have ended and nothing is held for them."""
        ended = self._count("SELECT count(*) FROM runs WHERE end_time IS NOT NULL")
        held = self._count("SELECT count(*) FROM attempts WHERE desired <> 'FORGET'")
        slots = [slot for name in AGENTS for slot in (self.folder / "cluster" / name / "slots").glob("*")]
        return ended == runs and not held and not slots

    def _fill(self, filling: Sequence[Step]) -> None:
        """Has all agents run something that takes all of each, at the same time."""
        for act in (Act.SUBMIT, Act.CANCEL):
            self._await({self._begin(step): f"{act} {step.target}" for step in filling if step.act is act})
            if act is Act.SUBMIT:
                self._until("FILLED", FILLED_SECONDS, lambda: self._count(FILLING) == len(AGENTS))

    def _count(self, query: str) -> int:
        database = self.folder / "cluster" / "controlplane" / "fastflow.db"
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            return int(connection.execute(query).fetchone()[0])

    def _keep_journals(self) -> None:
        """Keeps the journals of what never begins, too: of those that are there for long enough to be seen."""
        while not self._over.wait(LOOK_SECONDS):
            self._keep_journal("*")

    def _keep_journal(self, slot: str) -> None:
        """Gives a slot's journal a second name, so that it can be read after the agent has deleted it."""
        for name in AGENTS:
            kept = self.folder / "journals" / name
            kept.mkdir(parents=True, exist_ok=True)
            for journal in (self.folder / "cluster" / name / "slots").glob(f"{slot}/journal"):
                with suppress(FileExistsError, FileNotFoundError):
                    os.link(journal, kept / journal.parent.name)


@contextmanager
def _network() -> Iterator[tuple[str, str]]:
    """A network of the engine for this chaos run alone: its name, and this machine's address in it."""
    name = f"fastflow-chaos-{secrets.token_hex(4)}"
    _docker("network", "create", name)
    try:
        yield name, _docker("network", "inspect", name, "--format", "{{(index .IPAM.Config 0).Gateway}}")
    finally:
        _docker("network", "rm", name)


def _docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True, timeout=60).stdout.strip()
