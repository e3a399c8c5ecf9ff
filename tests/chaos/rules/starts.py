"""Each start of a program, by the ledger: once per attempt, one at a time per run."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from tests.chaos.evidence import Evidence, given_back
from tests.chaos.ledger import Start


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
