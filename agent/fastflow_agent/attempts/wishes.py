"""What the control plane wants of one attempt: the newest word, and a way to wait for another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from fastflow_agent.desired import Action, Desired
from fastflow_agent.model import StopCause


class Wishes:
    """Level, not edge: only the newest word counts, and a repeated one changes nothing."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._word: Desired | None = None
        self._log_word: Desired | None = None
        self._abandoned = False
        self._draining = False
        self._stored = False
        self.doubted = False
        """Whether a new stream still wants something of the attempt: perhaps its log is not whole there any more."""

    def tell(self, word: Desired) -> None:
        """Take the control plane's word."""
        if self._word is not None and self._word.action is Action.WAIT:
            self.renew(word)
        self._word = word
        self._stored |= word.known_seq > 0
        if word.action in (Action.RUN, Action.STOP) and word.masks_known and self._log_word is None:
            self._log_word = word
        self._wake()

    def renew(self, word: Desired) -> None:
        """Take the first word of a new stream: what it tells of the log holds from now on."""
        if word.action in (Action.RUN, Action.STOP):
            if word.masks_known:
                self._log_word = word
            elif self._log_word is not None:
                # Where its masks came before they still hold: values are pinned when the attempt is made.
                self._log_word = replace(self._log_word, durable_offset=word.durable_offset)
            self.doubted = True
        self._wake()

    def retract(self) -> None:
        """The newest word holds no more: until another comes, the attempt neither begins nor is ended for it."""
        self._word = None
        self._stored = False
        self._wake()

    def note_stored(self) -> None:
        """The control plane has stored that the attempt is here."""
        self._stored = True
        self._wake()

    def abandon(self) -> None:
        """Nobody has wanted the attempt for longer than the grace."""
        self._abandoned = True
        self._wake()

    def drain(self, draining: bool) -> None:
        """The agent begins nothing, for as long as this holds."""
        self._draining = draining
        self._wake()

    @property
    def newest(self) -> Desired | None:
        """The newest word; None until one came."""
        return self._word

    @property
    def unstarted(self) -> bool:
        """Whether the attempt is not to be started here: it is to stop, or nothing is begun any more."""
        return self._draining or self.stop is not None

    @property
    def run(self) -> Desired | None:
        """The word that lets the attempt start; None while there is none, or another."""
        return self._word if self._word and self._word.action is Action.RUN and not self._abandoned else None

    @property
    def may_begin(self) -> bool:
        """Whether user code may run: it is wanted, and the control plane has stored that the attempt is here.

        Else an agent that loses its data folder now would be told to start it once more.
        """
        return self.run is not None and self._stored

    @property
    def stop(self) -> StopCause | None:
        """Why the attempt is to end; None while it may live."""
        if self._abandoned:
            return StopCause.ORPHAN
        if self._word is None:
            return None
        return {Action.STOP: self._word.stop_cause, Action.FORGET: StopCause.SUPERSEDED}.get(self._word.action)

    @property
    def stop_grace(self) -> float | None:
        """Seconds between SIGTERM and SIGKILL as the control plane named them with STOP."""
        return self._word.stop_grace if self._word and self._word.action is Action.STOP else None

    @property
    def forget(self) -> bool:
        """Whether all of the attempt may be deleted."""
        return self._abandoned or (self._word is not None and self._word.action is Action.FORGET)

    @property
    def log(self) -> Desired | None:
        """The word that named the log's masks; None until one came: nothing is shipped before."""
        return self._log_word

    async def until(self, condition: Callable[[], object]) -> None:
        """Return once `condition`, asked after every new word, is true."""
        while not condition():
            await self._changed.wait()

    def _wake(self) -> None:
        # A new event each time: whoever waits wakes once, and asks its condition again.
        self._changed.set()
        self._changed = asyncio.Event()
