"""Ctrl-C while something is followed: an event for the event loop, and a question where somebody can answer it."""

import asyncio
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self


@contextmanager
def signals_wake_the_loop() -> Iterator[None]:
    """Within it a signal wakes the running event loop, whenever it comes and whichever thread the kernel gives it to.

    Python runs a handler only between two steps of the program. Without this, Ctrl-C in the moment before the loop
    falls asleep is noticed at its next event, which may be seconds away.
    """
    loop = asyncio.get_running_loop()
    awake, signalled = socket.socketpair()
    with awake, signalled:
        awake.setblocking(False)
        signalled.setblocking(False)
        before = signal.set_wakeup_fd(signalled.fileno(), warn_on_full_buffer=False)
        loop.add_reader(awake, awake.recv, 4096)
        try:
            yield
        finally:
            loop.remove_reader(awake)
            signal.set_wakeup_fd(before)


class Interrupts:
    """Within this context manager Ctrl-C sets `pressed` instead of ending the program."""

    def __init__(self) -> None:
        self.pressed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._requested = False

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def requested(self) -> bool:
        """Tells whether Ctrl-C was pressed and not yet answered; true at once, also while the event loop is busy."""
        return self._requested

    def cancel_or_detach(self, name: str) -> bool | None:
        """Asks what to do with the run `name`: True = cancel, False = detach, None = go on following.

        Where nobody can be asked the answer is to detach. Blocks the event loop, so that nothing is printed meanwhile.
        """
        self._requested = False
        self.pressed.clear()
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            return False
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return _ask(f"\nRun {name}: [c]ancel it, [d]etach and let it run, or [Enter] to go on? ")
        except KeyboardInterrupt:
            sys.stderr.write("\n")
            return False
        finally:
            signal.signal(signal.SIGINT, handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._requested = True
        # Not pressed.set(): only this call wakes a loop that sleeps in select().
        self._loop.call_soon_threadsafe(self.pressed.set)


def _ask(question: str) -> bool | None:
    while True:
        sys.stderr.write(question)
        sys.stderr.flush()
        line = sys.stdin.readline()
        word = line.strip().lower()
        if not line or word in ("d", "detach"):
            return False
        if word in ("c", "cancel"):
            return True
        if not word:
            return None
