"""Each stored log: what the program wrote, byte for byte."""

from collections.abc import Iterator

from tests.chaos.evidence import Evidence, Row
from tests.chaos.ledger import Start


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
