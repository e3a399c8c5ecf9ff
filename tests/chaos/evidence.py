"""What a chaos run left behind, read raw: no code of the product takes part, so none of its faults can hide in here."""

import json
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any

import google_crc32c

from tests.chaos.absence import Absences, began
from tests.chaos.host import Host
from tests.chaos.ledger import Start, read_ledger
from tests.chaos.script import CONTROLPLANE
from tests.chaos.settings import READY, logged_as

Row = dict[str, Any]
AttemptName = tuple[str, int]
"""Run id and number."""

ALARM = re.compile(
    r'Traceback|Fatal Python error|exception was never retrieved|never awaited|"level": ?"(error|critical)"'
)
CONNECTED = "agent connected"
"""In the control plane's log: an agent is there. Against a loss that it declares later, its own word will do."""
MICROSECONDS = 1_000_000
TERMINAL = {"SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT", "LOST"}


@dataclass(frozen=True)
class Journal:
    """One attempt's journal as an agent wrote it; `records` up to the first line that is not whole."""

    agent: str
    slot: str
    records: list[Row]

    @property
    def intent(self) -> Row:
        """Its first record, {} if there is none."""
        return self.records[0] if self.records else {}

    @property
    def attempt(self) -> AttemptName:
        """Which attempt it is about."""
        return self.intent.get("run_id", ""), self.intent.get("attempt", 0)

    def steps(self, name: str) -> list[Row]:
        """Its records of one kind."""
        return [record for record in self.records if record["step"] == name]

    def facts(self, name: str) -> list[Row]:
        """The facts of one kind in its events."""
        facts = [record["event"]["fact"] for record in self.steps("EVENT")]
        return [fact for fact in facts if fact["fact"] == name]


@dataclass(frozen=True)
class Drain:
    """From when to when an agent was drained, and from when on what runs there was stopped (inf = never).

    Seconds of the wall clock.
    """

    agent: str
    begin: float
    stops: float
    end: float


class Evidence:
    """The folder of one chaos run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "cluster" / "controlplane"
        self.runs = self._rows("SELECT * FROM runs ORDER BY id")
        self.attempts = self._rows("SELECT * FROM attempts ORDER BY run_id, number")
        self.agents = {row["agent_id"]: row["name"] for row in self._rows("SELECT agent_id, name FROM agents")}
        self.requests = self._rows("SELECT * FROM requests WHERE kind = 'CREATE_RUN'")
        self._events = self._rows("SELECT * FROM attempt_events ORDER BY run_id, attempt, sequence")
        self._losses = self._rows("SELECT * FROM log_losses ORDER BY run_id, attempt")

    @cached_property
    def host(self) -> Host:
        """What was left on the machine."""
        return Host.from_json((self.folder / "host.json").read_text())

    @cached_property
    def script(self) -> Row:
        """The script."""
        return dict(json.loads((self.folder / "script.json").read_text()))

    @cached_property
    def steps(self) -> list[Row]:
        """All its steps."""
        return [*self.script["steps"], *self.script["filling"]]

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Key of each run that was asked for → kind of its pipeline."""
        return {step["target"]: step["kind"] for step in self.steps if step["act"] == "SUBMIT"}

    @cached_property
    def cancelled(self) -> set[str]:
        """Keys of runs that somebody asked to stop."""
        return {step["target"] for step in self.steps if step["act"] == "CANCEL"}

    @cached_property
    def answers(self) -> list[Row]:
        """What clients were answered."""
        return _lines(self.folder / "answers.jsonl")

    @cached_property
    def deeds(self) -> list[Row]:
        """What was done to whom, and when."""
        return _lines(self.folder / "deeds.jsonl")

    @cached_property
    def absences(self) -> Absences:
        """When each agent was away."""
        seen: dict[str, list[float]] = defaultdict(list)
        for entry in self._entries(CONTROLPLANE, CONNECTED):
            seen[entry["agent"]].append(_logged(entry))
        ready = {name: [_logged(entry) for entry in self._entries(name, event)] for name, event in READY.items()}
        return Absences(self.deeds, seen, ready)

    @cached_property
    def drains(self) -> list[Drain]:
        """Each drain of an agent."""
        found, begun = [], {}
        for deed in self.deeds:
            if deed["what"] == "DRAIN":
                begun[deed["target"]] = deed
            elif deed["what"] == "RESUME":
                drain = begun.pop(deed["target"])
                after = inf if drain["deadline"] is None else drain["deadline"]
                found.append(Drain(deed["target"], began(drain), began(drain) + after, deed["wall"]))
        return found

    @cached_property
    def endings(self) -> dict[str, int]:
        """Exit code of each program after its last SIGTERM."""
        return dict(json.loads((self.folder / "endings.json").read_text()))

    @cached_property
    def starts(self) -> list[Start]:
        """The ledger. Raises BrokenLedger."""
        return read_ledger(self.folder / "ledger")

    @cached_property
    def journals(self) -> list[Journal]:
        """The agents' journals, as far as they were seen before the agents deleted them."""
        return [
            Journal(path.parent.name, path.name, list(_records(path.read_bytes())))
            for path in sorted((self.folder / "journals").glob("*/*"))
        ]

    @cached_property
    def run_of_key(self) -> dict[str, Row]:
        """Runs by the request that asked for them."""
        return {run["request_id"]: run for run in self.runs}

    @cached_property
    def attempts_of(self) -> dict[str, list[Row]]:
        """The attempts of each run, in order."""
        found: dict[str, list[Row]] = defaultdict(list)
        for attempt in self.attempts:
            found[attempt["run_id"]].append(attempt)
        return found

    @cached_property
    def slots(self) -> dict[str, AttemptName]:
        """Which attempt each slot was bound to, as control plane and agents say."""
        told = {row["slot"]: (row["run_id"], row["number"]) for row in self.attempts if row["slot"]}
        for name, events in self.history.items():
            told |= {event["fact"]["slot"]: name for event in events if event["fact"].get("slot")}
        return {**told, **{journal.slot: journal.attempt for journal in self.journals if journal.records}}

    @cached_property
    def starts_of(self) -> dict[AttemptName, list[Start]]:
        """The ledger by attempt; starts in slots that nobody knows are missing."""
        found: dict[AttemptName, list[Start]] = defaultdict(list)
        for start in self.starts:
            if start.slot in self.slots:
                found[self.slots[start.slot]].append(start)
        return found

    @cached_property
    def history(self) -> dict[AttemptName, list[Row]]:
        """Every event that agents reported, with its fact as a dict."""
        found: dict[AttemptName, list[Row]] = defaultdict(list)
        for event in self._events:
            found[event["run_id"], event["attempt"]].append({**event, "fact": json.loads(event["fact"])})
        return found

    @cached_property
    def losses(self) -> dict[AttemptName, list[Row]]:
        """Recorded losses of output."""
        found: dict[AttemptName, list[Row]] = defaultdict(list)
        for loss in self._losses:
            found[loss["run_id"], loss["attempt"]].append(loss)
        return found

    def wall(self, moment: float) -> float:
        """A monotonic moment by the wall clock."""
        return moment + float(next(deed["wall"] - deed["monotonic"] for deed in self.deeds))

    def log(self, name: AttemptName) -> bytes:
        """The stored log of an attempt; nothing where it has no file."""
        path = self.data / "logs" / name[0][-2:] / name[0] / f"{name[1]}.log"
        return path.read_bytes() if path.exists() else b""

    def alarms(self) -> Iterator[str]:
        """Lines of the programs' own logs that tell of a fault nobody foresaw."""
        for path in sorted((self.folder / "cluster").glob("*.log")):
            for line in path.read_text(errors="replace").splitlines():
                if ALARM.search(line):
                    yield f"{path.name}: {line[:2000]}"

    def _entries(self, program: str, event: str) -> Iterator[Row]:
        """A program's log entries of an event; none where it has no log."""
        path = self.folder / "cluster" / f"{program}.log"
        for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
            if logged_as(event) in line:
                # Before it there may be the beginning of what a killed program said last.
                yield json.loads(line[line.rindex('{"') :])

    def _rows(self, query: str) -> list[Row]:
        with closing(sqlite3.connect(f"file:{self.data / 'fastflow.db'}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query)]


def given_back(attempt: Row) -> bool:
    """Whether the attempt's agent said that it did not start, and its run was to be placed elsewhere."""
    ended = attempt["state"] == "FAILED" or (attempt["state"], attempt["reason"]) == ("CANCELLED", "AGENT_DRAINED")
    return ended and attempt["start_time"] is None


def _logged(entry: Row) -> float:
    return datetime.fromisoformat(entry["timestamp"]).timestamp()


def _lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _records(content: bytes) -> Iterator[Row]:
    for line in content.split(b"\n")[:-1]:
        total, _, text = line.partition(b" ")
        if total.decode(errors="replace") != f"{google_crc32c.value(text):08x}":
            return
        yield json.loads(text)
