"""Environments with the packages of an earlier run."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import pytest
from fastflow_agent.runtime.base import PreparerResult, PreparerSpec
from fastflow_agent.uvcache import EnvironmentFault, Generation
from fastflow_agent.uvcache.holding import COMMITS, CONSTRAINTS
from fastflow_agent.uvcache.needs import Needs
from structlog.testing import capture_logs

from tests.unit.uvcache.world import IMAGE, Uv, World


class UvOfVersions(Uv):
    """Installs `newest` unless it is held to another version, which it has if it is in `index`."""

    newest = "1.0"
    index = frozenset({"1.0", "2.0"})

    async def run_preparer(self, spec: PreparerSpec) -> PreparerResult:
        done = await super().run_preparer(spec)
        in_header = re.search(r'constraint-dependencies = \["alpha==(.*)"\]', (spec.code / "main.py").read_text())
        held = (in_header and in_header[1]) or spec.environment.get(CONSTRAINTS, "").partition("==")[2] or self.newest
        if held not in self.index:
            return PreparerResult(1, b"error: there is no such version")
        listing = json.dumps([f"alpha=={held}"])
        return PreparerResult(done.exit_code, f"fastflow-packages {listing}\n".encode(), offline=True)


class Versions(World):
    uv: UvOfVersions

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.uv = UvOfVersions()

    async def again(self, *packages: str, requirements: str = "alpha", header: str = "") -> Generation:
        """The environment of a run that repeats one which had `packages`."""
        return await self.cache.ensure(self.code(requirements, header), "", IMAGE, packages)


@pytest.fixture
async def world(tmp_path: Path) -> Versions:
    world = Versions(tmp_path)
    await world.open()
    return world


async def test_packages_that_are_at_hand_are_not_prepared_again(world: Versions) -> None:
    first = await world.ensure("alpha")
    assert await world.again("alpha==1.0") == first
    assert len(world.uv.prepared) == 1


async def test_an_older_generation_is_taken_while_it_is_there(world: Versions) -> None:
    first = await world.ensure("alpha")
    world.uv.newest = "2.0"
    second = await world.cache.ensure_ahead(world.code("alpha"), "", IMAGE, max_age=1e-9)
    assert second.packages == ("alpha==2.0",)
    assert await world.again("alpha==1.0") == first
    assert await world.ensure("alpha") == second
    assert len(world.uv.prepared) == 2


async def test_packages_that_are_not_at_hand_are_prepared_once_and_leave_others_their_newest(world: Versions) -> None:
    world.uv.newest = "2.0"
    repeated = await world.again("alpha==1.0")
    assert repeated.packages == ("alpha==1.0",)
    assert await world.again("alpha==1.0") == repeated
    assert (await world.ensure("alpha")).packages == ("alpha==2.0",)
    assert len(world.uv.prepared) == 2


async def test_packages_that_can_not_be_had_any_more_give_way_to_what_resolves_now(world: Versions) -> None:
    world.uv.newest, world.uv.index = "2.0", frozenset({"2.0"})
    assert (await world.again("alpha==1.0")).packages == ("alpha==2.0",)


async def test_packages_uv_does_not_take_though_it_was_told_their_commits_give_way_to_what_resolves_now(
    world: Versions,
) -> None:
    of_commit = f"alpha @ git+https://host/alpha.git@{'0' * 40}"
    asked: list[str] = []

    async def look(spec: PreparerSpec) -> None:
        asked.append(spec.environment.get(COMMITS, ""))

    world.uv.during = look
    with capture_logs() as entries:
        assert (await world.again(of_commit)).packages == ("alpha==1.0",)
    (why,) = [entry["why"] for entry in entries if "why" in entry]
    assert why == f"uv could not be held to these packages: it did not take {of_commit}; it took alpha==1.0 besides"
    assert asked[0] == of_commit
    assert asked[-1] == ""
    # What was prepared in vain is not taken for what it was to be.
    assert len(world.cache.environments()) == 1


async def test_needs_that_can_not_be_met_at_all_are_told_as_ever(world: Versions) -> None:
    world.uv.index = frozenset()
    with pytest.raises(EnvironmentFault, match="no such version"):
        await world.again("alpha==1.0")


async def test_a_header_is_held_in_its_own_words(world: Versions) -> None:
    assert (await world.again("alpha==2.0", requirements="", header="alpha")).packages == ("alpha==2.0",)
    assert len(world.uv.prepared) == 1


async def test_needs_as_large_as_code_may_be_are_named_off_the_event_loop(
    world: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, threads = Needs.digest, []

    def watched(needs: Needs, *of: str) -> str:
        threads.append(threading.current_thread())
        return digest(needs, *of)

    monkeypatch.setattr(Needs, "digest", watched)
    await world.ensure("alpha")
    await world.again("alpha==2.0")
    await world.cache.ensure_ahead(world.code("alpha"), "", IMAGE, max_age=0)
    assert len(threads) == 4
    assert threading.main_thread() not in threads
