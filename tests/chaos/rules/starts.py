"""Each start of a program, by the ledger: once per attempt, one at a time per run."""

from collections import defaultdict
from collections.abc import Iterator

from tests.chaos.evidence import MICROSECONDS, Evidence, given_back
from tests.chaos.ledger import Start

STOPPED_SECONDS = 10.0
"""An agent that is back has stopped by then what was lost on it; it gets two seconds for SIGTERM."""


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
        if given_back(attempt) and evidence.starts_of.get((attempt["run_id"], attempt["number"])):
            yield f"attempt {attempt['run_id']} {attempt['number']} could not start, says its agent; yet it did"


def no_two_attempts_of_a_run_lived_at_once(evidence: Evidence) -> Iterator[str]:
    """By the ledger's locks and intervals; but for one that was lost, while its agent was away and did not stop it."""
    by_key: dict[str, list[Start]] = defaultdict(list)
    for start in sorted(evidence.starts, key=lambda start: start.begin):
        by_key[start.key].append(start)
    for key, starts in by_key.items():
        for number, later in enumerate(starts):
            former = [start for start in starts[:number] if not _could_not_be_stopped(evidence, start, later)]
            for start in former:
                if start.last > later.begin:
                    yield f"{key} lived in slots {start.slot} and {later.slot} at once"
            if not later.alone and len(former) == number:
                yield f"{key} started in slot {later.slot} while another start of it lived"


def _could_not_be_stopped(evidence: Evidence, former: Start, later: Start) -> bool:
    """Whether the former start was lost, and its agent away when the later one was placed and until it was stopped."""
    rows = {(row["run_id"], row["number"]): row for row in evidence.attempts}
    lost, placed = (rows.get(evidence.slots.get(start.slot, ("", 0))) for start in (former, later))
    if lost is None or placed is None or lost["state"] != "LOST":
        return False
    agent, begins = evidence.agents[lost["agent_id"]], placed["assign_time"] / MICROSECONDS
    moments = begins, max(begins, evidence.wall(former.last) - STOPPED_SECONDS)
    return all(evidence.absences.at(agent, moment) for moment in moments)
