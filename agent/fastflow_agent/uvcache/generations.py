"""The generations on disk: `generations/<number>`, each a uv cache, and `index.json`, which says what they hold.

A generation is there once the index names it. What the index does not name is a remain of a process that died.
All of it blocks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import structlog
from fastflow.deletion import delete_trees
from fastflow.durable import sync_folder
from fastflow.service.failpoints import AgentPoint, reach

from fastflow_agent.uvcache import tree

log = structlog.get_logger(__name__)

KEPT_SCRIPTS = 8
"""Generations that are kept for the environment of one script alone; each costs a folder tree, its files are shared."""


@dataclass(frozen=True)
class Environment:
    """One set of installed packages. `offline`: uv was seen to find all of it without a network.

    `prepared` is when (seconds since 1970, UTC; 0 = not known), `seconds` how long it took; `python` is the exact
    version it was made with, "" = not known.
    """

    packages: tuple[str, ...] = ()
    offline: bool = False
    prepared: float = 0.0
    seconds: float = 0.0
    python: str = ""


@dataclass(frozen=True)
class Held:
    """A generation: what it holds, by digest; `script` is the digest of the one script environment, or "".

    `seal` is its content when it was published (`tree.seal`), "" = not known."""

    number: int
    environments: Mapping[str, Environment] = field(default_factory=dict)
    script: str = ""
    seal: str = ""

    @property
    def shared(self) -> dict[str, Environment]:
        """What a copy holds as well."""
        return {digest: each for digest, each in self.environments.items() if digest != self.script}


class Generations:
    """All generations under `folder`. `owner` is the user id containers run as."""

    def __init__(self, folder: Path, owner: int) -> None:
        self._folder = folder
        self._owner = owner
        self._held: list[Held] = []
        self._last = 0
        self._closed = 0

    def load(self) -> None:
        """Reads what is there. Raises OSError."""
        (self._folder / "generations").mkdir(parents=True, exist_ok=True)
        self._held = [each for each in _read(self._folder / "index.json") if self.path(each.number).is_dir()]
        on_disk = (int(path.name) for path in (self._folder / "generations").iterdir() if path.name.isdecimal())
        self._last = max(on_disk, default=0)

    @property
    def newest(self) -> Held | None:
        """The newest generation."""
        return self._held[-1] if self._held else None

    @property
    def base(self) -> Held | None:
        """The generation that copies are made of: the newest, unless it is closed."""
        newest = self.newest
        return newest if newest is not None and newest.number > self._closed else None

    @property
    def held(self) -> list[Held]:
        """All generations, the newest last."""
        return list(self._held)

    def close(self) -> None:
        """Makes no more copies of what is there: environments that are prepared from now on begin a new line.

        What nobody uses is copied no further by that, and the old line goes once all of it is unused or too large.
        """
        self._closed = self._last

    def touch(self, digest: str, now: float) -> None:
        """Keeps when an environment was used last; a disk that refuses keeps no run from starting."""
        marker = self._marker(digest)
        try:
            marker.parent.mkdir(exist_ok=True)
            marker.touch()
            os.utime(marker, (now, now))
        except OSError as error:
            log.warning("the use of an environment is not kept", environment=digest, error=str(error))

    def last_use(self, digest: str, held: Held) -> float:
        """When an environment of a generation was used last, in seconds since 1970; never before it was prepared."""
        try:
            used = self._marker(digest).stat().st_mtime
        except OSError:
            used = 0.0
        return max(used, held.environments[digest].prepared)

    def damage(self, held: Held) -> str:
        """Says what is wrong with a generation; "" if it is as it was published. Looks at each file, reads none."""
        try:
            found = tree.seal(self.path(held.number))
        except OSError as error:
            return f"{error.filename}: {error.strerror}"
        return "files are missing or were changed" if held.seal and found != held.seal else ""

    def forget(self, numbers: Container[int]) -> None:
        """Takes generations from the index; their files go once nobody uses them (`remains`). Raises OSError."""
        self._write([each for each in self._held if each.number not in numbers])

    def _marker(self, digest: str) -> Path:
        return self._folder / "used" / digest.removeprefix("sha256:")

    @property
    def environments(self) -> list[str]:
        """Digests of all environments that some generation holds."""
        return sorted({digest for each in self._held for digest in each.environments})

    def path(self, number: int) -> Path:
        """Where a generation is, or would be."""
        return self._folder / "generations" / str(number)

    def find(self, digest: str, packages: tuple[str, ...] | None = None) -> Held | None:
        """The newest generation that holds an environment, with exactly these `packages` if they are given."""
        holding = (each for each in reversed(self._held) if digest in each.environments)
        return next((each for each in holding if packages in (None, each.environments[digest].packages)), None)

    def stage(self, name: str, base: Held | None) -> Path:
        """Makes a folder for a preparation, with `cache` in it, a copy of `base`. Raises OSError."""
        staging = self._folder / "staging" / name
        delete_trees(staging)
        staging.mkdir(parents=True)
        cache = staging / "cache"
        tree.make_owned_folder(cache, self._owner)
        if base is not None:
            tree.link(self.path(base.number), cache, self._owner)
        return staging

    def clear_staging(self) -> None:
        """Removes what earlier processes staged; their preparers are to be gone, or they go on writing there.

        Raises OSError.
        """
        delete_trees(self._folder / "staging")

    def discard(self, staging: Path) -> None:
        """Removes what `stage` made. What can not be removed now, the next process removes (`clear_staging`)."""
        try:
            delete_trees(staging)
        except OSError as error:
            # Neither a preparation that succeeded fails by it, nor is it told in place of why another one failed.
            log.warning("what was prepared can not be removed", folder=str(staging), error=str(error))

    def publish(self, staging: Path, base: Held | None, environments: Mapping[str, Environment], script: str) -> Held:
        """Makes the prepared cache the newest generation, with what was published since `base`. Raises OSError."""
        inherited: dict[str, Environment] = base.shared if base else {}
        cache = staging / "cache"
        newest = self.base
        if newest is not None and newest is not base:
            tree.link(self.path(newest.number), cache, self._owner)
            inherited = newest.shared | inherited
        tree.close(cache, self._owner)
        self._last += 1
        held = Held(self._last, inherited | dict(environments), script, tree.seal(cache))
        cache.rename(self.path(held.number))
        sync_folder(self._folder / "generations")
        reach(AgentPoint.GENERATION_MOVED)
        self._write([*self._held, held])
        reach(AgentPoint.GENERATION_PUBLISHED)
        self.discard(staging)
        return held

    def superseded(self, used: Container[int], by_use: Iterable[int]) -> list[int]:
        """Generations nobody needs: not in `used`, and all they hold is held by a newer one.

        Of those that hold a script's environment beyond that, the last KEPT_SCRIPTS of `by_use` (ascending) are kept.
        """
        superseded: list[int] = []
        scripts: list[int] = []
        newer: set[str] = set()
        for each in reversed(self._held):
            if each is not self.newest and each.number not in used:
                missing = set(each.environments) - newer
                if not missing:
                    superseded.append(each.number)
                elif missing == {each.script}:
                    scripts.append(each.number)
            newer |= set(each.environments)
        order = {number: position for position, number in enumerate(by_use)}
        scripts.sort(key=lambda number: order.get(number, -1))
        return superseded + scripts[: max(0, len(scripts) - KEPT_SCRIPTS)]

    def remains(self) -> list[int]:
        """Generations on disk that the index does not name."""
        named = {each.number for each in self._held}
        found = (path.name for path in (self._folder / "generations").iterdir())
        return [int(name) for name in found if name.isdecimal() and int(name) not in named]

    def remove(self, numbers: Container[int], remains: Iterable[int]) -> None:
        """Removes generations, from the index first. Raises OSError."""
        gone = [each.number for each in self._held if each.number in numbers]
        if gone:
            self._write([each for each in self._held if each.number not in numbers])
        delete_trees(*(self.path(number) for number in (*gone, *remains)))

    def _write(self, held: list[Held]) -> None:
        path = self._folder / "index.json"
        partial = path.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as file:
            json.dump({"generations": [asdict(each) for each in held]}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
        sync_folder(self._folder)
        self._held = held


def _read(path: Path) -> list[Held]:
    try:
        content = json.loads(path.read_text("utf-8"))
        return [
            Held(
                int(each["number"]),
                {
                    digest: Environment(
                        tuple(environment["packages"]),
                        bool(environment["offline"]),
                        float(environment.get("prepared", 0.0)),
                        float(environment.get("seconds", 0.0)),
                        str(environment.get("python", "")),
                    )
                    for digest, environment in each["environments"].items()
                },
                str(each["script"]),
                str(each.get("seal", "")),
            )
            for each in content["generations"]
        ]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        # Environments can be prepared again; a container that still uses one keeps it by its pin.
        log.error("the index of the uv cache is damaged: starting anew", file=str(path), error=str(error))
        return []
