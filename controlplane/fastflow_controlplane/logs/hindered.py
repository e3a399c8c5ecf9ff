"""Logs whose file can not be used at present: what came for them meanwhile, and what an operator is told.

A folder in the file's place, rights, a broken block, a full disk: each of them hinders one log, or all of one disk.
What such a log waits for must not hold up the other logs of its stream, and what comes for it must not fill the memory.
"""

from collections import deque
from collections.abc import Iterable
from typing import TypeGuard

import google_crc32c
import structlog

from fastflow_controlplane.logs.store import LogKey, StoreUnavailable
from fastflow_controlplane.logs.uploads import Chunk, Upload, size
from fastflow_controlplane.runs.model import AttemptKey

log = structlog.get_logger(__name__)


class Lane:
    """What came of one attempt and is not taken yet, in its order.

    `missed` = something behind it was not kept, and has to be asked for again.
    """

    def __init__(self, key: AttemptKey, uploads: Iterable[Upload]) -> None:
        self.key = key
        self.missed = False
        self.bytes = 0
        self._uploads: deque[Upload] = deque()
        for upload in uploads:
            self._add(upload)

    def __bool__(self) -> bool:
        return bool(self._uploads)

    @property
    def first(self) -> Upload:
        """The first upload."""
        return self._uploads[0]

    def chunks(self) -> list[Chunk]:
        """The chunks it begins with, as far as they came undamaged and follow each other: they are written at once."""
        chunks: list[Chunk] = []
        for upload in self._uploads:
            if not _is_whole(upload) or (chunks and chunks[-1].offset + len(chunks[-1].data) != upload.offset):
                break
            chunks.append(upload)
        return chunks

    def done(self, count: int) -> None:
        """The first `count` uploads are taken."""
        for _ in range(count):
            self.bytes -= size(self._uploads.popleft())

    def clear(self) -> None:
        """Nothing of it is wanted."""
        self._uploads.clear()
        self.bytes = 0
        self.missed = False

    def hold(self, uploads: Iterable[Upload], room: int) -> None:
        """Keeps what comes while the log is hindered, up to `room` bytes; from there on it is missed."""
        for upload in uploads:
            if self.missed or size(upload) > room:
                # Nothing behind a hole is of use.
                self.missed = True
                return
            room -= size(upload)
            self._add(upload)

    def shorten(self, room: int) -> None:
        """Keeps `room` bytes, but at least the first upload: with it the file is tried."""
        while self.bytes > room and len(self._uploads) > 1:
            self.bytes -= size(self._uploads.pop())
            self.missed = True

    def _add(self, upload: Upload) -> None:
        self._uploads.append(upload)
        self.bytes += size(upload)


class Hindered:
    """The lanes of one stream whose logs are hindered. Together they hold `limit` bytes, and an upload each."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lanes: dict[AttemptKey, Lane] = {}

    def begin(self, lane: Lane) -> None:
        """From now on what comes for the lane's attempt has to wait behind it."""
        lane.shorten(self._room())
        self._lanes[lane.key] = lane

    def __contains__(self, key: AttemptKey) -> bool:
        return key in self._lanes

    def holds_back(self, key: AttemptKey, uploads: Iterable[Upload]) -> bool:
        """Whether the attempt's log is hindered: then `uploads` wait in its lane, or are missed."""
        lane = self._lanes.get(key)
        if lane is None:
            return False
        if not lane.missed:
            lane.hold(uploads, self._room())
        return True

    def end(self, lane: Lane) -> None:
        """What comes from now on is taken as it comes."""
        del self._lanes[lane.key]

    def _room(self) -> int:
        return self._limit - sum(lane.bytes for lane in self._lanes.values())


class Told:
    """What operators were told of hindered logs: each once, and once that it goes on, whatever streams come and go."""

    def __init__(self) -> None:
        self._told: set[LogKey] = set()

    def hindered(self, name: LogKey, error: StoreUnavailable) -> None:
        """A log can not be stored now; `error` says why, and what to do."""
        say = log.debug if name in self._told else log.warning
        say("a log waits on its worker", run=name.run_id, attempt=name.attempt, why=error.message)
        self._told.add(name)

    def goes_on(self, name: LogKey) -> None:
        """A log is stored again."""
        if name in self._told:
            self._told.remove(name)
            log.info("a log that waited is stored again", run=name.run_id, attempt=name.attempt)

    def forget(self, name: LogKey) -> None:
        """A log is not wanted any more."""
        self._told.discard(name)


def _is_whole(upload: Upload) -> TypeGuard[Chunk]:
    """Whether it is output, as it was sent."""
    return isinstance(upload, Chunk) and bool(upload.data) and google_crc32c.value(upload.data) == upload.crc32c
