"""Each run that was asked for: there once, ended once, with all its attempts."""

from collections import Counter, defaultdict
from collections.abc import Iterator

from tests.chaos.evidence import TERMINAL, Evidence, Row, given_back


def every_accepted_run_ended_once(evidence: Evidence) -> Iterator[str]:
    """Each accepted run is there, terminal, with one applied end per attempt, and mirrors its newest attempt."""
    known = {run["id"]: run for run in evidence.runs}
    for answer in evidence.answers:
        if answer["what"] == "ACCEPTED" and answer["run"] not in known:
            yield f"run {answer['run']} was accepted and is not in the database"
    attempts: dict[str, list[Row]] = defaultdict(list)
    for attempt in evidence.attempts:
        attempts[attempt["run_id"]].append(attempt)
    for run in evidence.runs:
        if run["state"] not in TERMINAL or run["end_time"] is None:
            yield f"run {run['id']} ({run['request_id']}) has not ended: {run['state']}, {run['message']}"
        yield from _mirrors(run, attempts[run["id"]])
    for attempt in evidence.attempts:
        yield from _ended_once(evidence, attempt)


def _mirrors(run: Row, attempts: list[Row]) -> Iterator[str]:
    if [attempt["number"] for attempt in attempts] != list(range(1, run["attempt"] + 1)):
        yield f"run {run['id']} is at attempt {run['attempt']} and has {len(attempts)} attempts"
    elif attempts and attempts[-1]["state"] != run["state"]:
        # A run that waits again after such an attempt may be cancelled.
        waited = given_back(attempts[-1]) or attempts[-1]["state"] == "LOST"
        if not (waited and run["state"] in ("CANCELLED", "FAILED")):
            yield f"run {run['id']} is {run['state']}, its newest attempt {attempts[-1]['state']}"


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
