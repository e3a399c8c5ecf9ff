"""What must hold after a chaos run, each rule apart; every one says in words what broke it."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise

from tests.chaos.evidence import TERMINAL, AttemptName, Evidence, Journal, Row
from tests.chaos.ledger import Start

Rule = Callable[[Evidence], Iterator[str]]
RULES: list[Rule] = []

ORDER = ["INTENT", "PREPARED", "CREATED", "STARTED", "RELEASED", "SIGNALLED", "EXITED", "SEALED", "FORGET"]
"""The steps of a journal that come in this order."""
ONCE = ["INTENT", "RELEASED", "EXITED", "FORGET"]
"""Steps that come at most once in a journal."""
HURTS = {"KILL", "STOP", "FREEZE", "CUT", "STALL"}
"""What keeps an agent and the control plane apart."""
GRACE_SECONDS = 15.0
"""How long before an end as LOST its cause may have ended: heartbeats missed, the limits, a busy machine."""


def rule(check: Rule) -> Rule:
    """Makes a function one of RULES."""
    RULES.append(check)
    return check


def violations(evidence: Evidence) -> list[str]:
    """Everything that any rule finds wrong, with the rule's name."""
    return [f"{check.__name__}: {found}" for check in RULES for found in check(evidence)]


@rule
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
        waited = _given_back(attempts[-1]) or attempts[-1]["state"] == "LOST"
        if not (waited and run["state"] in ("CANCELLED", "FAILED")):
            yield f"run {run['id']} is {run['state']}, its newest attempt {attempts[-1]['state']}"


def _given_back(attempt: Row) -> bool:
    """Whether the attempt's agent said that it did not start, and its run was to be placed elsewhere."""
    ended = attempt["state"] == "FAILED" or (attempt["state"], attempt["reason"]) == ("CANCELLED", "AGENT_DRAINED")
    return ended and attempt["start_time"] is None


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
    if not applied and attempt["state"] in ("SUCCEEDED", "TIMED_OUT", "CANCELLED") and not _given_back(attempt):
        yield f"attempt {name} is {attempt['state']}, and nobody reported that"
    numbers = [event["sequence"] for event in evidence.history[name]]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"attempt {name} has events {numbers}"


@rule
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


@rule
def no_attempt_started_twice(evidence: Evidence) -> Iterator[str]:
    """By the ledger: one start per attempt, each in the slot of an attempt of that run."""
    for start in evidence.starts:
        name = evidence.slots.get(start.slot)
        if name is None:
            yield f"{start.key} started in slot {start.slot}, which belongs to no attempt"
        elif evidence.run_of_key.get(start.key, {}).get("id") != name[0]:
            yield f"{start.key} started in slot {start.slot}, which belongs to run {name[0]}"
    for name, starts in evidence.starts_of.items():
        if len(starts) > 1:
            yield f"attempt {name} started {len(starts)} times, in slots {[start.slot for start in starts]}"
    for attempt in evidence.attempts:
        if _given_back(attempt) and evidence.starts_of.get((attempt["run_id"], attempt["number"])):
            yield f"attempt {attempt['run_id']} {attempt['number']} could not start, says its agent; yet it did"


@rule
def no_two_attempts_of_a_run_lived_at_once(evidence: Evidence) -> Iterator[str]:
    """By the ledger's locks and intervals; but for one that was lost: nobody could stop it when the next began."""
    states = {(row["run_id"], row["number"]): row["state"] for row in evidence.attempts}
    lost = {start.slot for start in evidence.starts if states.get(evidence.slots.get(start.slot, ("", 0))) == "LOST"}
    by_key: dict[str, list[Start]] = defaultdict(list)
    for start in evidence.starts:
        by_key[start.key].append(start)
    for start in evidence.starts:
        others = {other.slot for other in by_key[start.key] if other is not start}
        if not start.alone and not others & lost:
            yield f"{start.key} started in slot {start.slot} while another start of it lived"
    for key, starts in by_key.items():
        starts.sort(key=lambda start: start.begin)
        for former, later in pairwise(starts):
            if former.last > later.begin and former.slot not in lost:
                yield f"{key} lived in slots {former.slot} and {later.slot} at once"


@rule
def every_log_equals_the_ledger(evidence: Evidence) -> Iterator[str]:
    """Byte for byte, outside of recorded losses; and it is known to be whole."""
    for attempt in evidence.attempts:
        name = attempt["run_id"], attempt["number"]
        stored = evidence.log(name)
        starts = evidence.starts_of.get(name, [])
        difference = _difference(stored, starts[0] if starts else None, evidence.losses[name])
        if difference:
            yield f"log of attempt {name} ({starts[0].key if starts else 'no start'}): {difference}"
        if not attempt["log_sealed"]:
            yield f"log of attempt {name} is not sealed"
        if attempt["log_bytes"] != len(stored):
            yield f"log of attempt {name} has {len(stored)} bytes, its row says {attempt['log_bytes']}"


def _difference(stored: bytes, start: Start | None, losses: list[Row]) -> str:
    said, perhaps = (start.said, start.saying) if start else (b"", b"")
    written = said + perhaps
    least = len(written) if start and start.code is not None else len(said)
    for loss in losses:
        end = len(written) if loss["bytes"] is None else loss["offset"] + loss["bytes"]
        hole = slice(loss["offset"], min(end, len(stored)))
        stored = stored[: hole.start] + written[hole] + stored[hole.stop :]
        if end >= least:
            least = min(least, loss["offset"])
    if len(stored) < least:
        return f"{len(stored)} bytes are stored, at least {least} were written, and no loss is recorded"
    if len(stored) > len(written):
        return f"{len(stored)} bytes are stored, only {len(written)} were written: {stored[len(written) :][:200]!r}"
    if not written.startswith(stored):
        first = next(at for at, (here, there) in enumerate(zip(stored, written, strict=False)) if here != there)
        return f"differs from byte {first}: {stored[first : first + 80]!r}, not {written[first : first + 80]!r}"
    return ""


@rule
def reserved_capacity_is_zero(evidence: Evidence) -> Iterator[str]:
    """Every attempt is settled, its container known to be gone."""
    for attempt in evidence.attempts:
        if attempt["desired"] != "FORGET" or not attempt["released"]:
            agent = evidence.agents.get(attempt["agent_id"])
            held = f"{attempt['cpu_milli_cores']} milli-cores and {attempt['memory_bytes']} bytes on {agent}"
            yield f"attempt {attempt['run_id']} {attempt['number']} still holds {held}: {attempt['desired']}"


@rule
def nothing_is_left_on_the_hosts(evidence: Evidence) -> Iterator[str]:
    """No container, volume, control group, mount, process, slot folder or environment."""
    host, ours = evidence.host, evidence.slots.keys() | {start.slot for start in evidence.starts}
    yield from (f"container {container}" for container in host.containers)
    yield from (f"volume {name} of slot {slot}" for slot, name in host.volumes.items() if slot in ours)
    yield from (f"control group {path}" for slot, path in host.cgroups.items() if slot in ours)
    yield from (f"mount {mount}" for mount in host.mounts)
    yield from (f"process {process}" for process in host.processes)
    yield from (f"file {path}" for path in host.files)


@rule
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
    if not _was_away(evidence, evidence.agents[attempt["agent_id"]]):
        return "its agent was never away for long"
    ends = [event["fact"] for event in evidence.history[name] if event["kind"] == "ended"]
    if start is None or not ends:
        return "" if start is None else "its late result was not kept as history"
    # A stop is desired of what is lost, so its program may have been stopped too.
    end = ends[0]
    return _unlike(end["state"], end["reason"], end["exit_code"], True, start)


def _was_away(evidence: Evidence, agent: str) -> bool:
    """Whether anything kept the agent, or the control plane, for longer than a moment."""
    begun: dict[tuple[str, bool], float] = {}
    longest = 0.0
    for deed in evidence.deeds:
        if deed["target"] in (agent, "controlplane") and deed["what"] not in ("DRAIN", "RESUME"):
            place = deed["target"], deed["what"] in ("CUT", "STALL", "HEAL")
            if deed["what"] in HURTS:
                begun[place] = deed["begun"]
            elif place in begun:
                longest = max(longest, deed["monotonic"] - begun.pop(place))
    return longest > 2.0


@rule
def journals_tell_the_same(evidence: Evidence) -> Iterator[str]:
    """As far as they were seen: in order, without gaps, one per attempt, and of one mind with the database."""
    rows = {(row["run_id"], row["number"]): row for row in evidence.attempts}
    seen: dict[AttemptName, Journal] = {}
    for journal in evidence.journals:
        if not journal.records:
            continue
        name, row = journal.attempt, rows.get(journal.attempt)
        if name in seen:
            yield f"attempt {name} has journals in slots {seen[name].slot} and {journal.slot}"
        seen[name] = journal
        if row is None or row["claim_token"] != journal.intent["claim_token"]:
            yield f"journal {journal.slot} is of attempt {name}, which was never assigned so"
        else:
            yield from (f"journal {journal.slot} of {name}: {fault}" for fault in _faults(journal, row))


def _faults(journal: Journal, row: Row) -> Iterator[str]:
    steps = [record["step"] for record in journal.records]
    for step in ONCE:
        if steps.count(step) > 1:
            yield f"{step} {steps.count(step)} times"
    if "RELEASED" in steps:
        later = [ORDER.index(step) for step in steps[steps.index("RELEASED") :] if step in ORDER]
        if later != sorted(later):
            yield f"steps out of order: {steps}"
    numbers = [record["event"]["sequence"] for record in journal.steps("EVENT")]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"events {numbers}"
    ends = journal.facts("ended")
    if len(ends) > 1:
        yield f"ended {len(ends)} times"
    if ends and row["state"] not in (ends[0]["state"], "LOST"):
        yield f"ended as {ends[0]['state']}, the database says {row['state']}"


@rule
def no_program_failed(evidence: Evidence) -> Iterator[str]:
    """Each ended on SIGTERM in time and in order, and none told of a fault that nobody foresaw."""
    for name, code in evidence.endings.items():
        if code:
            yield f"{name} ended with {code} on SIGTERM"
    yield from (f"{deed['target']} did not end on SIGTERM" for deed in evidence.deeds if deed["what"] == "HUNG")
    yield from evidence.alarms()
