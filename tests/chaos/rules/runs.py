"""Each run that was asked for: there once, ended once, with all its attempts."""

from collections import Counter, defaultdict
from collections.abc import Iterator

from tests.chaos.evidence import TERMINAL, Evidence, Row, given_back
from tests.chaos.script import RETRIED, RETRIES


def every_accepted_run_ended_once(evidence: Evidence) -> Iterator[str]:
    """Each accepted run is there, terminal, with all its attempts and one applied end of each."""
    known = {run["id"]: run for run in evidence.runs}
    for answer in evidence.answers:
        if answer["what"] == "ACCEPTED" and answer["run"] not in known:
            yield f"run {answer['run']} was accepted and is not in the database"
    for run in evidence.runs:
        if run["state"] not in TERMINAL or run["end_time"] is None:
            yield f"run {run['id']} ({run['request_id']}) has not ended: {run['state']}, {run['message']}"
        numbers = [attempt["number"] for attempt in evidence.attempts_of[run["id"]]]
        if numbers != list(range(1, run["attempt"] + 1)):
            yield f"run {run['id']} is at attempt {run['attempt']} and has attempts {numbers}"
    for attempt in evidence.attempts:
        yield from _ended_once(evidence, attempt)


def _ended_once(evidence: Evidence, attempt: Row) -> Iterator[str]:
    name = attempt["run_id"], attempt["number"]
    ends = [event for event in evidence.history[name] if event["kind"] == "ended"]
    applied = [event for event in ends if not event["rejection"]]
    if attempt["state"] not in TERMINAL or attempt["end_time"] is None:
        yield f"attempt {name} has not ended: {attempt['state']}"
    if len(ends) > 1:
        yield f"attempt {name} was reported as ended {len(ends)} times"
    if applied and applied[0]["fact"]["state"] != attempt["state"]:
        yield f"attempt {name} ended as {applied[0]['fact']['state']} and is {attempt['state']}"
    if not applied and attempt["state"] in ("SUCCEEDED", "TIMED_OUT", "CANCELLED") and not given_back(attempt):
        yield f"attempt {name} is {attempt['state']}, and nobody reported that"
    numbers = [event["sequence"] for event in evidence.history[name]]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"attempt {name} has events {numbers}"


def every_run_ended_for_a_cause(evidence: Evidence) -> Iterator[str]:
    """What became of a run is what became of its newest attempt, or somebody cancelled it while it waited."""
    for run in evidence.runs:
        attempts = evidence.attempts_of[run["id"]]
        for former in attempts[:-1]:
            if not _goes_on_after(evidence, run, former):
                yield f"run {run['id']} went on after attempt {former['number']}, which was {former['state']}"
        why = _without_cause(evidence, run, attempts[-1] if attempts else None)
        if why:
            yield f"run {run['id']} ({run['request_id']}) is {run['state']} {run['reason']}: {why}"


def _without_cause(evidence: Evidence, run: Row, newest: Row | None) -> str:
    """Why a run can not have become what it is; "" = it can."""
    stopped = newest is not None and newest["reason"] == "AGENT_DRAINED" and not given_back(newest)
    if run["state"] == "CANCELLED" and run["request_id"] not in evidence.cancelled and not stopped:
        return "nobody asked for that"
    if newest is None or (run["state"] == "CANCELLED" and _goes_on_after(evidence, run, newest)):
        # While it waits nothing else ends it: what the queue's deadline is, no script reaches.
        return "" if run["state"] == "CANCELLED" else "it was never placed"
    if run["state"] == "LOST" and _goes_on_after(evidence, run, newest) and run["cancel_time"] is None:
        return "it was to start again"
    told = [name for name in ("state", "reason", "exit_code") if run[name] != newest[name]]
    return f"its newest attempt is {newest['state']} {newest['reason']}, with another {told[0]}" if told else ""


def _goes_on_after(evidence: Evidence, run: Row, attempt: Row) -> bool:
    """Whether the run waits again after the attempt: it was given back, or lost where the pipeline says so."""
    if attempt["state"] != "LOST":
        return given_back(attempt)
    lost = [row for row in evidence.attempts_of[run["id"]][: attempt["number"]] if row["state"] == "LOST"]
    return evidence.kinds.get(run["request_id"]) in RETRIED and len(lost) <= RETRIES


def a_request_is_one_run(evidence: Evidence) -> Iterator[str]:
    """However often it is repeated, and nothing runs that nobody asked for."""
    answered: dict[str, set[str]] = defaultdict(set)
    for answer in evidence.answers:
        if answer["what"] == "ACCEPTED":
            answered[answer["target"]].add(answer["run"])
    stored = Counter(run["request_id"] for run in evidence.runs)
    for key in evidence.kinds.keys() | stored.keys():
        if len(answered[key]) != 1:
            yield f"request {key} was answered with {len(answered[key])} runs: {sorted(answered[key])}"
        if stored[key] != 1:
            yield f"request {key} has {stored[key]} runs"
        elif answered[key] and evidence.run_of_key[key]["id"] not in answered[key]:
            yield f"request {key} was answered with another run than is stored"
    for request in evidence.requests:
        if request["answer_id"] not in answered[request["request_id"]]:
            yield f"request {request['request_id']} is remembered as run {request['answer_id']}"
