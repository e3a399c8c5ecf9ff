"""Control plane, agents and the script itself: nothing failed, and all of it was done."""

import signal
from collections import Counter
from collections.abc import Iterator

from tests.chaos.evidence import Evidence
from tests.chaos.script import Act, layer

ANSWERS = {"SUBMIT": "ACCEPTED", "CANCEL": "CANCELLED"}
"""What clients note once a step is answered; of every other step its own name is noted."""
MILESTONES = ("HEALED", "SETTLED", "FILLED", "SETTLED AGAIN")


def no_program_failed(evidence: Evidence) -> Iterator[str]:
    """Each ended as it was told to, in time and in order, and none told of a fault that nobody foresaw."""
    for name, code in evidence.endings.items():
        if code:
            yield f"{name} ended with {code} on SIGTERM"
    yield from (f"{deed['target']} did not end on SIGTERM" for deed in evidence.deeds if deed["what"] == "HUNG")
    yield from _ended_otherwise(evidence)
    yield from evidence.alarms()


def _ended_otherwise(evidence: Evidence) -> Iterator[str]:
    foreseen: dict[str, list[int | None]] = {}
    for deed in evidence.deeds:
        what, target = deed["what"], deed["target"]
        if what not in set(Act) or layer(what) != "program":
            continue
        if deed["found"] not in foreseen.pop(target, [None]):
            yield f"{target} was found at its {what} to have ended with {deed['found']}"
        if what == Act.KILL:
            foreseen[target] = [-signal.SIGKILL]
        elif what == Act.STOP:
            # Until a program has found its feet, which may take long, SIGTERM ends it as any other.
            foreseen[target] = [0] if deed.get("catches", True) else [0, -signal.SIGTERM]


def the_script_was_carried_out(evidence: Evidence) -> Iterator[str]:
    """Each step of it, and all that comes after them: what was not done proves nothing."""
    yield from (f"{deed['target']}: {deed['error']}" for deed in evidence.deeds if deed["what"] == "FAULT")
    asked = Counter((ANSWERS.get(step["act"], step["act"]), step["target"]) for step in evidence.steps)
    asked.update((milestone, "") for milestone in MILESTONES)
    done = Counter((entry["what"], entry["target"]) for entry in (*evidence.deeds, *evidence.answers))
    for (what, target), number in (asked - done).items():
        yield f"{what} {target} did not come, {number} times"
