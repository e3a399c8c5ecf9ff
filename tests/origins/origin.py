"""A bare repository that is pushed to."""

from collections.abc import Mapping
from pathlib import Path

import pygit2
from pygit2.enums import FileMode

AUTHOR = pygit2.Signature("Ada Lovelace", "ada@example.org", 1_700_000_000, 0)

Content = str | bytes | tuple[FileMode, str | bytes] | None
"""A file's content, with its mode if that is a special one; None = the file is removed."""


class Origin:
    """The repository in the folder `path`, whose HEAD names the branch `main`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.repository = pygit2.init_repository(str(path), bare=True, initial_head="main")

    @property
    def url(self) -> str:
        """Its address on this machine."""
        return str(self.path)

    def push(
        self, files: Mapping[str, Content], message: str = "Change", *, branch: str = "main", force: bool = False
    ) -> str:
        """Commits a change of files to a branch and returns the commit; with `force` as if it were the first."""
        reference = f"refs/heads/{branch}"
        before = None if force else self.repository.references.get(reference)
        index = pygit2.Index()
        if before is not None:
            index.read_tree(before.peel(pygit2.Tree))
        for path, content in files.items():
            self._stage(index, path, content)
        parents = [before.target] if before is not None else []
        return self._commit(index.write_tree(self.repository), message, parents, reference)

    def push_tree(self, tree: pygit2.Oid) -> str:
        """Commits a tree that was made by hand to the branch main, as if it were the first; returns the commit."""
        return self._commit(tree, "Made by hand", [], "refs/heads/main")

    def _commit(self, tree: pygit2.Oid, message: str, parents: list[pygit2.Oid | str], reference: str) -> str:
        commit = self.repository.create_commit(None, AUTHOR, AUTHOR, message, tree, parents)
        self.repository.references.create(reference, commit, force=True)
        return str(commit)

    def delete(self, branch: str) -> None:
        """Deletes a branch."""
        self.repository.references.delete(f"refs/heads/{branch}")

    def rename_default(self, branch: str) -> None:
        """Renames the branch main, and has HEAD name the new one."""
        self.repository.references["refs/heads/main"].rename(f"refs/heads/{branch}")
        self.repository.set_head(f"refs/heads/{branch}")

    def _stage(self, index: pygit2.Index, path: str, content: Content) -> None:
        if content is None:
            index.remove(path)
            return
        mode, data = content if isinstance(content, tuple) else (FileMode.BLOB, content)
        if mode == FileMode.COMMIT:
            index.add(pygit2.IndexEntry(path, pygit2.Oid(hex=str(data)), mode))
            return
        blob = self.repository.create_blob(data.encode() if isinstance(data, str) else data)
        index.add(pygit2.IndexEntry(path, blob, mode))
