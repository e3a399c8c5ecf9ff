"""How a preparer ended, the same with every runtime: what its log says, without logins, and what uv could not say."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from fastflow_agent.logs.redact import Masks
from fastflow_agent.runtime.base import KILLED, Observation, PreparerResult, RuntimeFault
from fastflow_agent.runtime.release import OFFLINE, Gate

OUTPUT_BYTES = 1 << 20
"""How much of uv's output is kept: its end, where the refusal stands. What a build prints knows no bound."""


def read_output(log: Path, secrets: Iterable[bytes]) -> bytes:
    """Returns the end of a preparer's log. uv shows no login, but it runs the build scripts of packages, which may.

    Blocks. Raises OSError.
    """
    masks = Masks(secrets)
    descriptor = os.open(log, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        # With what tells of the first byte that is kept whether it belongs to a secret.
        file.seek(max(0, os.fstat(descriptor).st_size - OUTPUT_BYTES - masks.reach))
        return masks.apply(file.read(OUTPUT_BYTES + masks.reach))[-OUTPUT_BYTES:]


TOO_LATE = "fastflow: preparing was stopped, as it took longer than prepare_timeout of this agent\n"
"""The note on a preparer that was stopped because of its time limit."""


def was_killed(seen: Observation) -> bool:
    """Whether a preparer that was sent SIGKILL ended by that: it may have ended by itself just before."""
    return seen.exit_code in (None, KILLED)


def preparer_result(seen: Observation, gate: Gate, output: bytes, note: str = "") -> PreparerResult:
    """Returns the result of a preparer that has ended; `note` is what uv could not say itself.

    Raises RuntimeFault if it could not call uv.
    """
    if seen.wrapper_failed:
        raise RuntimeFault(f"The preparer could not call uv: {output.decode(errors='replace').strip()}")
    code = seen.exit_code if seen.exit_code is not None else 1
    return PreparerResult(code, output + note.encode(), offline=code == 0 and gate.says(OFFLINE))
