"""What differs between two runs: plain decisions over plain values. Values of variables are compared, never kept."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from fastflow.ids import short

from fastflow_controlplane.clock import MICROSECONDS
from fastflow_controlplane.runs.model import Provenance, RunView


class Change(StrEnum):
    """How a variable differs; names of `fastflow.v1.VariableChange`."""

    ADDED = "ADDED"
    REMOVED = "REMOVED"
    VALUE = "VALUE"


@dataclass(frozen=True, slots=True)
class PackageDifference:
    """A package in other versions; "" = not installed."""

    name: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class VariableDifference:
    """A variable that one of the runs lacks, or that has another value."""

    name: str
    change: Change


@dataclass(frozen=True, slots=True)
class ValueDifference:
    """A field of `fastflow.v1.Run` by its path, with both values as text; "" = none."""

    field: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class RunDifferences:
    """What differs. `code` is a unified diff, "" where it can not be told and None for the same code."""

    a: RunView
    b: RunView
    code: str | None
    packages: tuple[PackageDifference, ...]
    parameters: tuple[VariableDifference, ...]
    default_environment: tuple[VariableDifference, ...]
    values: tuple[ValueDifference, ...]
    notes: tuple[str, ...]

    @property
    def identical(self) -> bool:
        """True where nothing that was compared differs."""
        found = (self.packages, self.parameters, self.default_environment, self.values)
        return self.code is None and not any(found)


def compare(
    a: RunView, b: RunView, code: str | None, given: tuple[Mapping[str, str], Mapping[str, str]], notes: Iterable[str]
) -> RunDifferences:
    """Compares two runs. `code` and `notes` are what is known already, `given` the values of --env of both."""
    told_a, told_b = _told(a), _told(b)
    packages: tuple[PackageDifference, ...] = ()
    values = [*_placed(a, b)]
    if told_a and told_b:
        packages = tuple(_packages(told_a.packages, told_b.packages))
        values += [*_prepared(a, told_a, b, told_b)]
    return RunDifferences(
        a,
        b,
        code,
        packages,
        tuple(_variables(*given)),
        tuple(_variables(a.default_environment, b.default_environment)),
        tuple(values),
        (*notes, *(_untold(run) for run in (a, b) if _told(run) is None)),
    )


def _told(run: RunView) -> Provenance | None:
    known = run.provenance
    return known if known is not None and known.reported else None


def _untold(run: RunView) -> str:
    why = "ended before its environment was there" if run.terminal else "has no environment yet"
    return f"run {short(run.id)} {why}: packages, secrets, agent, image, Python and uv are not compared"


def _packages(a: Iterable[str], b: Iterable[str]) -> Iterator[PackageDifference]:
    in_a, in_b = _versions(a), _versions(b)
    for key in sorted(in_a.keys() | in_b.keys()):
        name_a, version_a = in_a.get(key, ("", ""))
        name_b, version_b = in_b.get(key, ("", ""))
        if version_a != version_b:
            yield PackageDifference(name_b or name_a, version_a, version_b)


def _versions(packages: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Names as they compare (https://packaging.python.org/en/latest/specifications/name-normalization/), with what is
    told of each package: "name==version", or "name @ address" of one that came from elsewhere than an index."""
    named = (re.split("==| @ ", package, maxsplit=1) for package in packages)
    return {re.sub(r"[-_.]+", "-", name).lower(): (name, "".join(version)) for name, *version in named}


def _variables(a: Mapping[str, str], b: Mapping[str, str]) -> Iterator[VariableDifference]:
    for name in sorted(a.keys() | b.keys()):
        if name not in a:
            yield VariableDifference(name, Change.ADDED)
        elif name not in b:
            yield VariableDifference(name, Change.REMOVED)
        elif a[name] != b[name]:
            yield VariableDifference(name, Change.VALUE)


def _placed(a: RunView, b: RunView) -> Iterator[ValueDifference]:
    """What was fixed when the runs were created."""
    pairs = {
        "pipeline": (a.pipeline, b.pipeline),
        "limits.cpu_hard_milli_cores": (a.limits.cpu_hard_milli_cores, b.limits.cpu_hard_milli_cores),
        "limits.memory_hard_bytes": (a.limits.memory_hard_bytes, b.limits.memory_hard_bytes),
        "limits.cpu_soft_milli_cores": (a.limits.cpu_soft_milli_cores, b.limits.cpu_soft_milli_cores),
        "limits.memory_soft_bytes": (a.limits.memory_soft_bytes, b.limits.memory_soft_bytes),
        "timeout": (_seconds(a.timeout_usec), _seconds(b.timeout_usec)),
        "python_version": (a.python_version, b.python_version),
    }
    return _differing(pairs)


def _prepared(a: RunView, told_a: Provenance, b: RunView, told_b: Provenance) -> Iterator[ValueDifference]:
    """What was known once an agent had prepared them."""
    pairs: dict[str, tuple[object, object]] = {
        "agent": (a.attempts[-1].agent, b.attempts[-1].agent),
        "provenance.image": (told_a.image, told_b.image),
        "provenance.image_digest": (told_a.image_digest, told_b.image_digest),
        "provenance.python_version": (told_a.python_version, told_b.python_version),
        "provenance.uv_version": (told_a.uv_version, told_b.uv_version),
    }
    for name in sorted(told_a.secret_versions.keys() | told_b.secret_versions.keys()):
        versions = told_a.secret_versions.get(name, ""), told_b.secret_versions.get(name, "")
        pairs[f"provenance.secret_versions.{name}"] = versions
    return _differing(pairs)


def _differing(pairs: Mapping[str, tuple[object, object]]) -> Iterator[ValueDifference]:
    for field, (a, b) in pairs.items():
        if a != b:
            yield ValueDifference(field, str(a), str(b))


def _seconds(microseconds: int) -> str:
    return f"{microseconds / MICROSECONDS:g}s"
