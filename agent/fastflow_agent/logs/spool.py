"""The output of one slot, on the worker's disk until the control plane has it.

The container appends to one file and the agent reads it; nobody is between them. A byte keeps its offset for ever, so
whatever happens to it happens in place:

- What is acknowledged leaves the disk: its blocks are punched out.
- What would exceed the quota is *dropped*: the oldest bytes not yet read, since what was read may be on the wire and
  has to be found again as it was. The newest output is kept, where a program says why it failed.
  A spool that *pauses* drops nothing for the quota: the program is frozen instead. It drops what comes all the same,
  past PAUSE_SLACK_BYTES, so that an engine that can not freeze it costs output and not the host's disk.
- What exceeds the run's log limit is never read, and punched out as it comes.
- A log that is suddenly shorter than it was, or than what the control plane has, has been tampered with, unless its
  host went down meanwhile and took what was not on the disk. It ends where it was read last: behind that, an offset no
  longer says which byte is meant. Of what was read before, that is lost which the control plane asks for again.
  What a host that goes down takes of the end of a log that had not been read nobody can see, unless all of it was on
  the disk and its length written down, once its program had ended: so that is a loss of unknown length.
- A program that overwrites bytes in place, or cuts the file and fills it again between two looks, is not noticed here;
  the control plane notices where bytes are sent again.

A range that is dropped, and the end of a log that was tampered with, are written down durably (`<log>.lost`, beside the
log, out of the container's sight) before a byte is punched: zeros must never pass for output.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import structlog

from fastflow_agent.logs.holes import punch
from fastflow_agent.logs.losses import LogLoss
from fastflow_agent.logs.lost import Cut, Lost, LostBytes
from fastflow_agent.logs.redact import MASK, Masks
from fastflow_agent.logs.unwritten import written_until

log = structlog.get_logger(__name__)

PAUSE_SLACK_BYTES = 1024**3
"""What a program may write beyond the quota until it is frozen: some seconds of a fast disk."""

PUNCH_BYTES = 4 * 1024 * 1024
"""Acknowledged bytes are punched out in steps of this size: each costs a file system transaction."""


class Spool:
    """The log file of one slot: read by offset, masked, the same bytes each time.

    All methods but `size` and `wants_care` may wait for the disk: call them in a thread. They may be called from
    several. Losses found by any of them are collected until `take_losses`.
    """

    def __init__(
        self,
        descriptor: int,
        lost: Lost,
        *,
        start_offset: int,
        masks: Masks,
        log_limit: int,
        spool_quota: int,
        pauses: bool = False,
    ) -> None:
        self._descriptor = descriptor
        self._lost = lost
        self._masks = masks
        self._limit = log_limit
        self._own_quota = self._quota = spool_quota
        self.pauses = pauses
        self._lock = threading.Lock()
        self._acked = self._handed = self._seen = start_offset
        self._punched = 0
        self._discarded = 0
        self._can_punch = True
        self._finished = False
        self._closed = False
        self._truncated = False
        self._losses: list[LogLoss] = []

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        spool_quota: int,
        start_offset: int = 0,
        masks: Iterable[bytes] = (),
        log_limit: int = 0,
        inode: int | None = None,
        host_went_down: bool = False,
        length: int | None = None,
        pauses: bool = False,
    ) -> Spool:
        """Opens the log at `path`, of which everything below `start_offset` is on the control plane's disk.

        `masks` are the values to hide: the same ones each time, or bytes sent again differ. `log_limit` and
        `spool_quota` are bytes; a limit of 0 is none. `pauses`: see the module. With `inode`, as an earlier
        `Spool.inode` told it, no other file is taken. A log that is gone, or is not the file it was, gives a spool that
        ends at `start_offset`, with that loss. `host_went_down`: the host was restarted since the program began;
        `length` is how long the log was, all on the disk, once nobody wrote to it any more; None = nobody knows.
        Raises OSError if the disk fails.
        """
        lost = Lost.load(_record(path))
        descriptor = _open(path, inode)
        spool = cls(
            os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC) if descriptor is None else descriptor,
            lost,
            start_offset=start_offset,
            masks=Masks(masks),
            log_limit=log_limit or 2**62,
            spool_quota=spool_quota,
            pauses=pauses,
        )
        replaced = descriptor is None and os.path.lexists(path)
        spool._resume(found=descriptor is not None, lost_with_host=host_went_down and not replaced, length=length)
        return spool

    @property
    def inode(self) -> int:
        """Which file this is, for opening it again."""
        return os.fstat(self._descriptor).st_ino

    @property
    def has_gaps(self) -> bool:
        """Whether bytes were dropped, which is a loss once the control plane has what surrounds them."""
        return bool(self._lost.ranges)

    def size(self) -> int:
        """Length of the file now. One system call that never waits; not to be called once the spool is closed."""
        return os.lseek(self._descriptor, 0, os.SEEK_END)

    def fileno(self) -> int:
        """The descriptor of the file, for being told when it grows; valid until the spool is closed."""
        return self._descriptor

    def wants_care(self, size: int) -> bool:
        """Whether `care` has something to do, given the file's size. Cheap."""
        return (
            (size < self._seen and self._lost.cut is None)
            or self.backlog(size) > self._room
            or (self._can_punch and size - self._discard_from() >= PUNCH_BYTES)
        )

    @property
    def quota(self) -> int:
        """Bytes that may wait here: its own quota, or less while all spools together hold too much."""
        return self._quota

    def share(self, level: int) -> None:
        """Lets no more than `level` bytes wait here, nor more than its own quota."""
        self._quota = min(self._own_quota, level)

    def backlog(self, size: int) -> int:
        """Bytes that wait here, given the file's size. Cheap."""
        return self._end(size) - self._acked - self._lost.bytes_behind(self._acked)

    @property
    def _room(self) -> int:
        return self._quota + (PAUSE_SLACK_BYTES if self.pauses else 0)

    def read(self, offset: int, max_bytes: int) -> bytes | LostBytes | None:
        """Returns output from `offset` on, or that it is lost there, or None while there is nothing to be had.

        Secrets are masked. Bytes at the end that may be the beginning of a secret are held back until it is clear.
        Once returned, the same bytes come again for the same offsets until they are acknowledged.
        """
        with self._lock:
            if self._closed:
                return None
            size = self._look()
            if offset < self._punched:
                self._losses.append(self._lose_again(offset, self._punched).loss)
            lost = self._lost.at(offset)
            if lost is not None:
                self._lost.tell(lost, offset)
                self._handed = max(self._handed, lost.end)
                return lost
            stop = min(offset + max_bytes, self._end(size), self._lost.next_start(offset))
            return self._output(offset, stop, size) if stop > offset else None

    def acknowledged(self, offset: int) -> None:
        """Everything below `offset` is on the control plane's disk and may leave this one."""
        with self._lock:
            for lost in self._lost.ranges:
                if lost.told and self._acked < lost.end <= offset:
                    self._losses.append(lost.loss)
            self._acked = max(self._acked, offset)
            if offset > self._seen and not self._closed:
                # More than there was at any look: an earlier agent delivered it, and the log may be shorter by now.
                self._seen = self._handed = offset
                self._look()
            # Masks of bytes behind it look back this far.
            target = self._acked - self._masks.reach
            if target - self._punched >= PUNCH_BYTES and not self._closed:
                self._punch(self._punched, target)
                self._punched = target

    def care(self) -> None:
        """Keeps the file within its bounds and notices if it was tampered with. Raises OSError if the disk fails."""
        with self._lock:
            if self._closed:
                return
            size = self._look()
            excess = self.backlog(size) - self._room
            if excess > 0:
                self._drop(size, excess + self._quota // 4)
            start = self._discard_from()
            if size > start:
                self._punch(start, size)
                self._discarded = size

    def append(self, data: bytes) -> None:
        """Adds output of the agent's own, before there is a container. Raises OSError."""
        with self._lock:
            while data:
                data = data[os.write(self._descriptor, data) :]

    def finish(self) -> int:
        """Nobody writes any more: returns the offset at which the log ends, and holds nothing back from now on."""
        with self._lock:
            size = self._seen if self._closed else self._look()
            self._finished = True
            return self._end(size)

    def take_losses(self) -> list[LogLoss]:
        """Returns the losses found since the last call."""
        with self._lock:
            losses, self._losses = self._losses, []
            return losses

    def close(self) -> None:
        """Closes the file. From now on nothing is read and nothing is kept within bounds."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._descriptor)

    # Below, the lock is held.

    def _resume(self, *, found: bool, lost_with_host: bool, length: int | None) -> None:
        cut, size = self._lost.cut, self.size() if found else 0
        if cut is not None:
            self._losses.append(cut.loss)
        elif not found or size < self._acked:
            self._cut_off(size, "DISK" if lost_with_host else "TAMPERED")
        else:
            doubtful = lost_with_host and size != length
            self._miss_what_was_punched(doubtful=doubtful)
            stop = min(size, self._limit)
            end = written_until(self._descriptor, self._acked, stop, self._lost) if doubtful else stop
            if doubtful and (end < stop or size <= self._limit):
                self._end_at(Cut(end, size, "DISK"))
        certain = (each for each in self._lost.ranges if each.told or not each.tampered)
        self._losses.extend(each.loss for each in certain if each.end <= self._acked)

    def _miss_what_was_punched(self, *, doubtful: bool) -> None:
        """A control plane that lost what it had acknowledged asks for bytes that have left this disk.

        In a `doubtful` log nothing may have reached the disk of what follows.
        """
        start = self._acked
        if start >= self.size() or self._lost.at(start):
            return
        try:
            data = os.lseek(self._descriptor, start, os.SEEK_DATA)
        except OSError:  # ENXIO: no data up to the end
            data = start if doubtful else self.size()
        if data > start:
            self._lose_again(start, data)

    def _lose_again(self, start: int, end: int) -> LostBytes:
        message = "the control plane lost these bytes after they had been delivered and had left the worker"
        lost = LostBytes(start, min(end, self._lost.next_start(start)), "DROPPED", message)
        self._lost.add(lost)
        return lost

    def _look(self) -> int:
        size = self.size()
        if self._lost.cut is None:
            if size < self._seen:
                self._cut_off(size, "TAMPERED")
            if size > self._limit and not self._truncated:
                self._truncated = True
                self._losses.append(_truncated(self._limit))
        self._seen = max(self._seen, size)
        return size

    def _cut_off(self, size: int, kind: Literal["TAMPERED", "DISK"]) -> None:
        log.warning("a log was shortened", size=size, was=self._seen, kind=kind)
        if max(size, self._acked) < self._handed:
            message = "these bytes were removed from the log on the worker before they had arrived"
            self._lost.add(LostBytes(max(size, self._acked), self._handed, "TAMPERED", message))
        self._end_at(Cut(self._handed, size, kind))

    def _end_at(self, cut: Cut) -> None:
        self._lost.set_cut(cut)
        self._losses.append(cut.loss)

    def _end(self, size: int) -> int:
        return min(size, self._limit) if self._lost.cut is None else self._lost.cut.end

    def _discard_from(self) -> int:
        cut = self._lost.cut
        return max(self._discarded, self._limit + self._masks.reach if cut is None else cut.size)

    def _output(self, offset: int, stop: int, size: int) -> bytes | LostBytes | None:
        reach = self._masks.reach
        ceiling = min(size, self._lost.next_start(offset))
        left = max(offset - reach, self._lost.last_end(offset))
        right = min(stop + reach, ceiling)
        try:
            raw = os.pread(self._descriptor, right - left, left)
        except OSError as error:
            log.error("a log can not be read", offset=offset, error=str(error))
            lost = LostBytes(offset, stop, "DISK", f"the worker's disk failed: {error.strerror}", told_from=offset)
            self._lost.add(lost)
            return lost
        if len(raw) < right - left:
            return None
        data = self._masks.apply(raw)
        pending = self._masks.pending(raw) if right == ceiling else 0
        if pending and ceiling < size:
            # The rest of what may be a secret was dropped.
            data = data[:-pending] + MASK * pending
        elif not self._finished:
            stop = min(stop, right - pending)
        if stop <= offset:
            return None
        self._handed = max(self._handed, stop)
        return data[offset - left : stop - left]

    def _drop(self, size: int, count: int) -> None:
        reach = self._masks.reach
        # Masks of bytes that were read look forward this far.
        start = max(self._handed, self._acked) + reach
        known = self._lost.at(start)
        start = known.end if known else start
        end = min(start + count, self._end(size) - reach, self._lost.next_start(start))
        if end <= start:
            return
        window = os.pread(self._descriptor, 2 * reach, end - reach)
        end += self._masks.outside(window, reach) - reach
        message = "output came faster than it could be delivered, and the worker keeps no more of it"
        self._lost.add(LostBytes(start, end, "DROPPED", message))
        self._punch(start, end)

    def _punch(self, start: int, end: int) -> None:
        if self._can_punch and not punch(self._descriptor, start, end):
            self._can_punch = False
            log.warning("this file system can not free parts of a file: logs stay on the disk until their run is gone")


def losses_at(path: Path, log_limit: int, durable: int = 0) -> list[LogLoss]:
    """What is lost of the log at `path`, which nobody reads any more, as the disk tells it; limit as in `Spool.open`.

    The control plane has, or knows to be lost, all below `durable`. A range behind an early end is lost with all that
    follows it, and is none of its own. Raises OSError.
    """
    lost = Lost.load(_record(path))
    if lost.cut is not None:
        end = lost.cut.end
        ranges = [each.loss_beyond(durable) for each in lost.ranges if each.offset < end]
        return [*(loss for loss in ranges if loss is not None), lost.cut.loss]
    losses = [each.loss for each in lost.ranges]
    if log_limit and os.path.lexists(path) and path.lstat().st_size > log_limit:
        losses.append(_truncated(log_limit))
    return losses


def _record(log: Path) -> Path:
    return log.with_name(f"{log.name}.lost")


def _truncated(limit: int) -> LogLoss:
    message = f"the run's log limit of {limit} bytes was reached; later output was not kept"
    return LogLoss("TRUNCATED", limit, None, message)


def _open(path: Path, inode: int | None) -> int | None:
    # O_NONBLOCK: a program that owns the file could make others wait with a lease (fcntl(2)) or put a pipe there.
    flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except (FileNotFoundError, IsADirectoryError):
        return None
    except OSError:
        if path.is_symlink():
            return None
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or (inode is not None and status.st_ino != inode):
        os.close(descriptor)
        return None
    return descriptor
