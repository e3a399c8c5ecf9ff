"""Each verdict on an attempt: what the ledger knows that the program did, and the script what was done to it."""

from collections.abc import Iterator

from tests.chaos.evidence import MICROSECONDS, Evidence, Row, given_back
from tests.chaos.ledger import Start


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
            return _wrongly_drained(evidence, attempt)
        case "FAILED" if attempt["start_time"] is None and start is None:
            return "nothing in the script keeps a run from starting"
        case _:
            return _unlike(evidence, key, attempt, start, cancelled=key in evidence.cancelled)


def _unlike(evidence: Evidence, key: str, verdict: Row, start: Start | None, *, cancelled: bool) -> str:
    """Why a verdict (state, reason, exit code) can not be; "" = it can."""
    state, reason, code = verdict["state"], verdict["reason"], verdict["exit_code"]
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
            return "" if evidence.kinds.get(key) == "late" else "it had no time limit"
        case "CANCELLED":
            return "" if cancelled else "nobody asked for that"
    return "this is no verdict"


def _wrongly_drained(evidence: Evidence, attempt: Row) -> str:
    """Sent back before it began, in a drain; or stopped at the deadline of one."""
    assigned, ended = (attempt[name] / MICROSECONDS for name in ("assign_time", "end_time"))
    agent = evidence.agents[attempt["agent_id"]]
    drains = [drain for drain in evidence.drains if drain.agent == agent and assigned <= drain.end]
    if given_back(attempt):
        return "" if any(drain.begin <= ended for drain in drains) else "its agent was not drained then"
    return "" if any(drain.stops <= min(drain.end, ended) for drain in drains) else "no drain stopped it then"


def _wrongly_lost(evidence: Evidence, attempt: Row, key: str, start: Start | None) -> str:
    name = attempt["run_id"], attempt["number"]
    against = evidence.absences.against_loss(evidence.agents[attempt["agent_id"]], attempt["end_time"] / MICROSECONDS)
    if against:
        return against
    ends = [event["fact"] for event in evidence.history[name] if event["kind"] == "ended"]
    if start is None or not ends:
        return "" if start is None else "its late result was not kept as history"
    # A stop is desired of what is lost, so its program may have been stopped too.
    return _unlike(evidence, key, ends[0], start, cancelled=True)
