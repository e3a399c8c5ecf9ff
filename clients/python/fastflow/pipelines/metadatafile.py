"""Which file of a pipeline holds its metadata.

`pipeline.json`, else `<folder>.json`, else the single other `*.json` whose keys are all fields of the metadata: people
name it after what the pipeline does. The last is a guess and therefore a warning.
"""

from dataclasses import dataclass

from fastflow.pipelines.folder import Entry, Folder, FolderFault, Kind, read_file
from fastflow.pipelines.jsontext import JsonFault, JsonObject, parse_json
from fastflow.pipelines.metadata import (
    FIELDS,
    LIMIT_FIELDS,
    MAX_METADATA_BYTES,
    UNSUPPORTED_FIELDS,
    Limits,
    Metadata,
    read_metadata,
    without_metadata,
)
from fastflow.pipelines.problems import Problem, did_you_mean, error, warning

STANDARD_NAME = "pipeline.json"


@dataclass(frozen=True)
class ChosenMetadata:
    """The metadata of a pipeline, None if wrong; `file` it stands in, "" for defaults; what is to be told."""

    metadata: Metadata | None
    file: str
    problems: tuple[Problem, ...]


def find_metadata(name: str, folder: Folder, entries: list[Entry], defaults: Limits | None) -> ChosenMetadata:
    """Reads the metadata of the pipeline `name`, whose folder has these `entries`."""
    by_name = {entry.name: entry for entry in entries}
    for file in (STANDARD_NAME, f"{name}.json"):
        if file in by_name:
            chosen = _read(folder, by_name[file], defaults)
            return _with_warnings(chosen, _passed_over(file, f"{name}.json", by_name))
    return _guess(folder, [entry for entry in entries if _may_be_metadata(entry)], defaults)


def _read(folder: Folder, entry: Entry, defaults: Limits | None) -> ChosenMetadata:
    if entry.kind is not Kind.FILE:
        problem = error(entry.name, f"is {entry.kind.value}; the metadata is a regular file")
        return ChosenMetadata(None, entry.name, (problem,))
    if entry.size > MAX_METADATA_BYTES:
        problem = error(entry.name, f"has {entry.size} bytes; metadata has at most {MAX_METADATA_BYTES}")
        return ChosenMetadata(None, entry.name, (problem,))
    try:
        data = read_file(folder, entry.name, MAX_METADATA_BYTES)
    except FolderFault as fault:
        return ChosenMetadata(None, entry.name, (error(entry.name, fault.message),))
    metadata, problems = read_metadata(data, entry.name, defaults)
    return ChosenMetadata(metadata, entry.name, tuple(problems))


def _passed_over(used: str, other: str, by_name: dict[str, Entry]) -> list[Problem]:
    if used == other or other not in by_name:
        return []
    return [warning(other, f"is not read, as {used} is there; remove one of the two")]


def _may_be_metadata(entry: Entry) -> bool:
    return entry.name.endswith(".json") and entry.kind is Kind.FILE and entry.size <= MAX_METADATA_BYTES


def _guess(folder: Folder, entries: list[Entry], defaults: Limits | None) -> ChosenMetadata:
    candidates: list[Entry] = []
    problems: list[Problem] = []
    for entry in entries:
        try:
            data = read_file(folder, entry.name, MAX_METADATA_BYTES)
        except FolderFault as fault:
            problems.append(warning(entry.name, f"{fault.message}, so it can not be seen whether it is metadata"))
            continue
        doubt = _doubt(data)
        if doubt is None:
            candidates.append(entry)
        elif any(f'"{field}"'.encode() in data for field in LIMIT_FIELDS):
            message = f"names limits, but is not read as metadata: {doubt}; name it {STANDARD_NAME} if it is meant"
            problems.append(warning(entry.name, message))
    if len(candidates) == 1:
        file = candidates[0].name
        message = f"is read as metadata, as all its keys are fields of it; better name it {STANDARD_NAME}"
        return _with_warnings(_read(folder, candidates[0], defaults), [warning(file, message), *problems])
    if candidates:
        names = ", ".join(entry.name for entry in candidates)
        message = f"may be metadata as well as others ({names}), so none is read; name the right one {STANDARD_NAME}"
        problems.extend(warning(entry.name, message) for entry in candidates)
    return ChosenMetadata(without_metadata(defaults), "", tuple(problems))


def _doubt(data: bytes) -> str | None:
    """Why `data` is not taken for metadata without being named so; None if it is."""
    try:
        document = parse_json(data)
    except JsonFault as fault:
        return f"it is not valid JSON: {fault}"
    if not isinstance(document, JsonObject) or not document.keys() & set(FIELDS):
        return "it holds something else"
    for key in document:
        if key not in FIELDS and key not in UNSUPPORTED_FIELDS:
            return f"its key {key[:100]!a} is not a field{did_you_mean(key, FIELDS)}"
    return None


def _with_warnings(chosen: ChosenMetadata, warnings: list[Problem]) -> ChosenMetadata:
    return ChosenMetadata(chosen.metadata, chosen.file, (*chosen.problems, *warnings))
