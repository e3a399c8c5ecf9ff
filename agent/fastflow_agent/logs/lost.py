"""What is lost of a log, written down durably before it is gone."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from fastflow_agent.logs.losses import LogLoss, LossKind


@dataclass
class LostBytes:
    """The bytes from `offset` up to `end` are lost. `told_from` is where a reader was told so first; None = not yet.

    After tampering it is only then certain that they are lost: they had been read, and may have arrived unheard.
    """

    offset: int
    end: int
    kind: LossKind
    message: str
    told_from: int | None = field(default=None, compare=False)

    @property
    def told(self) -> bool:
        """Whether a reader was told so."""
        return self.told_from is not None

    @property
    def loss(self) -> LogLoss:
        """The loss as a fact."""
        return self._from(self.offset)

    def loss_beyond(self, durable: int) -> LogLoss | None:
        """The loss as a fact, where the control plane has all below `durable`; None if it lacks nothing of it."""
        if not self.tampered or self.told:
            return self.loss
        return self._from(max(self.offset, durable)) if self.end > durable else None

    def _from(self, start: int) -> LogLoss:
        if self.tampered and self.told_from is not None:
            # What lies before it had arrived: the control plane asked from there.
            start = max(start, self.told_from)
        return LogLoss(self.kind, start, self.end - start, self.message)

    @property
    def tampered(self) -> bool:
        """Whether the loss is a consequence of tampering."""
        return self.kind == "TAMPERED"


@dataclass(frozen=True)
class Cut:
    """The log ends at `end`, since it was found shortened to `size`: by somebody, or when the host went down (DISK).

    DISK also where it may have been longer, and nobody knows.
    """

    end: int
    size: int
    kind: Literal["TAMPERED", "DISK"] = "TAMPERED"

    @property
    def loss(self) -> LogLoss:
        """The loss as a fact."""
        messages = {
            "TAMPERED": "the log was shortened or replaced on the worker; it ends here, and later output was not kept",
            "DISK": "the worker host went down, and with it output that was not yet on its disk; the log ends here",
        }
        return LogLoss(self.kind, self.end, None, messages[self.kind])


class Lost:
    """The lost ranges of one log, ascending, and its early end if it has one.

    The file holds a line for each, "KIND OFFSET END MESSAGE" or "cut END SIZE" with " DISK" where that was it, and
    "told OFFSET END" once a reader was told of one that tampering brought; it is made with the first. A line that a
    crash cut off counts as not written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.ranges: list[LostBytes] = []
        self.cut: Cut | None = None

    @classmethod
    def load(cls, path: Path) -> Lost:
        """Reads what is written at `path`, if anything is."""
        lost = cls(path)
        try:
            lines = path.read_text("utf-8").splitlines(keepends=True)
        except FileNotFoundError:
            return lost
        for line in lines:
            match line.split(maxsplit=3):
                case ["cut", end, size] if line.endswith("\n"):
                    lost.cut = Cut(int(end), int(size))
                case ["cut", end, size, "DISK\n"]:
                    lost.cut = Cut(int(end), int(size), "DISK")
                case ["told", offset, end] if line.endswith("\n"):
                    lost._note_told(int(offset), int(end))
                case [kind, offset, end, message] if line.endswith("\n"):
                    lost._insert(LostBytes(int(offset), int(end), cast(LossKind, kind), message.rstrip("\n")))
        return lost

    def add(self, lost: LostBytes) -> None:
        """Adds a range, durable on return. Raises OSError."""
        self._write(f"{lost.kind} {lost.offset} {lost.end} {lost.message}\n")
        self._insert(lost)

    def tell(self, lost: LostBytes, offset: int) -> None:
        """A reader is told of a range from `offset` on; after tampering that is durable on return. Raises OSError."""
        if lost.told_from is None or offset < lost.told_from:
            if lost.tampered:
                self._write(f"told {offset} {lost.end}\n")
            lost.told_from = offset

    def set_cut(self, cut: Cut) -> None:
        """Ends the log early, durable on return. Raises OSError."""
        self._write(f"cut {cut.end} {cut.size}{' DISK' if cut.kind == 'DISK' else ''}\n")
        self.cut = cut

    def at(self, offset: int) -> LostBytes | None:
        """The range that holds `offset`."""
        return next((each for each in self.ranges if each.offset <= offset < each.end), None)

    def next_start(self, offset: int) -> int:
        """Where the first range behind `offset` begins; far away if there is none."""
        return next((each.offset for each in self.ranges if each.offset > offset), 2**62)

    def last_end(self, offset: int) -> int:
        """Where the last range before `offset` ends; 0 if there is none."""
        return max((each.end for each in self.ranges if each.end <= offset), default=0)

    def bytes_behind(self, offset: int) -> int:
        """Lost bytes from `offset` on."""
        return sum(each.end - max(each.offset, offset) for each in self.ranges if each.end > offset)

    def _note_told(self, offset: int, end: int) -> None:
        for lost in self.ranges:
            if lost.tampered and lost.end == end:
                lost.told_from = offset

    def _insert(self, lost: LostBytes) -> None:
        for known in self.ranges:
            # A range nobody was told of grows; another one beside it stays itself, since it was sent as it was.
            if known.kind == lost.kind and not known.told and known.offset <= lost.offset <= known.end:
                known.end = max(known.end, lost.end)
                return
        self.ranges.append(lost)
        self.ranges.sort(key=lambda each: each.offset)

    def _write(self, line: str) -> None:
        new = not self._path.exists()
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            whole = os.pread(descriptor, os.fstat(descriptor).st_size, 0).rfind(b"\n") + 1
            os.ftruncate(descriptor, whole)
            data = line.encode("utf-8")
            if os.pwrite(descriptor, data, whole) < len(data):
                raise OSError("the disk is full")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
