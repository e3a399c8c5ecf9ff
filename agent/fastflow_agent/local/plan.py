"""What a local run is to run: the pipeline as a control plane would read it, and the variables it gets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastflow.pipelines import environment
from fastflow.pipelines.code import MAX_CODE_BYTES, Code, read_code
from fastflow.pipelines.discovery import MAIN, inspect
from fastflow.pipelines.folder import DiskFolder, FolderFault
from fastflow.pipelines.metadata import MAX_TIMEOUT_SECONDS, Metadata
from fastflow.pipelines.problems import Problem, Severity, errors

from fastflow_agent.desired import RunSpec, Secret
from fastflow_agent.logs.redact import MIN_SECRET_BYTES
from fastflow_agent.model import Limits

STOP_GRACE_SECONDS = 10.0
"""Between SIGTERM and SIGKILL: what a control plane gives by default."""


class Refused(Exception):
    """The run is refused, as a control plane would refuse it. `details` are further lines for people."""

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.details = tuple(details)


@dataclass(frozen=True)
class Plan:
    """A pipeline and its variables. `timeout` in seconds from the release, 0 = none; `warnings` are for people."""

    pipeline: str
    code: Code
    metadata: Metadata
    timeout: float
    variables: Mapping[str, str] = field(repr=False)
    secrets: tuple[Secret, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def limits(self) -> Limits:
        """The limits in force."""
        limits = self.metadata.limits
        return Limits(
            limits.cpu_hard_milli_cores,
            limits.memory_hard_bytes,
            limits.cpu_soft_milli_cores,
            limits.memory_soft_bytes,
        )

    def spec(self, digest: str, size: int) -> RunSpec:
        """What an agent gets to run: the bundle `digest`, `size` bytes long. All output is wanted."""
        return RunSpec(
            pipeline=self.pipeline,
            bundle_digest=digest,
            bundle_size=size,
            limits=self.limits,
            timeout=self.timeout,
            stop_grace=STOP_GRACE_SECONDS,
            python_version=self.metadata.python_version,
            log_limit=0,
            variables=self.variables,
            secrets=self.secrets,
        )


def read_plan(
    path: Path,
    variables: Mapping[str, str],
    secrets: Mapping[str, str],
    timeout: float | None,
    max_code_bytes: int = MAX_CODE_BYTES,
) -> Plan:
    """Reads the pipeline in the folder `path`. Blocks.

    Precedence is that of a run: `default_env`, then `secrets`, then `variables`. `timeout` (seconds) goes before the
    metadata's; the code may have `max_code_bytes`. Raises Refused.
    """
    if timeout is not None and not 0 <= timeout <= MAX_TIMEOUT_SECONDS:
        raise Refused(f"--timeout {timeout} is no time limit; allowed is a number of seconds, 0 for none")
    name, folder = path.resolve().name, DiskFolder(path)
    try:
        if all(entry.name != MAIN for entry in folder.entries()):
            raise Refused(f"{path} is no pipeline: it has no {MAIN}")
        code = read_code(folder, max_code_bytes)
    except FolderFault as fault:
        raise Refused(f"{path}: {fault}") from None
    found = inspect(name, "", folder, code, None)
    if found.metadata is None or errors(found.problems):
        raise Refused(f"the pipeline {found.name} is INVALID", [_line(problem) for problem in found.problems])
    given = {**found.metadata.default_environment, **secrets, **variables}
    if refused := environment.faults(given):
        raise Refused("variables are refused", [str(fault) for fault in refused])
    hidden = {name: value for name, value in secrets.items() if name not in variables}
    return Plan(
        pipeline=found.name,
        code=code,
        metadata=found.metadata,
        timeout=found.metadata.timeout_seconds if timeout is None else timeout,
        variables={name: value for name, value in given.items() if name not in hidden},
        secrets=tuple(Secret(name, os.fsencode(value)) for name, value in hidden.items()),
        warnings=(*(_line(problem) for problem in found.problems), *_unmasked(hidden)),
    )


def _line(problem: Problem) -> str:
    kind = "warning" if problem.severity is Severity.WARNING else "error"
    return f"{kind}: {problem}"


def _unmasked(secrets: Mapping[str, str]) -> list[str]:
    return [
        f"warning: {name} is shorter than {MIN_SECRET_BYTES} bytes, so it is not masked in the output"
        for name, value in secrets.items()
        if len(value.strip().encode()) < MIN_SECRET_BYTES
    ]
