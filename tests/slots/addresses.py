"""A package in a Git repository, and what else is fetched by its address."""

from __future__ import annotations

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.origins.git import git
from tests.slots.packages import built_source

_BUILD = """
import os, zipfile
INFO = "gitty-1.0.dist-info"
def build_wheel(folder, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(os.path.join(folder, "gitty-1.0-py3-none-any.whl"), "w") as wheel:
        wheel.write("gitty.py")
        wheel.writestr(f"{INFO}/METADATA", "Metadata-Version: 2.1\\nName: gitty\\nVersion: 1.0\\n")
        wheel.writestr(f"{INFO}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{INFO}/RECORD", "".join(f"{name},,\\n" for name in wheel.namelist()))
    return "gitty-1.0-py3-none-any.whl"
"""


def gitty(says: str) -> dict[str, bytes]:
    """The source of the package gitty, version 1.0, whose module says that."""
    return built_source(_BUILD, {"gitty.py": f"SAYS = {says!r}\n".encode()})


class Addresses:
    """Files and a repository, served on this host; the repository's package is always version 1.0."""

    def __init__(self, folder: Path) -> None:
        self.served = folder / "served"
        self.repository = folder / "repository"
        self.served.mkdir()
        self.repository.mkdir()
        self._git("init", "--quiet", "--initial-branch", "main")
        self._git("clone", "--quiet", "--bare", ".", str(self.served / "gitty.git"))
        handler = functools.partial(_Quiet, directory=str(self.served))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.host = f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def origin(self) -> str:
        """Where the package is, as a requirement names it; a branch or a commit may follow as "@main"."""
        return f"git+http://{self.host}/gitty.git"

    def commit(self, says: str) -> str:
        """Commits a package whose module says that on the branch main, and returns the commit."""
        for name, data in gitty(says).items():
            (self.repository / name).write_bytes(data)
        self._git("add", ".")
        self._git("commit", "--quiet", "--message", says)
        self._git("push", "--quiet", "--force", str(self.served / "gitty.git"), "main")
        self._git("-C", str(self.served / "gitty.git"), "update-server-info")
        return self._git("rev-parse", "HEAD")

    def close(self) -> None:
        """Stops serving; a second call does nothing."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _git(self, *arguments: str) -> str:
        return git(self.repository, *arguments)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass
