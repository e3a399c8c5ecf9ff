"""Spools on real files, and what tests ask of them."""

from pathlib import Path

from fastflow_agent.logs.losses import LogLoss
from fastflow_agent.logs.spool import Spool


def open_spool(
    path: Path, start_offset: int = 0, *, quota: int = 1 << 30, limit: int = 0, secrets: tuple[bytes, ...] = ()
) -> Spool:
    return Spool.open(path, start_offset=start_offset, spool_quota=quota, log_limit=limit, masks=secrets)


def write(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def on_disk(path: Path) -> int:
    return path.stat().st_blocks * 512


def read_all(spool: Spool, offset: int = 0, step: int = 1000) -> bytes:
    """All there is from `offset` on; lost bytes as '?'."""
    result = b""
    while (piece := spool.read(offset, step)) is not None:
        result += piece if isinstance(piece, bytes) else b"?" * (piece.end - offset)
        offset = offset + len(piece) if isinstance(piece, bytes) else piece.end
    return result


def kinds(losses: list[LogLoss]) -> list[tuple[str, int, int | None]]:
    return [(loss.kind, loss.offset, loss.bytes) for loss in losses]
