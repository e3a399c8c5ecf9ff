"""A running lab: one network, the guests on it, and what runs beside them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from . import image
from .cache import Cache, remove_tree, try_lock
from .errors import LabError
from .guest import Guest
from .init import PLAIN, Init
from .network import Network
from .scope import Scope


class Lab:
    """Owns a scope with the lab's network, and a folder for all files of its guests. Use it as a context manager.

    Closing it, or the end of the process that made it, whatever ended it, ends every process in it, and with them
    network and mounts. Files that a killed owner left are removed when the next lab starts.
    """

    def __init__(self, cache: Cache, runner_image: str) -> None:
        self.image = image.build(cache, runner_image)
        labs = cache.folder / "labs"
        with cache.locked():
            labs.mkdir(exist_ok=True)
            _remove_abandoned(labs)
            self.folder = Path(tempfile.mkdtemp(dir=labs))
            self._lock = (self.folder / "lock").open("w")
            try_lock(self._lock.fileno())
        self.scope = Scope(own_network=True)
        self.network = Network(self.scope)
        self.guests: list[Guest] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def add_guest(self, name: str, init: Init = PLAIN) -> Guest:
        """Make a guest, which is off. Its name is its host name; names are unique in a lab."""
        folder = self.folder / name
        if folder.exists():
            raise LabError(f"this lab has a guest {name} already")
        guest = Guest(name, folder, scope=self.scope, network=self.network, image=self.image, init=init)
        self.guests.append(guest)
        return guest

    def close(self) -> None:
        """End everything in the lab and remove its files."""
        self.scope.close()
        self._lock.close()
        remove_tree(self.folder)


def _remove_abandoned(labs: Path) -> None:
    """Remove the folders of labs whose owner is gone: those whose lock can be taken."""
    for lock in labs.glob("*/lock"):
        with lock.open("w") as file:
            if try_lock(file.fileno()):
                remove_tree(lock.parent)
