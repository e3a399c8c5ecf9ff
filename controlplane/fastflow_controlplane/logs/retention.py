"""Which logs are to go once all of them together hold too many bytes: those of the oldest runs."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from fastflow_controlplane.logs.store import LogKey


@dataclass(frozen=True, slots=True)
class StoredLog:
    """A log and its size."""

    key: LogKey
    bytes: int


def surplus(oldest: Iterable[StoredLog], newest_runs: Collection[str], excess: int) -> list[StoredLog]:
    """Returns of the `oldest` logs, in their order, as many as hold `excess` bytes; all of them if they hold less.

    Those of `newest_runs` stay, and so do empty ones, which free nothing.
    """
    chosen: list[StoredLog] = []
    for log in oldest:
        if excess <= 0:
            break
        if log.bytes and log.key.run_id not in newest_runs:
            chosen.append(log)
            excess -= log.bytes
    return chosen
