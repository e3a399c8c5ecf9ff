"""Where the control plane is, and the token it wants."""

import os

import click

DEFAULT_SERVER = "127.0.0.1:7233"
DEFAULT_PORT = 7233
SERVER_VARIABLE = "FASTFLOW_SERVER"
TOKEN_VARIABLE = "FASTFLOW_TOKEN"


def default_server() -> str:
    """Returns the address that the environment names, else that of a control plane on this machine."""
    return with_port(os.environ.get(SERVER_VARIABLE) or DEFAULT_SERVER)


def with_port(address: str) -> str:
    """Returns `address` with the default port where it names none. Raises click.UsageError for what is no address."""
    host, separator, port = address.rpartition(":")
    if address.endswith("]") or not separator:
        host, port = address, str(DEFAULT_PORT)
    bare_ipv6 = ":" in host and not host.startswith("[")
    if not host or bare_ipv6 or "/" in address or " " in address or not port.isdigit() or not 0 < int(port) < 65536:
        raise click.UsageError(f'"{address}" is not an address; write HOST:PORT, for example {DEFAULT_SERVER}')
    return f"{host}:{port}"


def token() -> str | None:
    """Returns the shared token. It has no option: other users of a machine can read a command line."""
    return os.environ.get(TOKEN_VARIABLE) or None
