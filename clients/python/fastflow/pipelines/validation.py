"""What `ffctl pipelines validate PATH` finds out, with no server."""

from dataclasses import dataclass, replace
from pathlib import Path

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
from fastflow.pipelines.folder import DiskFolder


@dataclass(frozen=True)
class Report:
    """All pipelines of a folder with their problems, and what in it is no pipeline."""

    pipelines: tuple[Pipeline, ...]
    notes: tuple[Note, ...]

    @property
    def valid(self) -> bool:
        """True if there is a pipeline and none is INVALID; warnings do not count."""
        return bool(self.pipelines) and all(pipeline.state is not PipelineState.INVALID for pipeline in self.pipelines)


def validate(path: Path) -> Report:
    """Validates `path`: one pipeline if it has a main.py, else a source with any number of them.

    Which default limits and Python versions a control plane has is not known here. Raises FolderFault where `path` is
    no folder that can be read.
    """
    folder = DiskFolder(path)
    if any(entry.name == MAIN for entry in folder.entries()):
        return Report((inspect_place(Place(path.resolve().name, "", folder), None),), ())
    found = find_pipelines(folder)
    clashing = clashes(found.places)
    pipelines = []
    for place in found.places:
        pipeline = inspect_place(place, None)
        if place.path in clashing:
            pipeline = replace(pipeline, problems=(clashing[place.path], *pipeline.problems))
        pipelines.append(pipeline)
    return Report(tuple(pipelines), found.notes)
