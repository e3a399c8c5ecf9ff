"""A bare copy of a remote repository: all its branches and tags, and which commit of it is in use."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pygit2
import structlog
from fastflow.durable import replace_file, sync_file, sync_folder
from fastflow.pipelines.folder import FolderFault, Kind
from fastflow.pipelines.problems import visible

from fastflow_controlplane.sources.model import Commit
from fastflow_controlplane.sources.repository import (
    DamagedRepository,
    StorageFault,
    TreeFolder,
    open_bare,
    telling_damage,
)
from fastflow_controlplane.sources.source import UnknownRef

log = structlog.get_logger(__name__)

IN_USE = "refs/fastflow/in-use"
"""The commit that pipelines are read from: changed in one step, after all its objects are on disk."""

DAMAGED = "damaged"
"""File in the copy that says that the next fetch is to bring everything, as something is missing."""

UPSTREAM = "fastflow-upstream"
"""File in the copy that tells what is followed in it, in JSON: the fields of Upstream, and those of `left` in it."""

BRANCHES = "refs/remotes/origin/"
TAGS = "refs/tags/"

MIN_COMMIT_DIGITS = 4
"""Shorter beginnings of a commit's id are too likely to mean another one; Git's own minimum."""

BRANCHES_NAMED = 10
"""Branches that an error names."""

MAX_CHANGED = 1_000
"""Files up to which a change is looked at file by file; beyond, searching everything costs no more."""

MAX_SHOWN = 500
"""Characters of a commit's first line, and of its author's name, that are kept: lines are read by people."""

_MAX_CHARACTER_BYTES = 4
_LAST_SECOND = 253_402_300_799
"""The end of the year 9999, beyond which a time can not be sent."""

_HEX = frozenset("0123456789abcdefABCDEF")
_COMMIT_DIGITS = 40


@dataclass(frozen=True)
class Upstream:
    """What a copy follows: the repository at `url`, and its `branch`, "" = the one that its HEAD names."""

    url: str
    branch: str = ""


UNREADABLE = Upstream("")
"""Stands for what a copy follows where that can not be read."""


class Mirror:
    """The copy in the folder `path`, made there, empty, if it is missing. Methods block and belong to one thread at a
    time; another thread takes a Mirror of its own. Raises StorageFault where it can not be made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._repository = open_bare(path)

    @property
    def repository(self) -> pygit2.Repository:
        """The repository itself, for who fetches into it."""
        return self._repository

    def left(self, upstream: Upstream) -> Upstream | None:
        """Returns what was in use before `upstream` was set, while no commit of `upstream` was taken into use since.

        None = what is in use is of `upstream`, or nothing was in use so far. Once anything else was fetched, to follow
        what was in use before does not help: branches and tags may be of either. A copy without a note, of a version
        that kept none, counts as one of `upstream`.
        """
        followed, left = self._noted()
        if left is None and followed not in (None, upstream) and (self.path / IN_USE).exists():
            return followed
        return left

    def follow(self, upstream: Upstream) -> None:
        """Notes, durable, what is fetched from now on, and what was in use of anything else. Raises StorageFault."""
        if self._noted()[0] != upstream:
            self._note(upstream, self.left(upstream))

    def in_use(self) -> Commit | None:
        """Returns the commit in use; None = none yet."""
        try:
            reference = self._repository.references.get(IN_USE)
        except pygit2.GitError:
            # The power was cut while the first one was written; the next fetch clears it away.
            reference = None
        return None if reference is None else self.commit(str(reference.target))

    def use(self, commit: str) -> None:
        """Makes a commit that was fetched the one in use, durable; nothing is `left` then. Raises StorageFault."""
        try:
            self._repository.references.create(IN_USE, pygit2.Oid(hex=commit), force=True)
            sync_file(self.path / IN_USE)
            sync_folder((self.path / IN_USE).parent)
        except (pygit2.GitError, OSError) as fault:
            raise StorageFault(str(fault)) from fault
        followed, left = self._noted()
        if followed is not None and left is not None:
            self._note(followed, None)

    def commit(self, commit: str) -> Commit:
        """Returns what a commit says. Raises DamagedRepository where it is missing."""
        try:
            found = self._repository[pygit2.Oid(hex=commit)].peel(pygit2.Commit)
        except (KeyError, pygit2.GitError) as fault:
            raise DamagedRepository(f"the commit {commit} can not be read: {fault}") from fault
        return _described(found)

    def branches(self) -> dict[str, str]:
        """Returns the commits of the branches, by name."""
        return _under(BRANCHES, self.references())

    def references(self) -> dict[str, str]:
        """Returns what was last seen of the remote's branches and tags, by the names they have here."""
        return {
            reference.name: str(reference.target)
            for reference in self._repository.references.iterator()
            if reference.name.startswith((BRANCHES, TAGS))
        }

    def is_no_commit(self, target: str) -> bool:
        """Tells whether what a reference points to is here, and is neither a commit nor a tag of one.

        Raises DamagedRepository.
        """
        oid = pygit2.Oid(hex=target)
        with telling_damage():
            return oid in self._repository and _commit_of(self._repository[oid]) is None

    def forget(self, references: Iterable[str]) -> None:
        """Removes references, by the names they have here, where they are; their objects stay."""
        for name in references:
            if name in self._repository.references:
                self._repository.references.delete(name)

    def held_references(self) -> dict[str, str]:
        """Returns `references`, without and rid of those to what is not here, which a power cut took.

        libgit2 fetches nothing that is named. Raises DamagedRepository for what is here and can not be read.
        """
        named = self.references()
        with telling_damage():
            held = {name: target for name, target in named.items() if pygit2.Oid(hex=target) in self._repository}
        self.forget(named.keys() - held.keys())
        return held

    def resolve(self, ref: str) -> Commit:
        """Returns the commit that a branch, a tag, a commit's id or its beginning means. Raises UnknownRef."""
        for prefix in (BRANCHES, TAGS):
            try:
                reference = self._repository.references.get(prefix + ref)
            except (ValueError, pygit2.GitError):
                continue
            if reference is not None and (found := self._commit_at(reference.target)) is not None:
                return _described(found)
        if MIN_COMMIT_DIGITS <= len(ref) <= _COMMIT_DIGITS and set(ref) <= _HEX:
            try:
                found = self._commit_at(ref)
            except ValueError:
                raise UnknownRef(f'"{ref}" is the beginning of several commits: write more of it') from None
            if found is not None:
                return _described(found)
        there = ", ".join(sorted(self.branches())[:BRANCHES_NAMED]) or "none"
        raise UnknownRef(
            f'there is no commit or branch "{ref}"; the branches are: {there}. If it was just pushed, sync first: '
            "`ffctl sync --wait`"
        )

    def root(self, commit: str, folder: str) -> TreeFolder:
        """Returns the folder `folder` ("" = the root) at a commit. Raises FolderFault where it has no such folder."""
        found = TreeFolder(self._repository, pygit2.Oid(hex=commit))
        for part in filter(None, folder.split("/")):
            if all(entry.name != part or entry.kind is not Kind.FOLDER for entry in found.entries()):
                raise FolderFault(
                    "",
                    f'there is no folder "{folder}" in the repository at commit {commit[:12]}: check `path` of the '
                    "source, or push the folder",
                )
            found = found.folder(part)
        return found

    def changed(self, before: str, after: str, folder: str) -> list[str] | None:
        """Returns the paths below `folder` of files that differ between two commits; None = more than MAX_CHANGED.

        Costs what changed: Git compares trees by their ids. Raises FolderFault where one has no such folder.
        """
        trees = [self.root(commit, folder).tree for commit in (before, after)]
        difference = trees[0].diff_to_tree(trees[1])
        if len(difference) > MAX_CHANGED:
            return None
        sides = (side for delta in difference.deltas for side in (delta.old_file, delta.new_file))
        return sorted({os.fsdecode(side.raw_path) for side in sides})

    def tree_at(self, commit: str, path: str) -> str:
        """Returns the tree id of the folder `path` at a commit, "" where there is none. Costs the depth of `path`."""
        try:
            found = self._repository[pygit2.Oid(hex=commit)].peel(pygit2.Tree)[path]
        except KeyError:
            return ""
        return str(found.id) if isinstance(found, pygit2.Tree) else ""

    def holds(self, tree: str) -> bool:
        """Tells whether a tree is here; it may be damaged."""
        return pygit2.Oid(hex=tree) in self._repository.odb

    def folder(self, tree: str) -> TreeFolder:
        """Returns the files of a tree."""
        return TreeFolder(self._repository, pygit2.Oid(hex=tree))

    @property
    def is_damaged(self) -> bool:
        """Whether the next fetch is to bring everything."""
        return (self.path / DAMAGED).exists()

    def mark_damaged(self) -> None:
        """Has the next fetch bring everything; what can be read stays."""
        if not self.is_damaged:
            log.warning("the copy of a repository is damaged: the next sync fetches all of it", path=str(self.path))
            (self.path / DAMAGED).touch()

    def mark_whole(self) -> None:
        """Notes that everything was fetched."""
        (self.path / DAMAGED).unlink(missing_ok=True)

    def see_fetched(self) -> None:
        """Sees what another process fetched: libgit2 takes a pack for the one of its name that it has open."""
        self._repository.free()

    def close(self) -> None:
        """Releases the files."""
        self._repository.free()

    def _noted(self) -> tuple[Upstream | None, Upstream | None]:
        """Returns what branches and tags are of, None = there is no note, and what was in use before that was."""
        try:
            noted = json.loads((self.path / UPSTREAM).read_bytes())
            return _upstream(noted), _upstream(noted["left"]) if noted.get("left") else None
        except FileNotFoundError:
            return None, None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return UNREADABLE, None

    def _note(self, followed: Upstream, left: Upstream | None) -> None:
        note = asdict(followed) | ({"left": asdict(left)} if left else {})
        try:
            replace_file(self.path / UPSTREAM, json.dumps(note))
        except OSError as fault:
            raise StorageFault(str(fault)) from fault

    def _commit_at(self, name: pygit2.Oid | str) -> pygit2.Commit | None:
        """Returns the commit of an id or its beginning; None = there is none. Raises ValueError where several are."""
        try:
            return _commit_of(self._repository[name])
        except (KeyError, pygit2.GitError):
            return None


def _upstream(noted: Mapping[str, Any]) -> Upstream:
    return Upstream(str(noted["url"]), str(noted["branch"]))


def _under(prefix: str, references: Mapping[str, str]) -> dict[str, str]:
    return {name.removeprefix(prefix): commit for name, commit in references.items() if name.startswith(prefix)}


def _commit_of(found: pygit2.Object) -> pygit2.Commit | None:
    try:
        return found.peel(pygit2.Commit)
    except (ValueError, pygit2.GitError):
        return None


def _described(commit: pygit2.Commit) -> Commit:
    author, encoding = commit.author, commit.message_encoding
    name, address = (_shown(part, encoding) for part in (author.raw_name, author.raw_email))
    return Commit(
        id=str(commit.id),
        author=f"{name} <{address}>",
        subject=_shown(commit.raw_message.strip().partition(b"\n")[0], encoding),
        time=min(max(commit.commit_time, 0), _LAST_SECOND),
    )


def _shown(said: bytes, encoding: str | None) -> str:
    """Returns the beginning of what a commit says, readable: nobody checks it, or the encoding that it names."""
    said = said[: MAX_SHOWN * _MAX_CHARACTER_BYTES]
    try:
        text = said.decode(encoding or "utf-8", errors="replace")
    except (LookupError, ValueError):
        text = said.decode(errors="replace")
    text = visible(text)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"
