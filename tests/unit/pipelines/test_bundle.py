"""Bundles: the same code gives the same bytes, and nothing but a pipeline's code can be unpacked."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fastflow.deletion import delete_trees
from fastflow.pipelines.bundle import PARTIAL_PREFIX, Bundle, BundleFault, digest_hex, digest_of, pack, unpack
from fastflow.pipelines.code import MAX_CODE_BYTES, read_code
from fastflow.pipelines.folder import DiskFolder, FolderFault
from hypothesis import given, settings
from hypothesis import strategies as st


def packed(folder: Path) -> tuple[Bundle, bytes]:
    sink = io.BytesIO()
    made = pack(read_code(DiskFolder(folder)), sink)
    return made, sink.getvalue()


def unpacked(archive: bytes, into: Path) -> Path:
    unpack(io.BytesIO(archive), into)
    return into


def tar(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=format) as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return sink.getvalue()


def file(path: str, content: bytes = b"x") -> tuple[tarfile.TarInfo, bytes]:
    return tarfile.TarInfo(path), content


def link(path: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(path)
    member.type, member.linkname = kind, target
    return member, b""


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    folder = tmp_path / "pipeline"
    (folder / "package" / "ü").mkdir(parents=True)
    (folder / "main.py").write_text("print(1)\n")
    (folder / "package" / "module.py").write_text("")
    (folder / "package" / "ü" / "data.bin").write_bytes(os.urandom(100_000))
    (folder / "tool.sh").write_text("#!/bin/sh\n")
    (folder / "tool.sh").chmod(0o755)
    (folder / "same").symlink_to("package/module.py")
    return folder


def test_code_comes_out_as_it_went_in(pipeline: Path, tmp_path: Path) -> None:
    made, archive = packed(pipeline)
    code = unpacked(archive, tmp_path / "code")
    assert sorted(str(path.relative_to(code)) for path in code.rglob("*")) == sorted(
        str(path.relative_to(pipeline)) for path in pipeline.rglob("*")
    )
    assert (code / "package" / "ü" / "data.bin").read_bytes() == (pipeline / "package" / "ü" / "data.bin").read_bytes()
    assert (code / "same").readlink() == Path("package/module.py")
    assert made == Bundle(digest_of(io.BytesIO(archive)), len(archive))


def test_unpacked_code_is_read_only_and_readable_by_everybody(pipeline: Path, tmp_path: Path) -> None:
    code = unpacked(packed(pipeline)[1], tmp_path / "code")
    modes = {str(path.relative_to(code)): path.lstat().st_mode & 0o777 for path in [code, *code.rglob("*")]}
    del modes["same"]
    assert modes.pop("tool.sh") == modes.pop("package") == modes.pop("package/ü") == modes.pop(".") == 0o555
    assert set(modes.values()) == {0o444}


def test_the_same_files_give_the_same_bytes_whatever_else_differs(pipeline: Path, tmp_path: Path) -> None:
    first = packed(pipeline)[1]
    copy = tmp_path / "copy"
    unpacked(first, copy)
    os.utime(pipeline / "main.py", (1, 1))
    (pipeline / "main.py").chmod(0o600)
    (pipeline / "empty").mkdir()
    (pipeline / "__pycache__").mkdir()
    (pipeline / "__pycache__" / "main.pyc").write_bytes(b"cache")
    assert packed(pipeline)[1] == first == packed(copy)[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "main.py").write_text("print(2)\n"),
        lambda folder: (folder / "main.py").chmod(0o700),
        lambda folder: (folder / "main.py").rename(folder / "other.py"),
        lambda folder: (folder / ".hidden").write_text(""),
        lambda folder: ((folder / "same").unlink(), (folder / "same").symlink_to("main.py")),
    ],
    ids=["content", "executable", "name", "new hidden file", "link target"],
)
def test_a_change_of_the_code_is_another_bundle(pipeline: Path, change: Callable[[Path], object]) -> None:
    before = packed(pipeline)[0].digest
    change(pipeline)
    assert packed(pipeline)[0].digest != before


_name = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="/\0"), min_size=1, max_size=60).filter(
    lambda name: name not in (".", "..") and len(name.encode()) <= 255
)


@settings(max_examples=40)
@given(files=st.dictionaries(st.tuples(_name, _name), st.tuples(st.binary(max_size=2000), st.booleans()), max_size=8))
def test_any_files_make_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, files: dict[tuple[str, str], tuple[bytes, bool]]
) -> None:
    root = tmp_path_factory.mktemp("round")
    source = root / "source"
    source.mkdir()
    for (parent, name), (content, executable) in files.items():
        (source / ("d" + parent)).mkdir(exist_ok=True)
        (source / ("d" + parent) / ("f" + name)).write_bytes(content)
        (source / ("d" + parent) / ("f" + name)).chmod(0o755 if executable else 0o644)
    made, archive = packed(source)
    code = unpacked(archive, root / "code")
    assert packed(code)[0] == made
    for (parent, name), (content, executable) in files.items():
        path = code / ("d" + parent) / ("f" + name)
        assert path.read_bytes() == content
        assert bool(path.stat().st_mode & 0o100) == executable


@pytest.mark.parametrize(
    ("archive", "said"),
    [
        (tar(file("/etc/passwd")), "not a path within the folder"),
        (tar(file("../outside")), "not a path within the folder"),
        (tar(file("a/../../outside")), "not a path within the folder"),
        (tar(file("a//b")), "not a path within the folder"),
        (tar(file("./a")), "not a path within the folder"),
        (tar(file("x" * 256)), "longer or deeper"),
        (tar(file("d/" * 40 + "f")), "longer or deeper"),
        (tar(file("a"), file("a")), "there twice"),
        (tar(file("a"), file("a/b")), "lies in a file"),
        (tar(file("a/b"), file("a")), "there twice"),
        (tar(link("a", "/etc/passwd")), "is an absolute path"),
        (tar(link("a", "../outside")), "leaves the folder"),
        (tar(file("d/e/f"), link("d/e/up", "../.."), link("out", "d/e/up/../x")), "leaves the folder"),
        (tar(link("d", "."), file("d/x")), "lies in a file"),
        (tar(link("a", "b"), link("b", "a")), "leads in circles"),
        (tar(link("a", "main.py", tarfile.LNKTYPE)), "neither a file nor a symbolic link"),
        (tar(link("a", "", tarfile.CHRTYPE)), "neither a file nor a symbolic link"),
        (tar(link("a", "", tarfile.FIFOTYPE)), "neither a file nor a symbolic link"),
        (tar(link("a", "", tarfile.DIRTYPE)), "neither a file nor a symbolic link"),
        (b"", "is no bundle"),
        (b"no archive at all" * 100, "is no bundle"),
        (tar(file("a", b"x" * 100_000))[:50_000], "is no bundle"),
    ],
)
def test_what_is_no_bundle_is_refused_and_leaves_nothing(archive: bytes, said: str, tmp_path: Path) -> None:
    into = tmp_path / "bundles"
    into.mkdir()
    with pytest.raises(BundleFault, match=said):
        unpack(io.BytesIO(archive), into / "code")
    assert list(into.iterdir()) == []
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("size", [20_480, MAX_CODE_BYTES + 1, 2**60])
def test_an_archive_of_more_than_can_be_in_it_is_refused_before_it_fills_the_disk(tmp_path: Path, size: int) -> None:
    member = tarfile.TarInfo("large")
    member.size = size
    with pytest.raises(BundleFault, match="is no bundle: its files are longer than itself"):
        unpack(io.BytesIO(member.tobuf(tarfile.PAX_FORMAT) + b"\0" * 10_240), tmp_path / "code")
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=60)
@given(position=st.integers(min_value=0, max_value=20_479), byte=st.integers(min_value=0, max_value=255))
def test_a_damaged_archive_is_code_or_refused(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int
) -> None:
    root = tmp_path_factory.mktemp("damaged")
    archive = bytearray(tar(file("main.py", b"print(1)\n" * 1000), link("l", "main.py"), file("d/ü", b"2")))
    archive[position % len(archive)] = byte
    try:
        unpack(io.BytesIO(bytes(archive)), root / "code")
    except BundleFault:
        assert list(root.iterdir()) == []


def test_code_that_somebody_else_unpacked_meanwhile_stays(pipeline: Path, tmp_path: Path) -> None:
    archive = packed(pipeline)[1]
    code = unpacked(archive, tmp_path / "code")
    before = code.stat().st_ino
    unpack(io.BytesIO(archive), code)
    assert code.stat().st_ino == before
    assert not list(tmp_path.glob(f"{PARTIAL_PREFIX}*"))


def test_a_full_disk_is_no_fault_of_the_pipeline(pipeline: Path) -> None:
    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        pack(read_code(DiskFolder(pipeline)), Full())


@pytest.mark.parametrize("content", ["print(1)\nprint(2)\n", ""], ids=["longer", "shorter"])
def test_a_file_that_changed_since_it_was_listed_is_not_packed(pipeline: Path, content: str) -> None:
    code = read_code(DiskFolder(pipeline))
    (pipeline / "main.py").write_text(content)
    with pytest.raises(FolderFault, match=r"main\.py: was changed while it was read"):
        pack(code, io.BytesIO())


def test_a_bundle_can_be_deleted_though_it_is_read_only(pipeline: Path, tmp_path: Path) -> None:
    code = unpacked(packed(pipeline)[1], tmp_path / "code")
    delete_trees(code)
    assert not code.exists()


def test_a_digest_is_only_ever_64_hexadecimal_digits() -> None:
    assert digest_hex("sha256:" + "0a" * 32) == "0a" * 32
    for text in ("0a" * 32, "sha256:" + "0A" * 32, "sha256:../../x", "sha256:" + "0a" * 32 + "\n", ""):
        with pytest.raises(ValueError, match="is not a digest"):
            digest_hex(text)
