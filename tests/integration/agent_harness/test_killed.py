"""An agent killed with SIGKILL between any two steps: the next one ends the run once, truly, with its whole log."""

import asyncio
import os
import secrets
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from fastflow.agent.v1 import attempts_pb2, desired_pb2
from fastflow_agent.attempts.dossier import Checkpoint

from tests.integration.agent_harness.controlplane import ScriptedControlPlane, Stream, forget, stop

PROGRAM = """
import time
print('first', flush=True)
time.sleep(0.3)
print('last')
raise SystemExit(7)
"""
ENDLESS = """
import time
print('first', flush=True)
while True:
    time.sleep(0.05)
"""
OF_A_STOP = (Checkpoint.STOPPING, Checkpoint.SIGNAL_SENT)
BEFORE_FORGET = (Checkpoint.LOG_SEALED, Checkpoint.SEALED)
"""Places that an agent passes by if it is told to forget before it hears that its log is stored."""
FAILED, CANCELLED = 7, 8
"""Numbers of RunState."""


class Duty:
    """Does for one run what a control plane does, over as many streams as it takes."""

    def __init__(self, controlplane: ScriptedControlPlane, word: desired_pb2.DesiredAttempt, *, cancel: bool) -> None:
        self._controlplane = controlplane
        self._word = word
        self._cancel = cancel
        self._revision = 1
        self.events: list[attempts_pb2.AttemptEvent] = []
        self.forgotten = False
        self.may_forget = True

    def facts(self, name: str) -> list[attempts_pb2.AttemptEvent]:
        return [event for event in self.events if event.WhichOneof("fact") == name]

    async def do(self) -> None:
        """Serve streams until cancelled."""
        while True:
            await self._serve(await self._controlplane.stream())

    async def _serve(self, stream: Stream) -> None:
        await stream.welcome()
        await stream.full(self._now(), revision=self._revision)
        while (batch := await stream.next("events", "heartbeat")) is not None:
            for event in batch.events if isinstance(batch, attempts_pb2.AttemptEvents) else ():
                assert event.sequence <= len(self.events) + 1, "a gap"
                if event.sequence == len(self.events) + 1:
                    self.events.append(event)
                await stream.ack(event.key, event.sequence)
            await self._decide(stream)

    async def _decide(self, stream: Stream) -> None:
        if self._cancel and any(event.state_changed.state == 4 for event in self.events):
            self._cancel = False
            self._word = stop(self._word)
            await self._say(stream)
        run = self._word.key.run_id
        if self.facts("container_gone") and run in self._controlplane.sealed and self.may_forget and not self.forgotten:
            self.forgotten = True
            self._word = forget(self._word)
            await self._say(stream)

    async def _say(self, stream: Stream) -> None:
        self._revision += 1
        await stream.delta(self._now(), previous=self._revision - 1, revision=self._revision)

    def _now(self) -> desired_pb2.DesiredAttempt:
        self._word.known_seq = len(self.events)
        self._word.durable_log_offset = len(self._controlplane.logs.get(self._word.key.run_id, b""))
        return self._word


class Victim:
    """Agents as processes, one after the other on one data folder."""

    def __init__(self, controlplane: ScriptedControlPlane, folder: Path) -> None:
        self.slots = folder / "agent" / "slots"
        self.env_dir = Path(f"/dev/shm/fastflow-test-{secrets.token_hex(4)}")
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FASTFLOW_")},
            "FASTFLOW_CONTROLPLANE": controlplane.address,
            "FASTFLOW_DATA_DIR": str(folder / "agent"),
            "FASTFLOW_ENV_DIR": str(self.env_dir),
            "FASTFLOW_RUNTIME": "process",
        }
        self._log = folder / "agent.log"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, *command: str) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *command, env=self._environment, stdout=log, stderr=log
            )

    async def died(self) -> None:
        assert self._process is not None
        async with asyncio.timeout(60):
            assert await self._process.wait() == -signal.SIGKILL, self._log.read_text()

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.terminate()
            await self._process.wait()
        shutil.rmtree(self.env_dir, ignore_errors=True)


@pytest.fixture
async def victim(controlplane: ScriptedControlPlane, tmp_path: Path) -> AsyncIterator[Victim]:
    made = Victim(controlplane, tmp_path)
    try:
        yield made
    finally:
        await made.stop()


async def _kill_and_recover(controlplane: ScriptedControlPlane, victim: Victim, place: Checkpoint, duty: Duty) -> None:
    serving = asyncio.create_task(duty.do())
    try:
        duty.may_forget = place not in BEFORE_FORGET
        await victim.start("tests.integration.agent_harness.dying_agent", place.value)
        await victim.died()
        duty.may_forget = True
        await victim.start("fastflow_agent", "run")
        async with asyncio.timeout(60):
            while not duty.forgotten or list(victim.slots.glob("*")):
                await asyncio.sleep(0.02)
                if serving.done():
                    serving.result()
    finally:
        serving.cancel()
        await asyncio.wait([serving])


@pytest.mark.parametrize("place", [place for place in Checkpoint if place not in OF_A_STOP])
async def test_a_run_ends_once_with_its_result_and_its_log(
    controlplane: ScriptedControlPlane, victim: Victim, place: Checkpoint
) -> None:
    word = controlplane.run(PROGRAM)
    run = word.key.run_id
    duty = Duty(controlplane, word, cancel=False)
    await _kill_and_recover(controlplane, victim, place, duty)
    (ended,) = duty.facts("ended")
    assert (ended.ended.state, ended.ended.exit_code) == (FAILED, 7)
    assert controlplane.logs[run] == b"first\nlast\n"
    assert controlplane.sealed[run] == len(controlplane.logs[run])
    assert len(duty.facts("container_gone")) == 1


@pytest.mark.parametrize("place", [*OF_A_STOP, Checkpoint.END_SEEN, Checkpoint.EXITED])
async def test_a_cancel_is_carried_out(controlplane: ScriptedControlPlane, victim: Victim, place: Checkpoint) -> None:
    word = controlplane.run(ENDLESS)
    duty = Duty(controlplane, word, cancel=True)
    await _kill_and_recover(controlplane, victim, place, duty)
    (ended,) = duty.facts("ended")
    assert ended.ended.state == CANCELLED
