"""Ways to tamper with the evidence of a chaos run in which all went well."""

from collections.abc import Callable

from tests.unit.chaos.aftermath import FAILS, Aftermath, Steps, journal, slot_of

Tamper = Callable[[Aftermath], None]


def all_of(*tampers: Tamper) -> Tamper:
    """One after the other."""

    def tamper(it: Aftermath) -> None:
        for each in tampers:
            each(it)

    return tamper


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
    return lambda it: it.edit_script(lambda steps: [*steps, {"at": 3.0, "act": "CANCEL", "target": key, "kind": ""}])


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
