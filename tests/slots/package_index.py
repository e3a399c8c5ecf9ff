"""A package index that counts who asks it."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import subprocess
import threading
from base64 import b64encode
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class PackageIndex:
    """A package index on `address` of this host; with `login` ("user:password"), only for those who give it."""

    def __init__(self, address: str, login: str = "") -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.on_request: Callable[[], object] = lambda: None
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.requests.append(self.path)
                index.on_request()
                refused = bool(login) and self.headers["Authorization"] != f"Basic {b64encode(login.encode()).decode()}"
                content = None if refused else index.answer(self.path)
                self.send_response(401 if refused else 404 if content is None else 200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content or b"")

            do_HEAD = do_GET  # noqa: N815  # as http.server calls it

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer((address, 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://{self._server.server_address[0]!s}:{self._server.server_address[1]}/simple"

    def add(self, project: str, file: str, content: bytes) -> None:
        self.files.setdefault(project, {})[file] = content

    def answer(self, path: str) -> bytes | None:
        parts = path.strip("/").split("/")
        if parts[0] == "files":
            return self.files[parts[1]][parts[2]]
        if parts[0] != "simple" or parts[-1] not in self.files:
            return None
        links = [
            f'<a href="/files/{parts[1]}/{name}#sha256={hashlib.sha256(content).hexdigest()}">{name}</a>'
            for name, content in self.files[parts[1]].items()
        ]
        return f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode()

    def close(self) -> None:
        """Stops answering; a second call does nothing."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def bridge_address() -> str:
    """This host's end of Docker's bridge."""
    command = ["docker", "network", "inspect", "bridge", "--format", "{{json .IPAM.Config}}"]
    config = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)[0]
    return str(config.get("Gateway") or next(ipaddress.ip_network(config["Subnet"]).hosts()))
