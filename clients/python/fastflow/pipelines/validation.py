"""What `ffctl pipelines validate PATH` finds out, with no server."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from fastflow.pipelines.code import MAX_CODE_BYTES
from fastflow.pipelines.discovery import (
    MAIN,
    Note,
    Pipeline,
    PipelineState,
    Place,
    clashes,
    find_pipelines,
    inspect_place,
)
from fastflow.pipelines.folder import DiskFolder, Folder, FolderFault, read_file
from fastflow.pipelines.jsontext import JsonFault, parse_json
from fastflow.pipelines.metadata import MAX_METADATA_BYTES, UNSUPPORTED_FIELDS
from fastflow.pipelines.original import weekday_problems
from fastflow.pipelines.problems import Problem, Severity, visible


@dataclass(frozen=True)
class Report:
    """All pipelines of a folder with their problems, and what in it is no pipeline."""

    pipelines: tuple[Pipeline, ...]
    notes: tuple[Note, ...]

    @property
    def valid(self) -> bool:
        """True if there is a pipeline and none is INVALID; warnings do not count."""
        return bool(self.pipelines) and all(pipeline.state is not PipelineState.INVALID for pipeline in self.pipelines)

    @property
    def without_effect(self) -> dict[str, int]:
        """Fields of the original Fast-Flow that have no effect here, with the number of pipelines that set them."""
        counts = Counter(
            field
            for pipeline in self.pipelines
            for field in {problem.field for problem in pipeline.problems} & UNSUPPORTED_FIELDS
        )
        return dict(sorted(counts.items()))

    def count(self, severity: Severity) -> int:
        """How many problems of this kind there are."""
        return sum(problem.severity is severity for pipeline in self.pipelines for problem in pipeline.problems)


def validate(path: Path, max_code_bytes: int = MAX_CODE_BYTES) -> Report:
    """Validates `path`: one pipeline if it has a main.py, else a source with any number of them.

    The code of one may have `max_code_bytes`. Which default limits and Python versions a control plane has is not known
    here. Raises FolderFault where `path` is no folder that can be read.
    """
    folder = DiskFolder(path)
    if any(entry.name == MAIN for entry in folder.entries()):
        return Report((_inspect(Place(path.resolve().name, "", folder), max_code_bytes),), _own_code(folder))
    found = find_pipelines(folder)
    clashing = clashes(found.places)
    pipelines = []
    for place in found.places:
        pipeline = _inspect(place, max_code_bytes)
        if place.path in clashing:
            pipeline = replace(pipeline, problems=(clashing[place.path], *pipeline.problems))
        pipelines.append(pipeline)
    return Report(tuple(pipelines), found.notes)


def _inspect(place: Place, max_code_bytes: int) -> Pipeline:
    """The pipeline as a control plane sees it, and what changes for one of the original Fast-Flow."""
    pipeline = inspect_place(place, None, max_code_bytes)
    return replace(pipeline, problems=(*pipeline.problems, *_changed_days(place.folder, pipeline)))


def _changed_days(folder: Folder, pipeline: Pipeline) -> list[Problem]:
    """Told of other metadata too that can not be used: whoever mends it learns of all at once."""
    if not pipeline.metadata_file:
        return []
    file = next(entry.name for entry in folder.entries() if visible(entry.name) == pipeline.metadata_file)
    try:
        document = parse_json(read_file(folder, file, MAX_METADATA_BYTES))
    except (FolderFault, JsonFault):
        return []  # which is among the problems already
    return weekday_problems(document, pipeline.metadata_file) if isinstance(document, dict) else []


def _own_code(folder: Folder) -> tuple[Note, ...]:
    """What to say of a whole repository that is taken for one pipeline because of a main.py at its top."""
    within = [visible(place.path) for place in find_pipelines(folder).places]
    if not within:
        return ()
    named = ", ".join(within[:3]) + (", …" if len(within) > 3 else "")
    message = (
        f"makes this folder one pipeline, so the folders with a main.py in it ({named}) are its own code; "
        "to have them as pipelines move it into a folder of its own"
    )
    return (Note(MAIN, message),)
