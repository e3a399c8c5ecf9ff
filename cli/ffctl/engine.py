"""Whether a Docker engine answers on this machine: asked without the Docker SDK, which a laptop with ffctl lacks."""

import os
import socket
from collections.abc import Mapping

DEFAULT_SOCKET = "/var/run/docker.sock"
ANSWER_S = 2.0
"""An engine that needs longer for a ping is stuck."""


def why_not(environment: Mapping[str, str] = os.environ) -> str:
    """Returns "" where a Docker engine answers, otherwise why it can not be had.

    An engine that is not reached through a local socket is taken to be there: the agent speaks to it.
    """
    host = environment.get("FASTFLOW_DOCKER_HOST") or environment.get("DOCKER_HOST") or f"unix://{DEFAULT_SOCKET}"
    scheme, _, path = host.partition("://")
    return _ping(path) if scheme == "unix" else ""


def _ping(path: str) -> str:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as engine:
            engine.settimeout(ANSWER_S)
            engine.connect(path)
            engine.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            answer = engine.recv(64)
    except FileNotFoundError:
        return f"there is no {path}"
    except PermissionError:
        return f"you may not use {path}; membership in the group docker allows it"
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    return "" if b" 200 " in answer else f"{path} does not answer as an engine does"
