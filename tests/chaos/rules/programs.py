"""Control plane and agents themselves: none failed."""

from collections.abc import Iterator

from tests.chaos.evidence import Evidence


def no_program_failed(evidence: Evidence) -> Iterator[str]:
    """Each ended on SIGTERM in time and in order, and none told of a fault that nobody foresaw."""
    for name, code in evidence.endings.items():
        if code:
            yield f"{name} ended with {code} on SIGTERM"
    yield from (f"{deed['target']} did not end on SIGTERM" for deed in evidence.deeds if deed["what"] == "HUNG")
    yield from evidence.alarms()
