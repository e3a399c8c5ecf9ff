"""A uv cache with a uv that prepares in no time, and packages that tests make up."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastflow_agent.model import SlotId
from fastflow_agent.runtime.base import PreparerResult, PreparerSpec, PreparerStep
from fastflow_agent.uvcache import Generation, UvCache

IMAGE = "sha256:image"
SLOT, OTHER_SLOT = SlotId("0" * 16), SlotId("1" * 16)

HEADER = '# /// script\n# dependencies = ["{}"]\n# ///\n'


class Uv:
    """Fills a cache as uv does: files that are new or renamed into place, and locks that are opened for writing.

    Packages are named one a line; those in `sources` have to be built. What `code` has for one, is run wherever code of
    that package is.
    """

    def __init__(self) -> None:
        self.runs: list[PreparerSpec] = []
        self.began = asyncio.Event()
        self.fail_with = b""
        self.during: Callable[[PreparerSpec], Awaitable[None]] | None = None
        self.on_removal: Callable[[], None] | None = None
        self.sources: set[str] = set()
        self.code: dict[str, Callable[[Path], None]] = {}

    @property
    def prepared(self) -> list[PreparerSpec]:
        """The runs that made environments, or should have."""
        return [spec for spec in self.runs if spec.step is not PreparerStep.FETCH]

    def hold(self) -> asyncio.Event:
        """Lets preparations wait until the event is set."""
        gate = asyncio.Event()
        self.began.clear()

        async def wait(spec: PreparerSpec) -> None:
            await gate.wait()

        self.during = wait
        return gate

    async def remove_preparers(self) -> None:
        if self.on_removal:
            self.on_removal()

    async def run_preparer(self, spec: PreparerSpec) -> PreparerResult:
        self.runs.append(spec)
        self.began.set()
        if self.during:
            await self.during(spec)
        if self.fail_with:
            return PreparerResult(2, self.fail_with)
        packages, of_script = self.asked(spec.code)
        with (spec.cache / ".lock").open("a") as lock:
            lock.write("")
        try:
            if spec.step is not PreparerStep.INSTALL:
                for package in packages:
                    self.fetch(spec, package)
            if spec.step is not PreparerStep.FETCH:
                self.make_environment(spec.cache, packages, of_script=of_script)
        except OSError as error:
            return PreparerResult(2, f"error: `{error.filename}`: {error.strerror}\n".encode())
        listing = json.dumps([f"{package}==1.0" for package in packages])
        return PreparerResult(0, f"Resolved\nfastflow-packages {listing}\n".encode(), offline=True)

    def asked(self, code: Path) -> tuple[list[str], bool]:
        header = re.findall(r'dependencies = \["(.*?)"\]', (code / "main.py").read_text())
        requirements = code / "requirements.txt"
        lines = requirements.read_text().split() if requirements.exists() else []
        return [*lines, *header[:1]], bool(header)

    def fetch(self, spec: PreparerSpec, package: str) -> None:
        archive, index = spec.cache / "archive-v0" / package, spec.cache / "simple-v1"
        for folder in (archive, index):
            folder.mkdir(parents=True, exist_ok=True)
        self.rename_into_place(index / package, f"where {package} is")
        if package in self.sources:
            (spec.cache / "builds-v0").mkdir(exist_ok=True)
            (spec.cache / "builds-v0" / ".tmp123").mkdir()
            self.run_code(package, spec.cache)
        if not (archive / "module.py").exists():
            self.rename_into_place(archive / "module.py", f"NAME = {package!r}")
        if spec.step is PreparerStep.FETCH:
            links = spec.cache / "fetched" / package
            links.mkdir(parents=True)
            (links / "module.py").symlink_to(archive / "module.py")

    def make_environment(self, cache: Path, packages: list[str], *, of_script: bool) -> None:
        name = "-".join(packages) or "nothing"
        environment = cache / ("environments-v2/main-0123" if of_script else f"archive-v0/environment-{name}")
        environment.mkdir(parents=True)
        (environment / "pyvenv.cfg").touch()
        for package in packages:
            # As links to the archive, which each package's own Python code sees through.
            (cache / "archive-v0" / package / "module.py").stat()
            (environment / package).symlink_to(f"../../archive-v0/{package}")
            self.run_code(package, cache)
        if not of_script:
            (cache / "environments-v2/python").mkdir(parents=True, exist_ok=True)
            (cache / "environments-v2/python" / name).symlink_to(f"../../archive-v0/environment-{name}")

    def run_code(self, package: str, cache: Path) -> None:
        if run := self.code.get(package):
            run(cache)

    def rename_into_place(self, path: Path, text: str) -> None:
        partial = path.with_name(".tmp-partial")
        partial.write_text(text)
        partial.rename(path)


class World:
    """A cache in `folder`, and the uv that fills it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uv = Uv()
        self.cache: UvCache
        self.free = 1 << 40

    async def open(self) -> UvCache:
        self.cache = await UvCache.open(self.folder / "cache", self.uv, free_bytes=lambda folder: self.free)
        return self.cache

    def code(self, requirements: str = "", header: str = "") -> Path:
        code = self.folder / f"code {requirements!r} {header}"
        if code.exists():
            # As real code, it is never written again: others may be reading it.
            return code
        code.mkdir()
        (code / "main.py").write_text((HEADER.format(header) if header else "") + "print('code')\n")
        if requirements:
            (code / "requirements.txt").write_text(f"{requirements}\n")
        return code

    async def ensure(self, requirements: str = "", header: str = "", image: str = IMAGE) -> Generation:
        return await self.cache.ensure(self.code(requirements, header), "", image)

    async def again(self, requirements: str) -> Generation:
        """Has what is there prepared once more."""
        return await self.cache.ensure_ahead(self.code(requirements), "", IMAGE, max_age=1e-9)

    def numbers(self) -> list[int]:
        """Generations on disk, but for the stock."""
        index = self.folder / "cache" / "index.json"
        held = json.loads(index.read_text())["generations"] if index.exists() else []
        stock = {each["number"] for each in held if each["stock"]}
        found = (int(path.name) for path in (self.folder / "cache" / "generations").iterdir())
        return sorted(number for number in found if number not in stock)

    def stock(self) -> Path:
        index = json.loads((self.folder / "cache" / "index.json").read_text())
        number = max(each["number"] for each in index["generations"] if each["stock"])
        return self.folder / "cache" / "generations" / str(number)

    async def forget_leases(self) -> None:
        self.cache._claims._leases.clear()
        await self.cache.tidy()


def content(root: Path) -> dict[str, str]:
    """Text of each file below `root`, and where each link leads."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = path.read_text()
    return found
