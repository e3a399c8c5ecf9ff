"""The one family of errors of the control plane.

Raised where the fault is known, turned into a gRPC status in one interceptor (`api.interceptors`). The message is
written for the person who made the call: what was wrong, where, and what to do. Any other exception that reaches the
interceptor is a defect and is answered as INTERNAL without its text.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

DOMAIN = "fastflow"
"""`ErrorInfo.domain` of every error."""


@dataclass(frozen=True)
class FieldViolation:
    """One field of a request that is wrong: its path in proto field names, and what is allowed."""

    field: str
    description: str


class FastFlowError(Exception):
    """An error whose text may be shown to the caller.

    `code` is the name of a gRPC status code, `reason` the stable word of `ErrorInfo.reason`, `metadata` further facts
    for programs (never a secret).
    """

    code: ClassVar[str] = "UNKNOWN"
    default_reason: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Iterable[FieldViolation] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata: dict[str, str] = dict(metadata or {})
        self.violations: list[FieldViolation] = list(violations)


class InvalidArgument(FastFlowError):
    """The request can never succeed as it is; `violations` name the fields."""

    code = "INVALID_ARGUMENT"
    default_reason = "INVALID_ARGUMENT"


class NotFound(FastFlowError):
    """What the request names does not exist."""

    code = "NOT_FOUND"
    default_reason = "NOT_FOUND"


class AlreadyExists(FastFlowError):
    """The request id or name is taken by something else."""

    code = "ALREADY_EXISTS"
    default_reason = "ALREADY_EXISTS"


class FailedPrecondition(FastFlowError):
    """The state of the system must change before the request can succeed."""

    code = "FAILED_PRECONDITION"
    default_reason = "FAILED_PRECONDITION"


class Deposed(FailedPrecondition):
    """The database belongs to another control plane now: what this one knows is out of date, and it must end."""


class Aborted(FastFlowError):
    """Somebody else changed it in between: read again and repeat."""

    code = "ABORTED"
    default_reason = "CONFLICT"


class ResourceExhausted(FastFlowError):
    """A bound is reached: fewer or smaller requests succeed."""

    code = "RESOURCE_EXHAUSTED"
    default_reason = "RESOURCE_EXHAUSTED"


class Unauthenticated(FastFlowError):
    """The token is missing or wrong."""

    code = "UNAUTHENTICATED"
    default_reason = "UNAUTHENTICATED"


class PermissionDenied(FastFlowError):
    """The caller is known and may not do this."""

    code = "PERMISSION_DENIED"
    default_reason = "PERMISSION_DENIED"


class Unavailable(FastFlowError):
    """It does not work now (for example the disk is full); the same request may succeed later."""

    code = "UNAVAILABLE"
    default_reason = "UNAVAILABLE"


class DataLoss(FastFlowError):
    """Stored data is missing or damaged."""

    code = "DATA_LOSS"
    default_reason = "DATA_LOSS"


def not_found(kind: str, name: str, known: Sequence[str], hint: str = "") -> NotFound:
    """The error for an unknown `kind` ("pipeline", "agent"), naming it and the nearest of the `known` names.

    `hint` goes on after that, as "; …".
    """
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    message = f'there is no {kind} "{name}"'
    if near:
        message += "; did you mean " + " or ".join(f'"{candidate}"' for candidate in near) + "?"
    elif not known:
        message += f"; no {kind} is known yet"
    return NotFound(
        message + hint,
        reason=f"{kind.upper()}_NOT_FOUND",
        metadata={kind: name, **({"nearest": ",".join(near)} if near else {})},
    )
