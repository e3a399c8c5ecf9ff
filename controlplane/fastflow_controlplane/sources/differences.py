"""What differs between the code of two pipelines, as text for people."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pygit2
from fastflow.pipelines.sizes import format_size

from fastflow_controlplane.errors import NotFound

MAX_DIFF_BYTES = 256 * 1024
"""Longest text: more is not read by anybody, and an answer of the API has at most 8 MiB."""

MAX_COMPARED_BYTES = 4 * 1024**2
"""Larger files are only named: comparing them takes seconds and shows nothing that fits."""


def difference(repositories: Sequence[Path], before: str, after: str) -> str:
    """Returns a unified diff of two trees, "" where they are the same. Blocks.

    Either may lie in any of the `repositories`. Binary and large files are only named; what is longer than
    MAX_DIFF_BYTES ends with a line that says so. Raises NotFound for a tree that is in none of them.
    """
    if before == after:
        return ""
    with _joined(repositories) as joined:
        changes = _tree(joined, before).diff_to_tree(_tree(joined, after))
        changes.find_similar()
        return _bounded(_part(joined, patch) for patch in changes if patch is not None)


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


def _part(repository: pygit2.Repository, patch: pygit2.Patch) -> str:
    delta = patch.delta
    old, new = delta.old_file, delta.new_file
    size = max(_size(repository, side.id) for side in (old, new))
    if size > MAX_COMPARED_BYTES:
        return f"Large files a/{old.path} and b/{new.path} differ (up to {format_size(size)})\n"
    if patch.delta.is_binary:
        return f"Binary files a/{old.path} and b/{new.path} differ\n"
    return (patch.data or b"").decode(errors="replace")


def _size(repository: pygit2.Repository, blob: pygit2.Oid) -> int:
    return repository.odb.read_header(blob)[1] if blob in repository.odb else 0


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
