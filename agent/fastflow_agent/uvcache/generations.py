"""The generations on disk: `generations/<number>`, each a uv cache, and `index.json`, which says what they hold.

A generation holds one environment, made in a copy of its own, so that whatever code of its packages wrote there is seen
by runs of that environment alone. Or it is the stock: the packages that were fetched for all of them, and nothing that
such code could have touched; copies are made of it and of nothing else. Their files are shared as far as can be.

A generation is there once the index names it. What the index does not name is a remain of a process that died.
What does not say otherwise blocks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import structlog
from fastflow.deletion import delete_trees
from fastflow.durable import replace_file, sync_folder
from fastflow.service.failpoints import AgentPoint, reach

from fastflow_agent.uvcache import tree, wheels

log = structlog.get_logger(__name__)


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
    """A generation: what it holds, by digest (agents of earlier versions put several into one), or the stock.

    `seal` is its content when it was published (`tree.seal`), "" = not known."""

    number: int
    environments: Mapping[str, Environment] = field(default_factory=dict)
    stock: bool = False
    seal: str = ""


class Generations:
    """All generations under `folder`. `owner` is the user id containers run as."""

    def __init__(self, folder: Path, owner: int) -> None:
        self._folder = folder
        self._owner = owner
        self._held: list[Held] = []
        self._last = 0

    def load(self) -> None:
        """Reads what is there. Raises OSError."""
        (self._folder / "generations").mkdir(parents=True, exist_ok=True)
        self._held = [each for each in _read(self._folder / "index.json") if self.path(each.number).is_dir()]
        on_disk = (int(path.name) for path in (self._folder / "generations").iterdir() if path.name.isdecimal())
        self._last = max(on_disk, default=0)
        held = {self._marker(digest) for digest in self.environments}
        for marker in (self._folder / "used").glob("*"):
            if marker not in held:
                marker.unlink()

    # What there is; these do not block.

    @property
    def held(self) -> list[Held]:
        """All generations, the newest last."""
        return list(self._held)

    @property
    def stock(self) -> Held | None:
        """The generation that copies are made of."""
        return next((each for each in reversed(self._held) if each.stock), None)

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

    def superseded(self, kept: Container[int]) -> list[int]:
        """Generations nobody needs: not `kept`, and newer ones hold all they hold."""
        superseded: list[int] = []
        newer: set[str] = set()
        for each in reversed(self._held):
            needed = each is self.stock if each.stock else each.environments.keys() - newer
            if not needed and each.number not in kept:
                superseded.append(each.number)
            newer |= each.environments.keys()
        return superseded

    def take_out(self, numbers: Container[int]) -> list[Held]:
        """Has nobody find these any more, and returns them; they are still on disk and in the index (`remove`)."""
        out = [each for each in self._held if each.number in numbers]
        self._held = [each for each in self._held if each.number not in numbers]
        return out

    # How an environment was used.

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

    def _marker(self, digest: str) -> Path:
        return self._folder / "used" / digest.removeprefix("sha256:")

    # How one is made.

    def staging(self, name: str) -> Path:
        """Where the preparation of that name takes place."""
        return self._folder / "staging" / name

    def stage(self, staging: Path, base: Held | None, archives: Container[str] | None = None) -> None:
        """Makes a folder for a preparation, with `cache` in it, a copy of `base` with these `archives` (None = all).

        Raises OSError.
        """
        delete_trees(staging)
        staging.mkdir(parents=True)
        cache = staging / "cache"
        tree.make_owned_folder(cache, self._owner)
        if base is not None:
            tree.link(self.path(base.number), cache, self._owner, archives)

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

    def publish_stock(self, staging: Path, base: Held | None) -> Held:
        """Makes what was fetched in a copy of `base` the stock, with what came to it meanwhile.

        Raises TreeFault for what can not come of fetching, and OSError.
        """
        cache = staging / "cache"
        if base is not None:
            wheels.check_shared(self.path(base.number), cache)
        newest = self.stock
        if newest is not None and newest is not base:
            tree.link(self.path(newest.number), cache, self._owner)
        return self._publish(staging, {}, stock=True)

    def publish(self, staging: Path, base: Held | None, digest: str, environment: Environment) -> Held:
        """Makes what was prepared in a copy of `base` a generation. Raises TreeFault and OSError."""
        if base is not None:
            wheels.drop_unused(staging / "cache", self.path(base.number))
        return self._publish(staging, {digest: environment}, stock=False)

    def _publish(self, staging: Path, environments: Mapping[str, Environment], *, stock: bool) -> Held:
        cache = staging / "cache"
        tree.close(cache, self._owner)
        self._last += 1
        held = Held(self._last, environments, stock, tree.seal(cache))
        cache.rename(self.path(held.number))
        sync_folder(self._folder / "generations")
        reach(AgentPoint.GENERATION_MOVED)
        self._write([*self._held, held])
        self._held = [*self._held, held]
        reach(AgentPoint.GENERATION_PUBLISHED)
        self.discard(staging)
        return held

    # How it ends.

    def damage(self, held: Held) -> str:
        """Says what is wrong with a generation; "" if it is as it was published. Looks at each file, reads none."""
        try:
            found = tree.seal(self.path(held.number))
        except OSError as error:
            return f"{error.filename}: {error.strerror}"
        except tree.TreeFault as fault:
            return str(fault)
        return "files are missing or were changed" if held.seal and found != held.seal else ""

    def remains(self) -> list[int]:
        """Generations on disk that are not held."""
        named = {each.number for each in self._held}
        found = (path.name for path in (self._folder / "generations").iterdir())
        return [int(name) for name in found if name.isdecimal() and int(name) not in named]

    def forget(self) -> None:
        """Has the index forget what was taken out; its files go once nobody uses them (`remains`). Raises OSError."""
        self._write(self._held)

    def remove(self, out: Sequence[Held], remains: Iterable[int]) -> None:
        """Removes what was taken out, from the index first, and `remains`. Raises OSError."""
        if out:
            self._write(self._held)
        delete_trees(*(self.path(number) for number in (*(each.number for each in out), *remains)))
        for digest in {digest for each in out for digest in each.environments}.difference(self.environments):
            with suppress(FileNotFoundError):
                self._marker(digest).unlink()

    def _write(self, held: Iterable[Held]) -> None:
        replace_file(self._folder / "index.json", json.dumps({"generations": [asdict(each) for each in held]}))


def _read(path: Path) -> list[Held]:
    try:
        content = json.loads(path.read_text("utf-8"))
        return [
            Held(
                int(each["number"]),
                {digest: _environment(environment, each) for digest, environment in each["environments"].items()},
                bool(each.get("stock")),
                str(each.get("seal", "")),
            )
            for each in content["generations"]
        ]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        # Environments can be prepared again; a container that still uses one keeps it by its pin.
        log.error("the index of the uv cache is damaged: starting anew", file=str(path), error=str(error))
        return []


def _environment(kept: Mapping[str, Any], generation: Mapping[str, Any]) -> Environment:
    return Environment(
        tuple(kept["packages"]),
        bool(kept["offline"]),
        # Earlier agents made one in a copy that code of other packages had been able to write to: prepared anew soon.
        float(kept.get("prepared", 0.0)) if "stock" in generation else 0.0,
        float(kept.get("seconds", 0.0)),
        str(kept.get("python", "")),
    )
