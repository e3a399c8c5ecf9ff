"""The process that fetches for one source: started when it is needed, ended when it takes too long."""

import asyncio
import contextlib
import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from fastflow_controlplane.programs import environment_of
from fastflow_controlplane.sources.remote import Credentials, Remote

log = structlog.get_logger(__name__)

MAX_ANSWER_BYTES = 1024 * 1024
"""Longest answer of the process: a commit's id, or an error with what the server said."""

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")

_ENVIRONMENT = (
    "PYTHON*",
    *_PROXIES,
    *(name.upper() for name in _PROXIES),
)
"""What the process takes of the environment: how to find its code, and how to get to a server."""


class FetchFailed(Exception):
    """Nothing was fetched; the message says what is wrong and what to do, and holds no credential."""


@dataclass(frozen=True)
class Workplace:
    """Where a source is fetched to: the bare repository `copy`, and a `home` for libgit2.

    `ca_bundle` is a file of trusted authorities, "" = the system's.
    """

    copy: Path
    home: Path
    ca_bundle: str = ""


class FetchProcess:
    """Fetches from one remote, one fetch at a time. `seconds` bounds a whole fetch.

    The process stays between fetches, for its start takes longer than a fetch that brings little. As it speaks to
    others' servers, it gets none of the control plane's settings and secrets.
    """

    def __init__(self, remote: Remote, workplace: Workplace, seconds: float) -> None:
        self._remote = remote
        self._workplace = workplace
        self._seconds = seconds
        self._process: asyncio.subprocess.Process | None = None

    async def fetch(self, credentials: Credentials) -> str:
        """Fetches, and returns the commit of the branch to follow. Raises FetchFailed.

        Cancelled, it ends the process.
        """
        try:
            async with asyncio.timeout(self._seconds):
                answer = await self._ask(self._request(credentials))
        except TimeoutError:
            await self.close()
            raise FetchFailed(
                f"the fetch took longer than {self._seconds:g} s and was ended: see to the network, or raise "
                "sync_timeout"
            ) from None
        except BaseException:
            await self.close()
            raise
        if "fault" in answer:
            # After a fault of native code its memory may not be what it should be.
            await self.close()
            raise FetchFailed(str(answer["fault"]))
        return str(answer["commit"])

    async def close(self) -> None:
        """Ends the process at once; the next fetch starts another."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _ask(self, request: bytes) -> dict[str, Any]:
        process = await self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(ConnectionError):
            process.stdin.write(request)
            await process.stdin.drain()
        line = await process.stdout.readline()
        if not line.endswith(b"\n"):
            raise FetchFailed(self._cut_off(await process.wait()))
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "fastflow_controlplane.sources.fetching",
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    limit=MAX_ANSWER_BYTES,
                    # Ctrl-C in a terminal is for the control plane, which ends this process in its own time.
                    start_new_session=True,
                    env=environment_of(*_ENVIRONMENT),
                )
            except OSError as fault:
                raise FetchFailed(
                    f"the process that fetches can not be started: {fault.strerror}; see to this machine's memory, "
                    "processes and open files"
                ) from None
        return self._process

    def _cut_off(self, code: int) -> str:
        ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        told = f"the fetch was cut off: its process {ended}; it is tried again"
        if code < 0 and self._remote.address.transport == "ssh":
            return f"{told}. If it stays so with an RSA key, take an ed25519 one"
        return told if code < 0 else f"{told}. The control plane's log tells more"

    def _request(self, credentials: Credentials) -> bytes:
        # Through a pipe: arguments and the environment of a process can be read by others.
        remote, place = self._remote, self._workplace
        request = {
            "source": remote.source,
            "url": remote.address.url,
            "branch": remote.branch,
            "known_hosts": remote.known_hosts,
            "path": str(place.copy),
            "home": str(place.home),
            "ca_bundle": place.ca_bundle,
            "token": credentials.token,
            "ssh_key": credentials.ssh_key,
        }
        return json.dumps(request).encode() + b"\n"
