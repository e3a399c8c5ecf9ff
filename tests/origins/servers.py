"""Real Git servers on this machine's loopback: smart HTTP with a token, and SSH with a key."""

import base64
import contextlib
import datetime
import ipaddress
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import asyncssh
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass
class HttpServer:
    """A server on loopback; `requests` are the paths asked for, `authorizations` what came with them to get in.

    `authority` is its certificate.
    """

    url: str
    requests: list[str] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    authority: Path | None = None


Answer = tuple[int, Mapping[str, str], bytes]
"""Status, headers and body."""


@contextlib.contextmanager
def answering(
    answer: Callable[[BaseHTTPRequestHandler, bytes], Answer], *, certificate: Path | None = None
) -> Iterator[HttpServer]:
    """Answers each request, of which it gets the body, as `answer` says.

    With a folder for a `certificate` of its own it is https.
    """
    served = HttpServer("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def _answer(self) -> None:
            served.requests.append(self.path)
            served.authorizations.extend(self.headers.get_all("Authorization", []))
            status, headers, content = answer(self, self._body())
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    if certificate is not None:
        served.authority, key = _certificate(certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(served.authority, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        served.url = f"https://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


WANTS_PASSWORD: Answer = (401, {"WWW-Authenticate": 'Basic realm="git"'}, b"")


def http_server(
    root: Path, token: str, *, certificate: Path | None = None
) -> contextlib.AbstractContextManager[HttpServer]:
    """Serves the repositories in `root` with `git http-backend`, to who sends `token` as password.

    With a folder for a `certificate` of its own it is https.
    """
    expected = base64.b64encode(f"git:{token}".encode()).decode()

    def answer(request: BaseHTTPRequestHandler, body: bytes) -> Answer:
        if token and request.headers.get("Authorization") != f"Basic {expected}":
            return WANTS_PASSWORD
        path, _, query = request.path.partition("?")
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": request.command,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
        }
        done = subprocess.run(
            ["git", "http-backend"], input=body, env=environment, capture_output=True, timeout=60, check=True
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines())
        return int(headers.pop("Status", "200").split()[0]), headers, content

    return answering(answer, certificate=certificate)


@dataclass(frozen=True)
class SshServer:
    """`host_key` is its line of known_hosts, `key` the private key it lets in."""

    port: int
    host_key: str
    key: str


@contextlib.contextmanager
def ssh_server() -> Iterator[SshServer]:
    """Serves every repository of this machine with `git upload-pack`, to who has the key."""
    command = [sys.executable, "-m", "tests.origins.ssh_server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield SshServer(**json.loads(process.stdout.readline()))
        finally:
            # The end of its input is the end of the program.
            process.stdin.close()
            process.wait(60)


def new_key(kind: str = "ssh-ed25519") -> str:
    """Returns a private key that no server lets in."""
    return asyncssh.generate_private_key(kind).export_private_key().decode()


def new_host_key(port: int) -> str:
    """Returns a line of known_hosts that is not the server's."""
    return f"[127.0.0.1]:{port} {asyncssh.generate_private_key('ssh-ed25519').export_public_key().decode().strip()}"


def _certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(exist_ok=True)
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "certificate.pem", folder / "key.pem"
