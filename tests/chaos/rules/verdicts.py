"""Each verdict on an attempt: what the ledger knows that the program did, and the script what was done to it."""

from collections.abc import Iterator

from tests.chaos.evidence import Evidence, Row
from tests.chaos.ledger import Start

MICROSECONDS = 1_000_000


def every_verdict_is_true(evidence: Evidence) -> Iterator[str]:
    """As the ledger knows what the program did, and the script what was done to it."""
    keys = {run["id"]: run["request_id"] for run in evidence.runs}
    for attempt in evidence.attempts:
        name = attempt["run_id"], attempt["number"]
        key = keys.get(name[0], "")
        starts = evidence.starts_of.get(name, [])
        why = _untrue(evidence, attempt, key, starts[0] if starts else None)
        if why:
            verdict = f"{attempt['state']} {attempt['reason']} {attempt['exit_code']} ({attempt['message']})"
            yield f"attempt {name} of {key}, a {evidence.kinds.get(key)}: {verdict}: {why}"


def _untrue(evidence: Evidence, attempt: Row, key: str, start: Start | None) -> str:
    match attempt["state"]:
        case "LOST":
            return _wrongly_lost(evidence, attempt, key, start)
        case "CANCELLED" if attempt["reason"] == "AGENT_DRAINED":
            drained = {deed["target"] for deed in evidence.deeds if deed["what"] == "DRAIN"}
            return "" if evidence.agents[attempt["agent_id"]] in drained else "its agent was never drained"
        case "FAILED" if attempt["start_time"] is None and start is None:
            return "nothing in the script keeps a run from starting"
        case _:
            return _unlike(attempt["state"], attempt["reason"], attempt["exit_code"], key in evidence.cancelled, start)


def _unlike(state: str, reason: str, code: int | None, cancelled: bool, start: Start | None) -> str:
    """Why a verdict can not be; "" = it can."""
    ended = start.code if start else None
    match state:
        case "SUCCEEDED":
            return "" if ended == 0 and code == 0 else f"the program recorded its end as {ended}"
        case "FAILED" if start and start.fate == "oom":
            return "" if reason == "OOM_KILLED" else "the program went over its memory limit"
        case "FAILED":
            true = ended and ended == code and reason == "EXIT_CODE"
            return "" if true else f"the program recorded its end as {ended}"
        case "TIMED_OUT":
            return "" if start is None or start.fate == "timeout" else "it had no time limit"
        case "CANCELLED":
            return "" if cancelled else "nobody asked for that"
    return "this is no verdict"


def _wrongly_lost(evidence: Evidence, attempt: Row, key: str, start: Start | None) -> str:
    name = attempt["run_id"], attempt["number"]
    against = evidence.absences.against_loss(evidence.agents[attempt["agent_id"]], attempt["end_time"] / MICROSECONDS)
    if against:
        return against
    ends = [event["fact"] for event in evidence.history[name] if event["kind"] == "ended"]
    if start is None or not ends:
        return "" if start is None else "its late result was not kept as history"
    # A stop is desired of what is lost, so its program may have been stopped too.
    end = ends[0]
    return _unlike(end["state"], end["reason"], end["exit_code"], True, start)
