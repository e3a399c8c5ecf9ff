"""The agents' journals: whole, in order, and of one mind with the database."""

from collections.abc import Iterator

from tests.chaos.evidence import AttemptName, Evidence, Journal, Row

ORDER = ["INTENT", "PREPARED", "CREATED", "STARTED", "RELEASED", "SIGNALLED", "EXITED", "SEALED", "FORGET"]
"""The steps of a journal that come in this order."""
ONCE = ["INTENT", "RELEASED", "EXITED", "FORGET"]
"""Steps that come at most once in a journal."""


def journals_tell_the_same(evidence: Evidence) -> Iterator[str]:
    """In order, without gaps, one per attempt, and of one mind with the database."""
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


def every_start_has_a_whole_journal(evidence: Evidence) -> Iterator[str]:
    """From its first record to its last: without, the rule above has nothing to go by."""
    whole = {journal.attempt: journal.records[-1]["step"] for journal in evidence.journals if journal.records}
    for name in evidence.starts_of:
        if name not in whole:
            yield f"attempt {name} started, and no journal tells of it"
    for name, last in whole.items():
        if last != "FORGET":
            yield f"the journal of attempt {name} breaks off after {last}"


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
