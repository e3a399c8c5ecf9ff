"""The shared token that all clients and agents send where one is set."""

import hmac
from collections.abc import Iterable

from fastflow_controlplane.errors import Unauthenticated

HEADER = "authorization"
SCHEME = "bearer "


class SharedToken:
    """Checks calls against one token; without a token every call passes (loopback only, the settings see to it)."""

    def __init__(self, token: str | None) -> None:
        self._expected = token.encode() if token else None

    def check(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Raises Unauthenticated unless `metadata` carries "authorization: Bearer <token>"."""
        if self._expected is None:
            return
        given = next((value for key, value in metadata if key == HEADER), None)
        if given is None:
            raise Unauthenticated(
                "this control plane wants a token and the call brought none",
                reason="TOKEN_MISSING",
                metadata={"hint": "Set FASTFLOW_TOKEN to the token the control plane was started with."},
            )
        text = given if isinstance(given, str) else given.decode(errors="replace")
        token = text[len(SCHEME) :] if text.lower().startswith(SCHEME) else ""
        # As bytes: compare_digest takes only ASCII text, and a caller may send anything.
        if not hmac.compare_digest(token.encode(), self._expected):
            raise Unauthenticated(
                "the call's token is not the one of this control plane",
                reason="TOKEN_WRONG",
                metadata={"hint": "Compare FASTFLOW_TOKEN here with the one the control plane was started with."},
            )
