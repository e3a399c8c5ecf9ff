"""Ways to tamper with the evidence of a chaos run in which all went well."""

import json
from collections.abc import Callable
from typing import Any

from tests.unit.chaos.aftermath import FAILS, KEYS, Aftermath, Steps, deed, journal, slot_of

Tamper = Callable[[Aftermath], None]


def all_of(*tampers: Tamper) -> Tamper:
    """One after the other."""

    def tamper(it: Aftermath) -> None:
        for each in tampers:
            each(it)

    return tamper


def sql(statement: str, *values: Any) -> Tamper:
    """Other rows."""
    return lambda it: it.sql(statement, *values)


def edited(name: str, old: str, new: str) -> Tamper:
    """Another text in a file, wherever it stands."""
    return lambda it: it.replace(name, old, new)


def written(name: str, content: str) -> Tamper:
    """Another file."""
    return lambda it: it.put(name, content)


def deleted(*names: str) -> Tamper:
    """Files fewer."""
    return lambda it: it.unlink(*names)


def left_over(**left: Any) -> Tamper:
    """Something is left on the machine; names as of `Host`."""
    return lambda it: it.host(**left)


def lost_output(run: str, offset: int, size: int | None) -> Tamper:
    """A recorded loss of output."""
    return lambda it: it.insert_loss(run, offset, size)


def other_journal(slot: str, records: Steps) -> Tamper:
    """Another journal."""
    return lambda it: it.put_journal(slot, records)


def state_of(run: str, state: str) -> Tamper:
    """A run, but none of its attempts, in another state."""
    return lambda it: it.sql("UPDATE runs SET state = ? WHERE id = ?", state, run)


def run_row(run: str, assignment: str) -> Tamper:
    """Another row of a run, as an assignment in SQL says."""
    return lambda it: it.sql(f"UPDATE runs SET {assignment} WHERE id = ?", run)


def attempt(run: str, assignment: str) -> Tamper:
    """Another row of each attempt of a run."""
    return lambda it: it.sql(f"UPDATE attempts SET {assignment} WHERE run_id = ?", run)


def both(run: str, assignment: str) -> Tamper:
    """Another row of a run and of each of its attempts."""
    return all_of(run_row(run, assignment), attempt(run, assignment))


def one_more(run: str) -> Tamper:
    """One more attempt, which succeeds."""

    def tamper(it: Aftermath) -> None:
        it.sql(
            "UPDATE runs SET attempt = attempt + 1, state = 'SUCCEEDED', reason = '', exit_code = 0 WHERE id = ?", run
        )
        it.attempt(run, it.number(run), "SUCCEEDED", "", 0)

    return tamper


def of_kind(key: str, kind: str) -> Tamper:
    """A run asked for of another pipeline."""

    def change(steps: Steps) -> Steps:
        return [step | {"kind": kind} if (step["act"], step["target"]) == ("SUBMIT", key) else step for step in steps]

    return lambda it: it.edit_script(change)


def cancelled(key: str) -> Tamper:
    """A run that somebody asks to stop."""

    def tamper(it: Aftermath) -> None:
        it.edit_script(lambda steps: [*steps, {"at": 3.0, "act": "CANCEL", "target": key, "kind": ""}])
        it.append("answers.jsonl", {"what": "CANCELLED", "target": key})

    return tamper


def not_cancelled(key: str) -> Tamper:
    """A run that nobody asks to stop."""
    return lambda it: it.edit_script(
        lambda steps: [step for step in steps if (step["act"], step["target"]) != ("CANCEL", key)]
    )


def log(run: str, content: bytes) -> Tamper:
    """Another stored log, of which the row knows."""

    def tamper(it: Aftermath) -> None:
        it.log(run).write_bytes(content)
        it.sql("UPDATE attempts SET log_bytes = ? WHERE run_id = ?", len(content), run)

    return tamper


def of_attempt(run: str, number: int, assignment: str) -> Tamper:
    """Another row of one attempt."""
    return lambda it: it.sql(f"UPDATE attempts SET {assignment} WHERE run_id = ? AND number = ?", run, number)


def begins(run: str, number: int, moment: float) -> Tamper:
    """One attempt whose program begins at another moment, and then lives for as long as before."""

    def tamper(it: Aftermath) -> None:
        name = f"{KEYS[run]}.{slot_of(run, number)}"
        records = [json.loads(line) for line in (it.folder / "ledger" / name).read_text().splitlines()]
        it.put_ledger(name, [{key: record[key] for key in record if key != "monotonic"} for record in records], moment)

    return tamper


def noted(what: str, target: str, **details: Any) -> Tamper:
    """One more deed."""
    return lambda it: it.append("deeds.jsonl", deed(what, target, 60.0, details))


def again(key: str, slot: str, begin: float) -> Tamper:
    """One more start of a run."""
    record = {
        "step": "begin",
        "key": key,
        "slot": slot,
        "pid": 2,
        "boot": "b",
        "alone": True,
        "fate": "exit",
        "code": 0,
    }
    return lambda it: it.put_ledger(f"{key}.{slot}-again", [record], begin)


def events_of(run: str, *numbers: int) -> Tamper:
    """A journal whose events have these numbers."""

    def tamper(it: Aftermath) -> None:
        records = journal(run, "SUCCEEDED")
        given = iter(numbers)
        for record in records:
            if record["step"] == "EVENT":
                record["event"]["sequence"] = next(given)
        it.put_journal(slot_of(run), records)

    return tamper


def step_again(run: str, step: str, at: int) -> Tamper:
    """A journal with a step more, at a place."""

    def tamper(it: Aftermath) -> None:
        records = journal(run, "SUCCEEDED")
        records.insert(at, {"step": step})
        it.put_journal(slot_of(run), records)

    return tamper


def never_began(it: Aftermath) -> None:
    """FAILS left no start."""
    attempt(FAILS, "start_time = NULL")(it)
    (it.folder / "ledger/fails.a2").unlink()


def calm(it: Aftermath) -> None:
    """Nothing was done to anybody."""
    it.put("deeds.jsonl", "")
