"""Each stored log: what the program wrote, byte for byte."""

from collections.abc import Iterator

from tests.chaos.evidence import Evidence
from tests.chaos.ledger import Start


def every_log_equals_the_ledger(evidence: Evidence) -> Iterator[str]:
    """Byte for byte; and it is known to be whole."""
    for attempt in evidence.attempts:
        name = attempt["run_id"], attempt["number"]
        stored = evidence.log(name)
        starts = evidence.starts_of.get(name, [])
        difference = _difference(stored, starts[0] if starts else None)
        if difference:
            yield f"log of attempt {name} ({starts[0].key if starts else 'no start'}): {difference}"
        if not attempt["log_sealed"]:
            yield f"log of attempt {name} is not sealed"
        if attempt["log_bytes"] != len(stored):
            yield f"log of attempt {name} has {len(stored)} bytes, its row says {attempt['log_bytes']}"


def no_output_is_lost(evidence: Evidence) -> Iterator[str]:
    """Nothing that the script does costs a program's output: neither its log nor its quota is full, no disk dies."""
    for name, losses in evidence.losses.items():
        for loss in losses if evidence.starts_of.get(name) else []:
            yield f"attempt {name} lost output from byte {loss['offset']} on, says {loss['origin']}: {loss['message']}"


def _difference(stored: bytes, start: Start | None) -> str:
    least, perhaps = (start.said, start.saying) if start else (b"", b"")
    written = least + perhaps
    if len(stored) < len(least):
        return f"{len(stored)} bytes are stored, at least {len(least)} were written"
    if len(stored) > len(written):
        return f"{len(stored)} bytes are stored, only {len(written)} were written: {stored[len(written) :][:200]!r}"
    if not written.startswith(stored):
        first = next(at for at, (here, there) in enumerate(zip(stored, written, strict=False)) if here != there)
        return f"differs from byte {first}: {stored[first : first + 80]!r}, not {written[first : first + 80]!r}"
    return ""
