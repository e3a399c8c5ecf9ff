"""What commits say of themselves, whatever bytes that is."""

import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from pygit2.enums import ObjectType

from tests.unit.sources.conftest import Followed

ADDRESS = "<ada@example.org>"


def push(followed: Followed, *, author: bytes, message: bytes, encoding: bytes = b"", time: int = 1) -> str:
    """Commits as other programs can, which check nothing."""
    repository = followed.origin.repository
    tree = repository[followed.origin.push({"a/main.py": ""})].tree.id
    signature = author + f" {ADDRESS} {time} +0000\n".encode()
    head = b"tree " + str(tree).encode() + b"\nauthor " + signature + b"committer " + signature
    head += b"encoding " + encoding + b"\n" if encoding else b""
    commit = repository.write(ObjectType.COMMIT, head + b"\n" + message)
    repository.references.create("refs/heads/main", commit, force=True)
    return str(commit)


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("", ("Andr\ufffd", "caf\ufffd")),
        ("ISO-8859-1", ("André", "café")),
        ("UTF-8", ("Andr\ufffd", "caf\ufffd")),
        ("ascii", ("Andr\ufffd", "caf\ufffd")),
        ("x-nobody-knows", ("Andr\ufffd", "caf\ufffd")),
        ("zlib_codec", ("Andr\ufffd", "caf\ufffd")),
        ("idna", ("Andr\ufffd", "caf\ufffd")),
    ],
)
async def test_a_commit_in_any_encoding_is_used(followed: Followed, encoding: str, shown: tuple[str, str]) -> None:
    commit = push(followed, author=b"Andr\xe9", message=b"caf\xe9\n\nMore.", encoding=encoding.encode())
    await followed.sync()
    for ref in ("", commit):
        pinned = await followed.catalog.snapshot("a", ref)
        assert (pinned.commit, pinned.commit_author, pinned.commit_subject) == (
            commit,
            f"{shown[0]} {ADDRESS}",
            shown[1],
        )


@pytest.mark.parametrize("encoding", [b"utf-7", b"unicode_escape"])
async def test_what_a_commit_says_can_be_sent_and_shown(followed: Followed, encoding: bytes) -> None:
    push(followed, author=b"+2AA-", message=b"\\ud800+2AA- \x1b[31m", encoding=encoding)
    await followed.sync()
    pinned = await followed.catalog.snapshot("a")
    assert (pinned.commit_author + pinned.commit_subject).encode().isascii()
    assert "\x1b" not in pinned.commit_subject


async def test_of_a_long_first_line_the_beginning_is_kept(followed: Followed) -> None:
    push(followed, author=b"A" * 100_000, message=b"s" * 10_000_000)
    await followed.sync()
    pinned = await followed.catalog.snapshot("a")
    assert (len(pinned.commit_subject), pinned.commit_subject[-2:]) == (500, "s…")
    assert len(pinned.commit_author) < 1100


async def test_a_commit_of_any_time_can_be_sent(followed: Followed) -> None:
    push(followed, author=b"A", message=b"m", time=2**62)
    await followed.sync()
    commit = followed.catalog.readers["git"].contents.commit
    assert commit is not None
    assert MessageToDict(Timestamp(seconds=commit.time)) == "9999-12-31T23:59:59Z"
