"""A Docker engine that answers what a test tells it: real HTTP over a real socket, no containers."""

import json
import re
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

IMAGE_ID = "sha256:" + 64 * "0"
VERSION = {"Version": "20.10.0", "ApiVersion": "1.41", "MinAPIVersion": "1.12"}
HEALTHY: dict[str, tuple[int, Any]] = {
    "GET /version": (200, VERSION),
    # Neither driver that we know: so there are no control groups, and nothing of this host's is touched.
    "GET /info": (200, {"CgroupVersion": "2", "CgroupDriver": "none"}),
    "GET /images/IMAGE/json": (200, {"Id": IMAGE_ID}),
    "GET /containers/json": (200, []),
    "GET /events": (200, b""),
}


class ScriptedEngine:
    """Listens at `folder`/docker.sock. `answers` maps "METHOD /path" to a status and what is sent: bytes, or as JSON.

    A question in `held` is answered once its event is set. In paths stand IMAGE and NAME for any image and any
    container; the version of the API is left out.
    """

    def __init__(self, folder: Path) -> None:
        self.answers = dict(HEALTHY)
        self.asked: list[str] = []
        self.held: dict[str, threading.Event] = {}
        self.connections = 0
        self._server = _Server(str(folder / "docker.sock"), self)
        self.host = f"unix://{folder}/docker.sock"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def refuse(self, question: str, status: int, message: str = "it does not work") -> None:
        """Answer `question` with an error, in the engine's form."""
        self.answers[question] = (status, {"message": message})

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, path: str, engine: ScriptedEngine) -> None:
        self.engine = engine
        super().__init__(path, _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.engine.connections += 1

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        question = f"{self.command} {_plain(self.path)}"
        self.server.engine.asked.append(question)
        if held := self.server.engine.held.get(question):
            held.wait()
        status, said = self.server.engine.answers.get(question, (404, {"message": f"nothing is known of {question}"}))
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - names of http.server's choice

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is written."""


def _plain(path: str) -> str:
    path = re.sub(r"^/v[\d.]+", "", path.partition("?")[0])
    path = re.sub(r"^/images/.+/json$", "/images/IMAGE/json", path)
    return re.sub(r"^/containers/(?!json$|create$)[^/]+", "/containers/NAME", path)
