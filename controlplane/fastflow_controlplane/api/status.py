"""Errors as google.rpc.Status: exactly one ErrorInfo (domain `fastflow`), and BadRequest where fields are wrong."""

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import code_pb2, error_details_pb2, status_pb2

from fastflow_controlplane.errors import DOMAIN, FastFlowError

STATUS_KEY = "grpc-status-details-bin"
"""Trailer in which gRPC carries a google.rpc.Status."""
MAX_MESSAGE_BYTES = 1000
MAX_FACT_BYTES = 200
MAX_VIOLATIONS = 5
"""A status travels in HTTP/2 headers, which peers may refuse above 8 KiB (gRPC's soft limit): the message twice, once
percent-encoded (three times its size at worst) and once with the details in Base64."""
INTERNAL_REASON = "INTERNAL"


def status_of(error: FastFlowError) -> status_pb2.Status:
    """Returns the status that tells `error`."""
    details = [
        _packed(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=_clipped(error.metadata)))
    ]
    if error.violations:
        bad_request = error_details_pb2.BadRequest()
        for violation in error.violations[:MAX_VIOLATIONS]:
            bad_request.field_violations.add(
                field=_clip(violation.field, MAX_FACT_BYTES), description=_clip(violation.description, MAX_FACT_BYTES)
            )
        details.append(_packed(bad_request))
    return status_pb2.Status(
        code=code_pb2.Code.Value(error.code), message=_clip(error.message, MAX_MESSAGE_BYTES), details=details
    )


def internal(reference: str) -> status_pb2.Status:
    """Returns the status of a defect: nothing of the exception but a reference to the log entry that holds it."""
    information = error_details_pb2.ErrorInfo(
        reason=INTERNAL_REASON,
        domain=DOMAIN,
        metadata={"reference": reference, "hint": "Please report it with this entry of the log."},
    )
    return status_pb2.Status(
        code=code_pb2.Code.Value("INTERNAL"),
        message=f"the control plane failed; its log tells more under reference {reference}",
        details=[_packed(information)],
    )


def grpc_code(status: status_pb2.Status) -> grpc.StatusCode:
    """Returns the gRPC code of a status."""
    return grpc.StatusCode[code_pb2.Code.Name(status.code)]


def trailers(status: status_pb2.Status) -> tuple[tuple[str, bytes]]:
    """Returns the trailing metadata that carries a status."""
    return ((STATUS_KEY, status.SerializeToString()),)


def _packed(message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


def _clipped(metadata: dict[str, str]) -> dict[str, str]:
    return {key: _clip(value, MAX_FACT_BYTES) for key, value in metadata.items()}


def _clip(text: str, most: int) -> str:
    data = text.encode()
    return text if len(data) <= most else f"{data[: most - len('…'.encode())].decode(errors='ignore')}…"
