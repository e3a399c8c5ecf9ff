"""Carries out a script on real programs: a control plane, agents behind relays, and clients that never give up."""

import json
import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import grpc
from fastflow.v1 import agents_pb2, runs_pb2
from fastflow.v1.agents_pb2_grpc import AgentServiceStub
from fastflow.v1.runs_pb2_grpc import RunServiceStub

from tests.chaos.host import Host
from tests.chaos.ledger import Recorder
from tests.chaos.script import AGENTS, CONTROLPLANE, KINDS, OPERATOR, RETRIED, RETRIES, Act, Script, Step
from tests.chaos.settings import AGENT_SETTINGS, CONTROLPLANE_SETTINGS, TIMEOUT_SECONDS
from tests.cluster import Cluster, Program
from tests.cluster.relay import Relay

PIPELINE = Path(__file__).parent / "pipeline"
CALL_SECONDS = 5.0
"""A call that is not answered by then is repeated: its control plane may be frozen."""
AGAIN_SECONDS = 0.3
CLIENTS = 16
"""Threads that submit and cancel: more than are ever waiting for an answer in the longest outage, mostly."""
ENDING_SECONDS = 30.0
"""A program that was told to stop has ended by then, on a machine that is busy."""
READY_SECONDS = 60.0
SETTLED_SECONDS = 180.0
"""After the last outage every run has ended by then and nothing of it is left."""
LOOK_SECONDS = 0.2
"""Pause between two looks for new journals."""


class Stage:
    """Everything a chaos run needs, in one folder that is its evidence; a context manager that stops it all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._opened = ExitStack()
        self._relays: dict[str, Relay] = {}
        self._answers = (folder / "answers.jsonl").open("a")
        self._deeds = (folder / "deeds.jsonl").open("a")
        self._writing = threading.Lock()
        self._over = threading.Event()
        self._clients = ThreadPoolExecutor(CLIENTS, "client")
        self._victims = {name: ThreadPoolExecutor(1, name) for name in (CONTROLPLANE, *AGENTS)}
        self._operators = {name: ThreadPoolExecutor(1, f"operator of {name}") for name in AGENTS}
        self._runs: dict[str, str] = {}

    def __enter__(self) -> Self:
        self.ledger.mkdir()
        network, address = self._opened.enter_context(_network())
        recorder = self._opened.enter_context(Recorder(self.ledger, address))
        self.cluster = self._opened.enter_context(Cluster(self.folder / "cluster", "docker", **CONTROLPLANE_SETTINGS))
        for kind in KINDS:
            self._add_pipeline(kind, recorder.address)
        self.cluster.controlplane.start()
        for name in AGENTS:
            relay = self._relays[name] = self._opened.enter_context(Relay(self.cluster.server))
            runtime = "docker" if name.startswith("boxed") else "process"
            own = {
                "FASTFLOW_CONTROLPLANE": relay.address,
                "FASTFLOW_RUNTIME": runtime,
                "FASTFLOW_NETWORK": network,
            }
            self.cluster.add_agent(name, **own, **AGENT_SETTINGS)
        for name in AGENTS:
            self.cluster.wait_for_agent(name, timeout=READY_SECONDS)
        threading.Thread(target=self._keep_journals, name="journals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for pool in (self._clients, *self._victims.values(), *self._operators.values()):
            pool.shutdown(wait=True, cancel_futures=True)
        self._opened.close()
        self._answers.close()
        self._deeds.close()

    @property
    def ledger(self) -> Path:
        """Folder of the ledger."""
        return self.folder / "ledger"

    def play(self, script: Script) -> None:
        """Does what the script says when it says so, heals everything, and waits until all runs have settled."""
        (self.folder / "script.json").write_text(script.to_json())
        done: list[Future[None]] = []
        begun = time.monotonic()
        for step in script.steps:
            time.sleep(max(0.0, begun + step.at - time.monotonic()))
            done.append(self._begin(step))
        time.sleep(max(0.0, begun + script.seconds - time.monotonic()))
        for future in done:
            future.result()
        self._note(self._deeds, what="HEALED", target="")
        self._settle(script)

    def finish(self) -> None:
        """Stops all programs as an operator would, and keeps what is left on this machine."""
        codes = {program.log.stem: program.stop() for program in self.cluster.programs}
        (self.folder / "endings.json").write_text(json.dumps(codes))
        agents = {name: self.cluster.agents[name].settings for name in AGENTS}
        folders = [Path(settings["FASTFLOW_DATA_DIR"]) for settings in agents.values()]
        environments = [Path(settings["FASTFLOW_ENV_DIR"]) for settings in agents.values()]
        host = Host.look(self.folder, self.ledger, folders, environments)
        (self.folder / "host.json").write_text(host.to_json())

    def _add_pipeline(self, kind: str, recorder: str) -> None:
        metadata: dict[str, Any] = {
            "cpu_hard_limit": 0.5,
            "mem_hard_limit": "96m",
            "default_env": {"KIND": kind, "LEDGER_FOLDER": str(self.ledger), "LEDGER_ADDRESS": recorder},
        }
        if kind in RETRIED:
            metadata |= {"retry_on": ["lost"], "retry_attempts": RETRIES}
        if kind == "late":
            metadata["timeout"] = TIMEOUT_SECONDS
        folder = self.cluster.add_pipeline(kind, (PIPELINE / "main.py").read_bytes(), pipeline=metadata)
        shutil.copy(PIPELINE / "ledger.py", folder)

    def _begin(self, step: Step) -> Future[None]:
        if step.act is Act.SUBMIT:
            return self._clients.submit(self._submit, step)
        if step.act is Act.CANCEL:
            return self._clients.submit(self._cancel, step)
        if step.act in OPERATOR:
            return self._operators[step.target].submit(self._operate, step)
        return self._victims[step.target].submit(self._do, step)

    def _submit(self, step: Step) -> None:
        request = runs_pb2.CreateRunRequest(
            pipeline=step.kind, request_id=step.target, environment={"KEY": step.target}
        )
        run = self._call(lambda channel: RunServiceStub(channel).CreateRun(request, timeout=CALL_SECONDS).run)
        self._runs[step.target] = run.id
        self._note(self._answers, what="ACCEPTED", target=step.target, run=run.id)

    def _cancel(self, step: Step) -> None:
        while step.target not in self._runs and not self._over.is_set():
            time.sleep(AGAIN_SECONDS / 10)
        request = runs_pb2.CancelRunRequest(id=self._runs[step.target])
        self._call(lambda channel: RunServiceStub(channel).CancelRun(request, timeout=CALL_SECONDS))
        self._note(self._answers, what="CANCELLED", target=step.target)

    def _operate(self, step: Step) -> None:
        begun = time.monotonic()
        drain = agents_pb2.DrainAgentRequest(name=step.target, request_id=f"{step.target} {step.at}")
        resume = agents_pb2.ResumeAgentRequest(name=step.target, request_id=f"{step.target} {step.at}")
        if step.act is Act.DRAIN:
            self._call(lambda channel: AgentServiceStub(channel).DrainAgent(drain, timeout=CALL_SECONDS))
        else:
            self._call(lambda channel: AgentServiceStub(channel).ResumeAgent(resume, timeout=CALL_SECONDS))
        self._note(self._deeds, what=step.act, target=step.target, begun=begun)

    def _call(self, call: Callable[[grpc.Channel], Any]) -> Any:
        """The answer to a call that is repeated until there is one. Raises grpc.RpcError for a refusal."""
        while True:
            try:
                with grpc.insecure_channel(self.cluster.server, options=[("grpc.enable_http_proxy", 0)]) as channel:
                    return call(channel)
            except grpc.RpcError as error:
                again = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
                if error.code() not in again or self._over.is_set():
                    raise
                time.sleep(AGAIN_SECONDS)

    def _do(self, step: Step) -> None:
        begun = time.monotonic()
        program = self._program(step.target)
        match step.act:
            case Act.KILL:
                program.kill()
            case Act.STOP:
                os.kill(program.pid, signal.SIGTERM)
            case Act.START:
                self._await_end(program)
                program.start()
            case Act.FREEZE:
                program.freeze()
            case Act.THAW:
                program.thaw()
            case Act.CUT:
                self._relays[step.target].cut()
            case Act.STALL:
                self._relays[step.target].stall()
            case Act.HEAL:
                self._relays[step.target].heal()
        self._note(self._deeds, what=step.act, target=step.target, begun=begun)

    def _program(self, name: str) -> Program:
        return self.cluster.controlplane if name == CONTROLPLANE else self.cluster.agents[name]

    def _await_end(self, program: Program) -> None:
        deadline = time.monotonic() + ENDING_SECONDS
        while program.alive:
            if time.monotonic() > deadline:
                self._note(self._deeds, what="HUNG", target=program.log.stem)
                program.kill()
            time.sleep(0.02)

    def _settle(self, script: Script) -> None:
        """Waits until all runs have ended and nothing is held for them, or gives up: the rules say what is left."""
        deadline = time.monotonic() + SETTLED_SECONDS
        while not self._settled(len(script.keys())) and time.monotonic() < deadline:
            time.sleep(0.5)
        self._note(self._deeds, what="SETTLED" if time.monotonic() < deadline else "NOT SETTLED", target="")

    def _settled(self, runs: int) -> bool:
        database = self.folder / "cluster" / "controlplane" / "fastflow.db"
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            ended = connection.execute("SELECT count(*) FROM runs WHERE end_time IS NOT NULL").fetchone()[0]
            held = connection.execute("SELECT count(*) FROM attempts WHERE desired <> 'FORGET'").fetchone()[0]
        slots = [slot for name in AGENTS for slot in (self.folder / "cluster" / name / "slots").glob("*")]
        return ended == runs and not held and not slots

    def _keep_journals(self) -> None:
        """Gives each journal a second name, so that it can be read after the agent has deleted it."""
        while not self._over.wait(LOOK_SECONDS):
            for name in AGENTS:
                kept = self.folder / "journals" / name
                kept.mkdir(parents=True, exist_ok=True)
                for journal in (self.folder / "cluster" / name / "slots").glob("*/journal"):
                    with suppress(FileExistsError, FileNotFoundError):
                        os.link(journal, kept / journal.parent.name)

    def _note(self, file: Any, **what: Any) -> None:
        with self._writing:
            # The ledger goes by the one clock, rows and logs by the other.
            file.write(json.dumps({"monotonic": time.monotonic(), "wall": time.time(), **what}) + "\n")
            file.flush()


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
