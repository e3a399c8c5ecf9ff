"""A runtime with folders of its own, and the slots made in it."""

import asyncio
import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fastflow_agent.model import Limits, SlotId, new_slot_id
from fastflow_agent.runtime.base import Observation, PreparerSpec, Runtime, SlotPaths, SlotSpec

MIB = 1 << 20
LIMITS = Limits(cpu_hard_milli_cores=2000, memory_hard_bytes=256 * MIB)
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Ended:
    """How a slot ended, and all it wrote."""

    observation: Observation
    log: bytes

    @property
    def exit_code(self) -> int | None:
        return self.observation.exit_code

    @property
    def text(self) -> str:
        return self.log.decode(errors="replace").strip()


@dataclass(frozen=True)
class Slot:
    """One slot with its program."""

    runtime: Runtime
    spec: SlotSpec

    @property
    def id(self) -> SlotId:
        return self.spec.slot

    async def begin(self, environment: Mapping[str, str] | None = None) -> None:
        """Create, start and release."""
        await self.wait_for_release()
        assert await self.runtime.release(self.id, environment or {})

    async def wait_for_release(self) -> None:
        """Create and start."""
        await self.runtime.prepare_folders(self.spec)
        await self.runtime.create(self.spec)
        await self.runtime.start(self.id)

    async def end(self) -> Ended:
        """Wait for the end."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            seen = await self.runtime.wait(self.id)
        return Ended(seen, self.log())

    async def run(self, environment: Mapping[str, str] | None = None) -> Ended:
        """From creation to the end."""
        await self.begin(environment)
        return await self.end()

    async def said(self, text: str) -> None:
        """Wait until the program has written `text`."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while text.encode() not in self.log():  # noqa: ASYNC110 - a file tells nobody that it grew
                await asyncio.sleep(0.01)

    def log(self) -> bytes:
        """What it wrote until now."""
        return self.spec.paths.log.read_bytes()


@dataclass
class Workshop:
    """Makes slots of one runtime under `folder`; `cache` is a prepared uv cache that holds no package."""

    runtime: Runtime
    folder: Path
    env_dir: Path
    cache: Path
    made: list[Slot] = field(default_factory=list)

    def slot(
        self,
        main: str,
        *,
        files: Mapping[str, bytes] | None = None,
        limits: Limits = LIMITS,
        python_version: str = "",
        offline: bool = True,
        cache: Path | None = None,
    ) -> Slot:
        """A slot that will run `main` (dedented), beside `files`."""
        slot = new_slot_id()
        spec = SlotSpec(
            slot=slot,
            limits=limits,
            paths=SlotPaths.of(self.folder, self.env_dir, slot),
            code=self.code(slot, main, files or {}),
            cache=cache or self.cache,
            python_version=python_version,
            offline=offline,
        )
        made = Slot(self.runtime, spec)
        self.made.append(made)
        return made

    def code(self, name: str, main: str, files: Mapping[str, bytes]) -> Path:
        """A pipeline's folder, readable by the container's user."""
        code = self.folder / "code" / f"{name}-{new_slot_id()}"
        code.mkdir(parents=True)
        for file, content in {**files, "main.py": textwrap.dedent(main).encode()}.items():
            (code / file).write_bytes(content)
            (code / file).chmod(0o644)
        code.chmod(0o755)
        return code

    def new_cache(self, name: str, owner: int) -> Path:
        """An empty, writable uv cache."""
        cache = self.folder / "caches" / f"{name}-{new_slot_id()}"
        cache.mkdir(parents=True)
        shutil.chown(cache, owner, owner)
        return cache

    async def prepare(self, name: str, owner: int, main: str = "", files: Mapping[str, bytes] | None = None) -> Path:
        """A uv cache that holds what a pipeline of `main`'s header and `files` needs."""
        cache = self.new_cache(name, owner)
        spec = PreparerSpec(name, self.code(f"prepare-{name}", main, files or {}), cache)
        result = await self.runtime.run_preparer(spec)
        assert (result.exit_code, result.offline) == (0, True), result.output.decode()
        return cache

    def late_preparer(self, owner: int) -> tuple[PreparerSpec, Path]:
        """A preparer whose time is over at once; it ends by itself, with 3, when the file that is returned is there."""
        cache = self.new_cache("late", owner)
        main = """
            import os, time
            while not os.path.exists(os.path.join(os.environ["UV_CACHE_DIR"], "go")):
                time.sleep(0.01)
            raise SystemExit(3)
        """
        return PreparerSpec("late", self.code("late", main, {}), cache, seconds=0.1), cache / "go"

    def released(self) -> list[Path]:
        """The environments of all slots and preparers that came for their release."""
        made = [folder for folder in self.env_dir.iterdir() if folder.suffix != ".draft"]
        return [folder for folder in made if not (folder / "release").exists()]

    async def clear(self) -> None:
        """Remove all slots that were made."""
        for slot in self.made:
            await slot.runtime.remove(slot.id)
            shutil.rmtree(slot.spec.paths.root, ignore_errors=True)
