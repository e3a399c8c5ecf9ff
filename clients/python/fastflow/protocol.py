"""Versions of the agents' protocol, and which of them two programs of different age speak with each other.

Version 2 can drain an agent (attempts that have not begun come back to the queue), can stop an attempt whose secrets
are unknown at present, can have an attempt wait for its word, can ask whether anything is left of one that ended, and
can tell what changed of the environments to prepare. Each version understands the one before it, so control plane and
agents may be upgraded in any order, one version at a time.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Protocols:
    """The versions a program speaks, from the oldest to the newest."""

    oldest: int
    newest: int

    def common(self, other: "Protocols") -> int | None:
        """Returns the newest version that both speak; None = there is none."""
        version = min(self.newest, other.newest)
        return version if version >= max(self.oldest, other.oldest) else None

    def __str__(self) -> str:
        return f"protocol {self.oldest}" if self.oldest == self.newest else f"protocols {self.oldest} to {self.newest}"


PROTOCOLS = Protocols(1, 2)
"""What this version of Fast-Flow speaks, as a control plane and as an agent."""

HOLDS_RELEASE = 2
"""From this version on an agent lets no program begin before the control plane has noted that it has the attempt."""

STOPS_UNMASKED = 2
"""From this version on an agent keeps a log back for as long as nobody can tell which secrets to mask in it."""

WAITS = 2
"""From this version on an agent can be told that an attempt is known, before it can be told what is to become of it."""

REPORTS_STRAYS = 2
"""From this version on an agent reports of an attempt that ended, and that it knows nothing of, just that no container
is left of it, once none is."""

PREHEAT_DIFFERENCES = 2
"""From this version on an agent need not be told all environments to prepare each time one of them changes."""
