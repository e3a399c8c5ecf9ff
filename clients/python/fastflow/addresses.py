"""What an address says of who can reach it."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Tells whether `host` (a name or an address, IPv6 with or without brackets) names this machine itself."""
    host = host.removeprefix("[").removesuffix("]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
