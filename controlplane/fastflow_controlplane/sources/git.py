"""A Git repository as the source of pipelines: read from the copy here, never from the network.

A pipeline at a commit is a tree id. What was read of a tree holds for ever, so a new commit costs what changed in it.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

from fastflow.pipelines.code import MAX_CODE_BYTES, Code, read_code
from fastflow.pipelines.discovery import MAIN, Found, Place, Remembered, clashes, find_pipelines
from fastflow.pipelines.folder import Folder, FolderFault
from fastflow.pipelines.metadata import Limits
from fastflow.pipelines.problems import Problem, error, visible

from fastflow_controlplane.sources.mirror import UNREADABLE, Mirror, Upstream
from fastflow_controlplane.sources.model import Commit, Contents, Snapshot, invalid, taken
from fastflow_controlplane.sources.source import NotSyncedYet, UnknownRef


class GitSource:
    """The folder `folder` ("" = all) of the repository copied in `mirror`. See `source.Source`.

    `name` is for people. What the copy has in use of anything but `upstream` is not served. `defaults` are the hard
    limits of pipelines that name none. The code of one may have `max_code_bytes`.
    """

    has_commits = True

    def __init__(
        self,
        name: str,
        upstream: Upstream,
        folder: str,
        mirror: Mirror,
        defaults: Limits,
        max_code_bytes: int = MAX_CODE_BYTES,
    ) -> None:
        self.place = f"{upstream.url}/{folder}" if folder else upstream.url
        self.label = f'the source "{name}"'
        self.objects = mirror.path
        self._name = name
        self._folder = folder
        self._mirror = mirror
        self._defaults = defaults
        self._max_code_bytes = max_code_bytes
        self.left_behind = _left_behind(mirror.left(upstream), upstream)
        """What was changed in the settings since the last sync, so that nothing is in use; "" = nothing."""
        self._fetched_anew_for: set[str] = set()
        """Trees that were damaged, for which all was fetched anew or is to be."""
        self._forget()

    def scan(self) -> Contents:
        """Returns what the commit in use holds. Raises NotSyncedYet before the first sync that succeeded."""
        return self._read(self._in_use())

    def advance(self, commit: str) -> Contents:
        """Reads a commit that was fetched and makes it the one in use; if that fails, the one before stays."""
        self._mirror.see_fetched()
        contents = self._read(self._mirror.commit(commit))
        self._mirror.use(commit)
        self.left_behind = ""
        return contents

    def rescan(self, snapshot: Snapshot) -> Snapshot:
        """Returns `snapshot`: what is in use changes by `advance` alone."""
        return snapshot

    def at(self, name: str, ref: str) -> tuple[Snapshot | None, Commit]:
        """See `source.Source.at`."""
        # Without a commit in use, branches may be those of another repository, or of two.
        self._in_use()
        commit = self._mirror.resolve(ref)
        try:
            found = self._find(commit)
        except FolderFault as fault:
            raise UnknownRef(f'"{ref}" can not be used: {fault}') from None
        places = [place for place in found.places if visible(place.name) == name]
        return _by_name(self._snapshots(places, clashes(found.places))).get(name), commit

    def holds(self, tree: str) -> bool:
        """See `source.Source.holds`; of trees that were pushed over as well."""
        return self._mirror.holds(tree)

    def folder(self, tree: str) -> Folder:
        """See `source.Source.folder`."""
        return self._mirror.folder(tree)

    def may_come_back(self, tree: str) -> bool:
        """See `source.Source.may_come_back`. Once, for what was pushed over the remote may have no more."""
        if tree in self._fetched_anew_for:
            return self._mirror.is_damaged
        self._fetched_anew_for.add(tree)
        return True

    def prune(self, trees: Collection[str], unused_since: float) -> int:
        """Removes nothing: the copy holds what was pushed, also what was pushed over, which earlier runs may name."""
        return 0

    def repair(self) -> None:
        """Has the next sync fetch all of it; what is whole stays, and in use."""
        self._mirror.mark_damaged()
        self._forget()

    def close(self) -> None:
        """Releases the files."""
        self._mirror.close()

    def _in_use(self) -> Commit:
        advice = f"`ffctl sources show {self._name}` tells why"
        if self.left_behind:
            # It had pipelines, and may have them again.
            raise FolderFault("", f"{self.left_behind}: {advice}")
        commit = self._mirror.in_use()
        if commit is None:
            raise NotSyncedYet("", f"was not synced yet: {advice}")
        return commit

    def _forget(self) -> None:
        self._remembered = Remembered()
        self._known: dict[tuple[str, str], Snapshot] = {}
        self._places: dict[str, Place] = {}
        self._current: Contents | None = None

    def _read(self, commit: Commit) -> Contents:
        if self._current is not None and self._current.commit == commit:
            return self._current
        self._current = self._read_changed(commit) or self._read_all(commit)
        return self._current

    def _read_all(self, commit: Commit) -> Contents:
        found = self._find(commit)
        clashing = clashes(found.places)
        snapshots = self._snapshots(found.places, clashing)
        self._places = {} if clashing else {place.path: place for place in found.places}
        # A name that is shared says nothing of the code behind it.
        self._known = {key: snapshot for key, snapshot in snapshots.items() if key[0] not in clashing}
        return Contents(_by_name(snapshots), found.notes, commit)

    def _read_changed(self, commit: Commit) -> Contents | None:
        """Reads only pipelines in which files changed; None where more than that may have changed."""
        before = self._current
        if before is None or before.commit is None:
            return None
        paths = self._mirror.changed(before.commit.id, commit.id, self._folder)
        places = {} if paths is None else self._places_of(paths, commit)
        if paths is None or places is None:
            return None
        fresh = self._snapshots(list(places.values()), {})
        for path in places:
            self._known.pop((path, self._places[path].identity), None)
        self._known.update(fresh)
        self._places.update(places)
        return Contents({**before.snapshots, **_by_name(fresh)}, before.notes, commit)

    def _places_of(self, paths: Sequence[str], commit: Commit) -> dict[str, Place] | None:
        """Returns the pipelines, as they are at `commit`, that all `paths` lie in; None where one lies in none."""
        places: dict[str, Place] = {}
        for path in paths:
            above = next((parent for parent in _parents(path) if parent in self._places), None)
            if above is None:
                return None
            if above not in places:
                place = self._place(above, commit)
                if place is None:
                    return None
                places[above] = place
        return places

    def _place(self, path: str, commit: Commit) -> Place | None:
        tree = self._mirror.tree_at(commit.id, "/".join(filter(None, [self._folder, path])))
        if not tree:
            return None
        folder = self._mirror.folder(tree)
        try:
            is_pipeline = any(entry.name == MAIN for entry in folder.entries())
        except FolderFault:
            return None
        return Place(path.rpartition("/")[2], path, folder, tree) if is_pipeline else None

    def _find(self, commit: Commit) -> Found:
        return find_pipelines(self._mirror.root(commit.id, self._folder), self._remembered)

    def _snapshots(self, places: Sequence[Place], clashing: Mapping[str, Problem]) -> dict[tuple[str, str], Snapshot]:
        snapshots: dict[tuple[str, str], Snapshot] = {}
        for place in places:
            key = (place.path, place.identity)
            if place.path in clashing:
                snapshots[key] = invalid(place, clashing[place.path])
            else:
                snapshots[key] = self._known.get(key) or self._snapshot(place)
        return snapshots

    def _snapshot(self, place: Place) -> Snapshot:
        try:
            code = read_code(place.folder, self._max_code_bytes)
        except FolderFault as fault:
            code = Code((), (error("", fault.message),))
        return taken(place, code, place.folder, place.identity, self._defaults)


def _left_behind(before: Upstream | None, now: Upstream) -> str:
    """Says why what a copy has in use of `before` is not used; "" = it is."""
    if before is None:
        return ""
    if before == UNREADABLE:
        what = "where its copy is from can not be read"
    elif before.url != now.url:
        what = f"its url was changed from {before.url} to {now.url}"
    elif before.branch != now.branch:
        what = f"its branch was changed from {_named(before.branch)} to {_named(now.branch)}"
    else:
        what = "its url or branch was changed and changed back"
    return f"{what}, and it was not synced since (runs that there are keep their code, and no new ones are made of it)"


def _named(branch: str) -> str:
    return f'"{branch}"' if branch else "the default one"


def _parents(path: str) -> Iterator[str]:
    parts = path.split("/")
    return ("/".join(parts[:depth]) for depth in range(1, len(parts)))


def _by_name(snapshots: Mapping[tuple[str, str], Snapshot]) -> dict[str, Snapshot]:
    named: dict[str, Snapshot] = {}
    for snapshot in snapshots.values():
        named.setdefault(snapshot.pipeline.name, snapshot)
    return named
