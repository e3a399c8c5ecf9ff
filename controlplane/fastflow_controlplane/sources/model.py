"""What callers see of pipelines: plain values, no files and no protobuf."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from fastflow.pipelines.bundle import Bundle, pack
from fastflow.pipelines.code import Code
from fastflow.pipelines.discovery import Note, Pipeline, PipelineState, Place, inspect, state_of
from fastflow.pipelines.folder import Folder
from fastflow.pipelines.metadata import Limits, Metadata, matches_python
from fastflow.pipelines.problems import Problem, error, visible


@dataclass(frozen=True, slots=True)
class Commit:
    """A Git commit: `author` is "Name <address>", `subject` its first line, `time` seconds since 1970.

    Of a long name or line it is the beginning; what can not be read as text is replaced.
    """

    id: str
    author: str
    subject: str
    time: int


@dataclass(frozen=True, slots=True)
class Changes:
    """Names of pipelines that a look at a source found to be different; `invalid` are those of them that are so now."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    invalid: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All pipelines that are different, those that are gone as well."""
        return (*self.added, *self.changed, *self.removed)

    def __bool__(self) -> bool:
        return bool(self.names)


@dataclass(frozen=True, slots=True)
class PinnedCode:
    """The exact code of a pipeline at one moment, and what its metadata said then.

    `tree` is the Git tree id of the code, `commit` the Git commit it comes from, `commit_author` ("Name <address>") and
    `commit_subject` (its first line) what it says; "" for a plain folder. `bundle_digest` is "sha256:…", `bundle_size`
    in bytes; the bundle is on disk.
    """

    pipeline: str
    tree: str
    commit: str
    bundle_digest: str
    bundle_size: int
    metadata: Metadata
    commit_author: str = ""
    commit_subject: str = ""


@dataclass(frozen=True, slots=True)
class RunCode:
    """What a run was pinned to: the bundle it gets, made of the Git tree `tree`."""

    bundle: Bundle
    tree: str


@dataclass(frozen=True, slots=True)
class PipelineView:
    """A pipeline as it is now. `metadata` is None where its file is wrong; `metadata_file` "" = defaults.

    `path` is relative to `source`, a folder or the address of a repository. `tree` and `bundle_digest` are "" while the
    code can not be read.
    `bundle_size` is in bytes; `has_header` says that main.py names packages itself (PEP 723).
    """

    name: str
    state: PipelineState
    problems: tuple[Problem, ...]
    metadata: Metadata | None
    metadata_file: str
    has_requirements: bool
    source: str
    path: str
    tree: str
    commit: str
    bundle_digest: str
    bundle_size: int = 0
    has_header: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A pipeline as discovered, with its code in the object database; `bundle` None = the code can not be read."""

    pipeline: Pipeline
    tree: str
    bundle: Bundle | None

    def view(self, source: str, python_versions: Collection[str], commit: str = "") -> PipelineView:
        """Returns the pipeline as callers see it, at the place `source`.

        Agents have these `python_versions`; none = not known yet.
        """
        found = self.pipeline
        problems = (*found.problems, *_missing_python(found, python_versions))
        return PipelineView(
            name=found.name,
            state=state_of(found.metadata, problems),
            problems=problems,
            metadata=found.metadata,
            metadata_file=found.metadata_file,
            has_requirements=found.has_requirements,
            source=source,
            path=found.path,
            tree=self.tree,
            commit=commit,
            bundle_digest=self.bundle.digest if self.bundle else "",
            bundle_size=self.bundle.size if self.bundle else 0,
            has_header=found.has_header,
        )


@dataclass(frozen=True)
class Contents:
    """What a source holds: pipelines by name, what was passed over, and the commit it is, None for a plain folder."""

    snapshots: Mapping[str, Snapshot]
    notes: tuple[Note, ...]
    commit: Commit | None = None


def taken(place: Place, code: Code, folder: Folder, tree: str, defaults: Limits) -> Snapshot:
    """Returns the snapshot of the pipeline at `place`, whose `code` is in the Git tree `tree`, read from `folder`."""
    pipeline = inspect(place.name, place.path, folder, code, defaults)
    if code.problems:
        return Snapshot(pipeline, "", None)
    return Snapshot(pipeline, tree, pack(code, _Nowhere()))


def invalid(place: Place, *problems: Problem) -> Snapshot:
    """Returns the snapshot of a pipeline that can not be read."""
    return Snapshot(Pipeline(visible(place.name), visible(place.path), problems, None, "", False), "", None)


class _Nowhere:
    """Takes a bundle of which only the digest is wanted."""

    def write(self, data: bytes, /) -> None:
        pass


def _missing_python(pipeline: Pipeline, versions: Collection[str]) -> list[Problem]:
    wanted = pipeline.metadata.python_version if pipeline.metadata else ""
    if not wanted or not versions or any(matches_python(wanted, version) for version in versions):
        return []
    there_are = ", ".join(sorted(versions, key=_version_key))
    message = f'"{wanted}" is in the runner image of no agent; there are: {there_are}'
    return [error(pipeline.metadata_file, message, "python_version")]


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else 0 for part in version.split("."))
