"""Output that will not arrive: always a recorded fact, never silence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LossKind = Literal["TRUNCATED", "DROPPED", "TAMPERED", "DISK"]


@dataclass(frozen=True)
class LogLoss:
    """A loss from `offset` on, `bytes` long where that is known. `message` is one sentence for people.

    After a restart of the agent the same loss, with the same kind and offset, may be found again.
    """

    kind: LossKind
    offset: int
    bytes: int | None
    message: str
