"""The gate of a slot: one release, told once, whatever the pipeline leaves in its folder."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from fastflow_agent.model import SlotId
from fastflow_agent.runtime.base import RuntimeFault, SlotPaths
from fastflow_agent.runtime.release import Gate, environments_folder, render
from hypothesis import given
from hypothesis import strategies as st

from tests.trees import NOBODY, not_root

SLOT = SlotId("0123456789abcdef")


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[SlotPaths]:
    """Paths of a slot, its environment on a tmpfs as it always is: unlike disks they give no number twice."""
    environments = Path(tempfile.mkdtemp(prefix="fastflow-test-", dir="/dev/shm"))
    paths = SlotPaths.of(tmp_path / "data", environments, SLOT)
    paths.root.mkdir(parents=True)
    yield paths
    shutil.rmtree(environments)


@pytest.fixture
def gate(paths: SlotPaths) -> Gate:
    gate = Gate(paths, os.geteuid())
    gate.make()
    return gate


async def lives() -> bool:
    return True


async def dead() -> bool:
    return False


class Wrapper:
    """Does at the gate what the start wrapper does."""

    def __init__(self, paths: SlotPaths) -> None:
        self._folder = paths.env
        self.environment = b""

    async def pass_gate(self) -> None:
        await asyncio.to_thread(self._pass)

    def _pass(self) -> None:
        while not (self._folder / "release").read_text().startswith("go\n"):
            pass
        self.environment = (self._folder / "environment").read_bytes()
        (self._folder / "environment").unlink()
        (self._folder / "release").unlink()


async def test_the_wrapper_gets_the_environment_and_the_gate_is_passed(gate: Gate, paths: SlotPaths) -> None:
    wrapper = Wrapper(paths)
    passing = asyncio.ensure_future(wrapper.pass_gate())
    assert gate.was_released() is False
    assert await gate.release(b"the environment", lives)
    await passing
    assert wrapper.environment == b"the environment"
    assert gate.was_released() is True


async def test_a_passed_gate_is_not_written_to_again(gate: Gate, paths: SlotPaths) -> None:
    wrapper = Wrapper(paths)
    await asyncio.gather(gate.release(b"1", lives), wrapper.pass_gate())
    assert await gate.release(b"2", dead)
    assert list(paths.env.iterdir()) == []


async def test_a_wrapper_that_has_ended_is_told_apart(gate: Gate) -> None:
    assert not await gate.release(b"1", dead)
    assert gate.was_released() is False


async def test_a_writer_that_died_before_its_word_does_not_pass_the_gate(gate: Gate, paths: SlotPaths) -> None:
    wrapper = Wrapper(paths)
    passing = asyncio.ensure_future(wrapper.pass_gate())
    await asyncio.sleep(0.05)
    os.close(os.open(paths.env / "release", os.O_WRONLY))
    await asyncio.sleep(0.05)
    assert gate.was_released() is False
    assert await gate.release(b"1", lives)
    await passing


def test_a_gate_that_exists_is_left_as_it_is(gate: Gate, paths: SlotPaths) -> None:
    before = (paths.env / "release").stat().st_ino
    gate.make()
    assert (paths.env / "release").stat().st_ino == before
    (paths.env / "release").unlink()
    gate.make()
    assert gate.was_released() is True


def test_a_folder_that_is_gone_tells_nothing(gate: Gate) -> None:
    gate.remove()
    gate.remove()
    assert gate.was_released() is None
    assert not gate.wrapper_failed()


def test_a_folder_goes_however_deep_a_pipeline_has_filled_it(
    gate: Gate, paths: SlotPaths, make_deep: Callable[[Path], None]
) -> None:
    make_deep(paths.env)
    gate.remove()
    assert not paths.env.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can put something there that another user can not delete")
def test_a_folder_that_can_not_be_removed_is_an_error(gate: Gate, paths: SlotPaths) -> None:
    (paths.env / "roots").mkdir()
    (paths.env / "roots" / "file").touch()
    os.chown(paths.env, NOBODY, NOBODY)
    paths.env.parent.chmod(0o777)
    with not_root(), pytest.raises(PermissionError):
        gate.remove()
    gate.remove()
    assert gate.was_released() is None


@pytest.mark.parametrize("what", ["pipe", "file", "link", "folder"])
async def test_what_a_pipeline_puts_in_the_pipes_place_is_neither_believed_nor_followed(
    gate: Gate, paths: SlotPaths, tmp_path: Path, what: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    pipe = paths.env / "release"
    pipe.unlink()
    makers: dict[str, Callable[[], object]] = {
        "pipe": lambda: os.mkfifo(pipe),
        "file": lambda: pipe.write_text(""),
        "link": lambda: pipe.symlink_to(victim),
        "folder": pipe.mkdir,
    }
    makers[what]()
    (paths.env / "environment").symlink_to(victim)
    (paths.env / "environment.draft").symlink_to(victim)
    assert gate.was_released() is True
    assert await gate.release(b"SECRET", lives)
    assert victim.read_text() == "as it was"


async def test_a_folder_replaced_by_a_link_is_not_entered(gate: Gate, paths: SlotPaths) -> None:
    elsewhere = paths.env.with_name("elsewhere")
    paths.env.rename(elsewhere)
    paths.env.symlink_to(elsewhere)
    with pytest.raises(RuntimeFault):
        await gate.release(b"SECRET", lives)
    assert [path.name for path in elsewhere.iterdir()] == ["release"]


def test_the_wrappers_word_counts_only_as_a_file(gate: Gate, paths: SlotPaths) -> None:
    (paths.env / "failed").symlink_to("/etc/passwd")
    assert not gate.wrapper_failed()
    (paths.env / "failed").unlink()
    (paths.env / "failed").touch()
    assert gate.wrapper_failed()


@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z_][A-Za-z0-9_]*", fullmatch=True).map("X_".__add__),
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40),
        max_size=5,
    )
)
def test_every_value_survives_the_shell(environment: Mapping[str, str]) -> None:
    script = render(environment) + b'[ "$FASTFLOW_COMPLETE" = yes ] && exec env -0'
    done = subprocess.run(["sh"], input=script, capture_output=True, check=True, env={"PATH": os.environ["PATH"]})
    seen = dict(entry.split(b"=", 1) for entry in done.stdout.split(b"\0") if entry)
    assert {name.encode(): value.encode() for name, value in environment.items()}.items() <= seen.items()


@pytest.mark.parametrize("name", ["", "1A", "A B", "A=B", "A\nB", "A;id", "Ä"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(RuntimeFault, match="is no name"):
        render({name: "x"})


def test_a_zero_byte_is_refused_without_telling_the_value() -> None:
    with pytest.raises(RuntimeFault, match="value of SECRET") as caught:
        render({"SECRET": "hunter2\0"})
    assert "hunter2" not in str(caught.value)


def test_environments_go_to_the_first_folder_on_a_tmpfs(tmp_path: Path) -> None:
    on_tmpfs = Path("/dev/shm") / f"fastflow-test-{os.getpid()}"
    try:
        assert environments_folder(tmp_path / "disk", on_tmpfs) == on_tmpfs
        assert oct(on_tmpfs.stat().st_mode & 0o777) == "0o700"
        assert environments_folder(on_tmpfs, tmp_path / "never") == on_tmpfs
        on_tmpfs.chmod(0o777)
        with pytest.raises(RuntimeFault, match="FASTFLOW_ENV_DIR"):
            environments_folder(tmp_path / "disk", on_tmpfs)
    finally:
        on_tmpfs.rmdir()
