"""Runs in a guest: executes commands for the lab outside. One TCP connection is one command.

Request, one line: {"argv": [...], "environment": {...}, "timeout": seconds}. Answer, one line: {"exit_code": n,
"stdout": base64, "stderr": base64}; exit code and output are of the command's own process group, which is killed
when its time is over (then "exit_code" is null).
"""

import base64
import contextlib
import json
import os
import signal
import socketserver
import subprocess
import sys
from typing import Any


class CommandHandler(socketserver.StreamRequestHandler):
    """Executes the command of one connection."""

    def handle(self) -> None:
        line = self.rfile.readline()
        if line:
            self.wfile.write(json.dumps(execute(json.loads(line))).encode() + b"\n")


class CommandServer(socketserver.ThreadingTCPServer):
    """Executes the commands of several connections at once."""

    allow_reuse_address = True
    daemon_threads = True


def execute(request: dict[str, Any]) -> dict[str, str | int | None]:
    try:
        process = subprocess.Popen(
            request["argv"],
            env={**os.environ, **request["environment"]},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        return answer(127, b"", str(error).encode())
    try:
        stdout, stderr = process.communicate(timeout=request["timeout"])
        return answer(process.returncode, stdout, stderr)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        return answer(None, stdout, stderr)


def answer(exit_code: int | None, stdout: bytes, stderr: bytes) -> dict[str, str | int | None]:
    return {
        "exit_code": exit_code,
        "stdout": base64.b64encode(stdout).decode(),
        "stderr": base64.b64encode(stderr).decode(),
    }


if __name__ == "__main__":
    with CommandServer((sys.argv[1], int(sys.argv[2])), CommandHandler) as server:
        server.serve_forever()
