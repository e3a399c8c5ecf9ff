"""How a command ends other than well: a sentence for people and an exit code, never a traceback."""

from collections.abc import Sequence

SUCCEEDED = 0
RUN_FAILED = 1
USAGE = 2
UNREACHABLE = 3
REFUSED = 4
DETACHED = 130
"""What a shell reports after Ctrl-C (128 + SIGINT): the command stopped watching, the run goes on."""


class Failure(Exception):
    """Ends the command with `exit_code`; `message`, `details` and `hint` are printed to stderr.

    `details` are further lines (one per wrong field, for example), `hint` says what to do.
    """

    exit_code = RUN_FAILED

    def __init__(self, message: str = "", *, details: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.details = list(details)
        self.hint = hint


class Unreachable(Failure):
    """The server did not answer within the time that is waited for."""

    exit_code = UNREACHABLE


class Refused(Failure):
    """The server answered, with an error; `code` is the name of the gRPC status code ("NOT_FOUND")."""

    exit_code = REFUSED

    def __init__(self, message: str, *, code: str, details: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(message, details=details, hint=hint)
        self.code = code


class Detached(Failure):
    """Ctrl-C: the command ends, what it watched goes on."""

    exit_code = DETACHED


class ReaderLeft(Failure):
    """Who read our stdout closed it; nothing is said about it."""

    exit_code = SUCCEEDED
