"""What differs between the code of two pipelines, as text for people."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pygit2
from fastflow.pipelines.sizes import format_size
from pygit2.enums import DiffFind

from fastflow_controlplane.errors import NotFound

MAX_DIFF_BYTES = 256 * 1024
"""Longest text: more is not read by anybody, and an answer of the API has at most 8 MiB."""

MAX_COMPARED_BYTES = 4 * 1024**2
"""Larger files are only named: comparing them takes seconds and shows nothing that fits."""

MAX_MATCHED = 200
"""Changed files among which one that was moved and changed is searched for: each is compared with each."""


def difference(repositories: Sequence[Path], before: str, after: str) -> str:
    """Returns a unified diff of two trees, "" where they are the same. Blocks.

    Either may lie in any of the `repositories`. Binary and large files are only named; what is longer than
    MAX_DIFF_BYTES ends with a line that says so. Raises NotFound for a tree that is in none of them.
    """
    if before == after:
        return ""
    with _joined(repositories) as joined:
        changes = _tree(joined, before).diff_to_tree(_tree(joined, after))
        large = any(_size(joined, delta) > MAX_COMPARED_BYTES for delta in changes.deltas)
        changes.find_similar(
            DiffFind.FIND_EXACT_MATCH_ONLY if large or len(changes) > MAX_MATCHED else DiffFind.FIND_RENAMES
        )
        return _bounded(_part(joined, changes, number, delta) for number, delta in enumerate(changes.deltas))


@contextmanager
def _joined(repositories: Sequence[Path]) -> Iterator[pygit2.Repository]:
    """Opens the first repository, which finds the objects of all."""
    repository = pygit2.Repository(str(repositories[0]))
    try:
        for other in repositories[1:]:
            repository.odb.add_disk_alternate(str(other / "objects"))
        yield repository
    finally:
        repository.free()


def _tree(repository: pygit2.Repository, tree: str) -> pygit2.Tree:
    try:
        return repository[pygit2.Oid(hex=tree)].peel(pygit2.Tree)
    except (KeyError, ValueError, pygit2.GitError):
        raise NotFound(
            f'the code "{tree}" is no longer there to be compared', reason="CODE_NOT_FOUND", metadata={"tree": tree}
        ) from None


def _part(repository: pygit2.Repository, changes: pygit2.Diff, number: int, delta: pygit2.DiffDelta) -> str:
    old, new = delta.old_file, delta.new_file
    size = _size(repository, delta)
    if size > MAX_COMPARED_BYTES:
        return f"Large files a/{old.path} and b/{new.path} differ (up to {format_size(size)})\n"
    # Only here are the files read and compared.
    patch = changes[number]
    if patch is None:
        return ""
    if patch.delta.is_binary:
        return f"Binary files a/{old.path} and b/{new.path} differ\n"
    return (patch.data or b"").decode(errors="replace")


def _size(repository: pygit2.Repository, delta: pygit2.DiffDelta) -> int:
    """Bytes of the larger of two files."""
    blobs = (side.id for side in (delta.old_file, delta.new_file) if side.id in repository.odb)
    return max((repository.odb.read_header(blob)[1] for blob in blobs), default=0)


def _bounded(parts: Iterable[str]) -> str:
    kept: list[str] = []
    left = MAX_DIFF_BYTES
    for line in (line for part in parts for line in part.splitlines(keepends=True)):
        left -= len(line.encode())
        if left < 0:
            kept.append(f"... more differs: only {format_size(MAX_DIFF_BYTES)} are shown\n")
            break
        kept.append(line)
    return "".join(kept)
