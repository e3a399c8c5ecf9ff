"""The lab's network: two bridges in the lab's network namespace, and two taps on them per guest.

Guests and control plane talk over the *lab* bridge, which a partition cuts. The lab itself reaches into its guests
over the *manage* bridge, which is never cut, so a test can look into a host that is partitioned.
"""

from __future__ import annotations

from dataclasses import dataclass

from .prerequisites import PLAIN_ENVIRONMENT
from .scope import Scope

CONTROL_PLANE_ADDRESS = "10.77.0.1"
"""Where guests find what runs in the lab's network namespace beside them."""

COMMAND_TIMEOUT = 10.0
"""Seconds for one change of the network's set-up: milliseconds, on an overloaded machine more."""

FIRST_HOST_NUMBER = 11
"""Last byte of the first guest's addresses; those below are the lab's own."""

BRIDGE_PORT_STATES = {"disabled": "0", "forwarding": "3"}
"""Numbers of the states, which older iproute2 knows by number only. Source: linux/if_bridge.h."""


@dataclass(frozen=True)
class Link:
    """How one guest is connected: names of its taps, its addresses, and fixed hardware addresses.

    A guest that boots again keeps its hardware addresses, as a real host does; else its neighbours would talk to
    the old one until their caches expire.
    """

    number: int

    @property
    def lab_tap(self) -> str:
        return f"lab{self.number}"

    @property
    def manage_tap(self) -> str:
        return f"manage{self.number}"

    @property
    def lab_address(self) -> str:
        return f"10.77.0.{self.number}"

    @property
    def manage_address(self) -> str:
        return f"10.78.0.{self.number}"

    def hardware_address(self, tap: str) -> str:
        return f"02:00:00:{'77' if tap == self.lab_tap else '78'}:00:{self.number:02x}"


class Network:
    """Makes the bridges in the scope's network namespace, whose end is their end too."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._last_number = FIRST_HOST_NUMBER - 1
        self._ip("link", "set", "lo", "up")
        self._add_bridge("lab", f"{CONTROL_PLANE_ADDRESS}/24", "02:00:00:77:00:01")
        self._add_bridge("manage", "10.78.0.1/24", "02:00:00:78:00:01")

    def add_host(self) -> Link:
        """Make the taps of one more guest and connect them."""
        self._last_number += 1
        link = Link(self._last_number)
        for tap, bridge in ((link.lab_tap, "lab"), (link.manage_tap, "manage")):
            self._ip("tuntap", "add", "mode", "tap", "name", tap)
            self._ip("link", "set", tap, "master", bridge, "up")
        return link

    def partition(self, link: Link) -> None:
        """Cut a guest off: from now on packets vanish in both directions, and nobody is told."""
        self._set_bridge_port(link, "disabled")

    def heal(self, link: Link) -> None:
        """Undo a partition; connections that outlived it go on."""
        self._set_bridge_port(link, "forwarding")

    def _set_bridge_port(self, link: Link, state: str) -> None:
        # Not by taking the tap down: the write error makes the guest's network driver give up for good.
        self._run("bridge", "link", "set", "dev", link.lab_tap, "state", BRIDGE_PORT_STATES[state])

    def _add_bridge(self, name: str, address: str, hardware_address: str) -> None:
        self._ip("link", "add", name, "address", hardware_address, "type", "bridge", "forward_delay", "0")
        self._ip("address", "add", address, "dev", name)
        self._ip("link", "set", name, "up")

    def _ip(self, *arguments: str) -> None:
        self._run("ip", *arguments)

    def _run(self, *argv: str) -> None:
        self._scope.run(argv, timeout=COMMAND_TIMEOUT, env=PLAIN_ENVIRONMENT)
