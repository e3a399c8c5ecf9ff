"""Evidence of a small chaos run in which all went well, written by hand, and ways to tamper with it."""

import base64
import json
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import google_crc32c
from fastflow_controlplane.store.models import agents, attempts, metadata, runs
from sqlalchemy import Table, create_engine

from tests.chaos.host import Host

AGENT = "11111111-1111-7111-8111-111111111111"
COUNTS = "00000000-0000-7000-8000-000000000001"
FAILS = "00000000-0000-7000-8000-000000000002"
WAITS = "00000000-0000-7000-8000-000000000003"
LOST = "00000000-0000-7000-8000-000000000004"
NEVER = "00000000-0000-7000-8000-000000000005"
OVER = "00000000-0000-7000-8000-000000000006"
DRAINED = "00000000-0000-7000-8000-000000000008"
FILLS = "00000000-0000-7000-8000-000000000007"
KEYS = {
    COUNTS: "counts",
    FAILS: "fails",
    WAITS: "waits",
    LOST: "lost",
    NEVER: "never",
    OVER: "over",
    DRAINED: "drained",
    FILLS: "fills",
}
KINDS = {
    "counts": "lines",
    "fails": "seven",
    "waits": "sleeps",
    "lost": "lines",
    "never": "lines",
    "over": "hog",
    "drained": "lines",
    "fills": "whole",
}
CANCELLED = ("waits", "never", "fills")
DEEDS = [
    ("KILL", "plain-1", 10.0, {"found": None}),
    ("START", "plain-1", 30.0, {"found": -9}),
    ("STOP", "plain-1", 51.0, {"found": None, "catches": True}),
    ("START", "plain-1", 52.0, {"found": 0}),
    ("DRAIN", "plain-1", 40.0, {"deadline": 2.0}),
    ("RESUME", "plain-1", 50.0, {"deadline": None}),
    *((milestone, "", 60.0, {}) for milestone in ("HEALED", "SETTLED", "FILLED", "SETTLED AGAIN")),
]
Steps = list[dict[str, Any]]
WALL = 1_000_000.0
"""By how much the wall clock is ahead of the monotonic one."""
OUTPUT = b"first\nsecond\n"


@dataclass(frozen=True)
class Aftermath:
    """The folder."""

    folder: Path

    @classmethod
    def write(cls, folder: Path) -> "Aftermath":
        """A run of each sort that the rules tell apart, all of them as they should be."""
        made = cls(folder)
        for parent in ("cluster/controlplane", "ledger", "journals/plain-1"):
            (folder / parent).mkdir(parents=True)
        engine = create_engine(f"sqlite:///{made.database}")
        with engine.begin() as connection:
            metadata.create_all(connection)
        engine.dispose()
        made.insert(agents, {"agent_id": AGENT, "name": "plain-1"})
        made.run(COUNTS, "SUCCEEDED", "", 0)
        made.run(FAILS, "FAILED", "EXIT_CODE", 7)
        made.run(WAITS, "CANCELLED", "CANCEL_REQUESTED", 143, ended=None)
        made.run(LOST, "SUCCEEDED", "", 0, run_state="LOST", rejection="ALREADY_TERMINAL")
        made.run(OVER, "FAILED", "OOM_KILLED", 137, ended=None, fate={"fate": "oom"})
        made.run(DRAINED, "CANCELLED", "AGENT_DRAINED", 143, ended=None)
        made.sql("UPDATE attempts SET end_time = ? WHERE run_id = ?", usec(43.0), DRAINED)
        made.run(FILLS, "CANCELLED", "CANCEL_REQUESTED", 143, ended=None)
        made.insert(runs, {**_run(NEVER, "CANCELLED"), "attempt": 0})
        made.insert_request(NEVER)
        made._write_script()
        answers = [{"what": "ACCEPTED", "target": key, "run": run} for run, key in KEYS.items()]
        answers += [{"what": "CANCELLED", "target": key} for key in CANCELLED]
        for answer in answers:
            made.append("answers.jsonl", answer)
        for each in DEEDS:
            made.append("deeds.jsonl", deed(*each))
        made.put("endings.json", json.dumps({"plain-1": 0}))
        made.put("host.json", Host([], {}, {}, [], [], []).to_json())
        made.put("cluster/controlplane.log", seen(5.0))
        made.put("cluster/plain-1.log", '{"event": "stopped", "level": "info"}\n')
        return made

    def _write_script(self) -> None:
        asked = [_step(1.0, "SUBMIT", key, KINDS[key]) for key in KEYS.values()]
        asked += [_step(2.0, "CANCEL", key) for key in CANCELLED]
        steps = [step for step in asked if step["target"] != "fills"]
        steps += [_step(at, what, target) for what, target, at, _ in DEEDS if target]
        filling = [step for step in asked if step["target"] == "fills"]
        self.put("script.json", json.dumps({"seed": 1, "seconds": 60.0, "steps": steps, "filling": filling}))

    @property
    def database(self) -> Path:
        """The control plane's database."""
        return self.folder / "cluster/controlplane/fastflow.db"

    def run(self, run: str, state: str, reason: str, code: int, *, run_state: str = "", **details: Any) -> None:
        """A run with one attempt in every place; `details` as of `attempt`.

        `run_state` is what the rows say where that is not what the agent says.
        """
        stored = {"state": run_state or state, "reason": "AGENT_LOST" if run_state else reason, "exit_code": code}
        self.insert(runs, {**_run(run, stored["state"]), **stored})
        self.insert_request(run)
        self.attempt(run, 1, state, reason, code, stored=stored, **details)

    def attempt(
        self,
        run: str,
        number: int,
        state: str,
        reason: str,
        code: int,
        *,
        ended: int | None = -1,
        stored: Mapping[str, Any] | None = None,
        rejection: str = "",
        fate: Mapping[str, Any] | None = None,
    ) -> None:
        """An attempt in every place, `stored` so. `ended` None = its program was killed; -1 = it ended with `code`."""
        ended = code if ended == -1 else ended
        slot = slot_of(run, number)
        stored = stored or {"state": state, "reason": reason, "exit_code": code}
        self.insert(attempts, {**_attempt(run, number), **stored})
        self.insert_event(run, 1, "state_changed", {"state": "RUNNING", "slot": slot}, rejection, number)
        fact = {"state": state, "reason": reason, "exit_code": code}
        self.insert_event(run, 2, "ended", fact, rejection, number)
        self.put(f"cluster/controlplane/logs/{run[-2:]}/{run}/{number}.log", OUTPUT)
        planned = {"fate": "stopped"} if ended is None else {"fate": "exit", "code": ended}
        begin = {"step": "begin", "key": KEYS[run], "slot": slot, "pid": 1, "boot": "b", "alone": True}
        records = [
            {**begin, **(fate or planned)},
            {"step": "say", "data": base64.b64encode(OUTPUT).decode()},
            {"step": "said"},
        ]
        records += [] if ended is None else [{"step": "end", "code": ended}]
        self.put_ledger(f"{KEYS[run]}.{slot}", records, 100.0 * number)
        self.put_journal(slot, journal(run, state, number))

    def sql(self, statement: str, *values: Any) -> None:
        """Writes to the database."""
        with closing(sqlite3.connect(self.database)) as connection, connection:
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute(statement, values)

    def number(self, run: str) -> int:
        """Number of the run's newest attempt."""
        with closing(sqlite3.connect(self.database)) as connection:
            (number,) = connection.execute("SELECT attempt FROM runs WHERE id = ?", (run,)).fetchone()
        return int(number)

    def insert(self, table: Table, row: Mapping[str, Any]) -> None:
        """Inserts one row; columns that are not named and must be something are 0 or empty."""
        filled = {column.name: _filler(column) for column in table.c if not column.nullable} | dict(row)
        places = ", ".join("?" * len(filled))
        columns = ", ".join(f'"{name}"' for name in filled)
        self.sql(f"INSERT INTO {table.name} ({columns}) VALUES ({places})", *filled.values())

    def insert_event(
        self, run: str, sequence: int, kind: str, fact: Mapping[str, Any], rejection: str = "", number: int = 1
    ) -> None:
        """Inserts one event of an attempt."""
        row = run, number, sequence, 1, 1, 1, kind, json.dumps(fact), rejection
        self.sql(f"INSERT INTO attempt_events VALUES ({', '.join('?' * len(row))})", *row)

    def insert_request(self, run: str) -> None:
        """Remembers the request that asked for the run."""
        self.sql("INSERT INTO requests VALUES ('CREATE_RUN', ?, '', ?, 1)", KEYS[run], run)

    def insert_loss(self, run: str, offset: int, size: int | None) -> None:
        """Records a loss of output."""
        self.sql("INSERT INTO log_losses VALUES (?, 1, 'agent', 3, 'DROPPED', ?, ?, 1, '')", run, offset, size)

    def put(self, name: str, content: str | bytes) -> None:
        """Writes a file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def append(self, name: str, line: Mapping[str, Any]) -> None:
        """Adds a line of JSON to a file."""
        with (self.folder / name).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def unlink(self, *names: str) -> None:
        """Deletes files."""
        for name in names:
            (self.folder / name).unlink()

    def put_ledger(self, name: str, records: list[dict[str, Any]], begin: float = 100.0) -> None:
        """Writes one file of the ledger; its records are a second apart."""
        lines = [json.dumps({"monotonic": begin + number, **record}) for number, record in enumerate(records)]
        self.put(f"ledger/{name}", "".join(line + "\n" for line in lines))

    def put_journal(self, slot: str, records: list[dict[str, Any]]) -> None:
        """Writes one journal."""
        texts = [json.dumps(record).encode() for record in records]
        self.put(
            f"journals/plain-1/{slot}", b"".join(b"%08x %b\n" % (google_crc32c.value(t), t) for t in texts) + b"\0" * 9
        )

    def log(self, run: str) -> Path:
        """The stored log of attempt 1."""
        return self.folder / f"cluster/controlplane/logs/{run[-2:]}/{run}/1.log"

    def replace(self, name: str, old: str, new: str) -> None:
        """Changes a text in a file; it must be there."""
        path = self.folder / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    def edit_script(self, change: Callable[[Steps], Steps]) -> None:
        """Has another script have been played, but for what fills agents."""
        script = json.loads((self.folder / "script.json").read_text())
        self.put("script.json", json.dumps(script | {"steps": change(script["steps"])}))

    def host(self, **left: Any) -> None:
        """Has something be left on the machine."""
        self.put("host.json", json.dumps(json.loads((self.folder / "host.json").read_text()) | left))


def deed(what: str, target: str, begun: float, details: Mapping[str, Any]) -> dict[str, Any]:
    """As deeds.jsonl has it; every deed takes a tenth of a second."""
    after = begun + 0.1
    return {"what": what, "target": target, "begun": begun, "monotonic": after, "wall": WALL + after, **details}


def seen(moment: float) -> str:
    """What the control plane writes into its log when the agent connects, at a monotonic moment."""
    timestamp = datetime.fromtimestamp(WALL + moment, UTC).isoformat()
    return json.dumps({"agent": "plain-1", "event": "agent connected", "level": "info", "timestamp": timestamp}) + "\n"


def usec(moment: float) -> int:
    """How rows have a monotonic moment."""
    return round((WALL + moment) * 1_000_000)


def slot_of(run: str, number: int = 1) -> str:
    """The slot of an attempt."""
    return f"a{run[-1]}" if number == 1 else f"a{run[-1]}-{number}"


def journal(run: str, state: str, number: int = 1) -> list[dict[str, Any]]:
    """The records of a whole journal."""

    def event(sequence: int, fact: dict[str, Any]) -> dict[str, Any]:
        return {"step": "EVENT", "event": {"sequence": sequence, "time": "", "fact": fact}}

    return [
        {"step": "INTENT", "run_id": run, "attempt": number, "claim_token": "token", "slot": slot_of(run, number)},
        {"step": "CREATED", "log_inode": 1},
        {"step": "STARTED"},
        {"step": "RELEASED"},
        event(1, {"fact": "state_changed", "state": "RUNNING"}),
        {"step": "EXITED"},
        event(2, {"fact": "ended", "state": state}),
        {"step": "SEALED", "end_offset": len(OUTPUT)},
        {"step": "FORGET"},
    ]


def _step(at: float, act: str, target: str, kind: str = "") -> dict[str, Any]:
    return {"at": at, "act": act, "target": target, "kind": kind, "deadline": None}


def _run(run: str, state: str) -> dict[str, Any]:
    return {
        "id": run,
        "reversed_id": run.replace("-", "")[::-1],
        "pipeline": KINDS[KEYS[run]],
        "state": state,
        "attempt": 1,
        "request_id": KEYS[run],
        "end_time": usec(25.0),
    }


def _attempt(run: str, number: int) -> dict[str, Any]:
    return {
        "run_id": run,
        "number": number,
        "agent_id": AGENT,
        "claim_token": "token",
        "slot": slot_of(run, number),
        "assign_time": usec(1.0 if number == 1 else 26.0),
        "start_time": usec(2.0 if number == 1 else 27.0),
        "end_time": usec(25.0),
        "desired": "FORGET",
        "released": True,
        "log_bytes": len(OUTPUT),
        "log_sealed": True,
    }


def _filler(column: Any) -> Any:
    return {int: 0, bool: False, str: "", float: 0.0, dict: "{}"}.get(column.type.python_type, b"")
