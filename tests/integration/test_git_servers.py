"""Fetching over the network: from real servers, with right and wrong credentials, and from none."""

import base64
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from fastflow_controlplane.sources.fetch_process import FetchFailed, FetchProcess, Workplace
from fastflow_controlplane.sources.remote import Credentials, Remote, parse_address

from tests.origins import Origin
from tests.origins.servers import (
    WANTS_PASSWORD,
    Answer,
    SshServer,
    answering,
    http_server,
    new_host_key,
    new_key,
    ssh_server,
)

TOKEN = "t0ken-that-nobody-may-see"


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    origin = Origin(tmp_path / "served" / "flows.git")
    origin.push({"a/main.py": "print('a')\n"})
    return origin


@contextlib.asynccontextmanager
async def fetching(
    tmp_path: Path, url: str, *, known_hosts: tuple[str, ...] = (), authority: Path | None = None, seconds: float = 60
) -> AsyncIterator[FetchProcess]:
    remote = Remote("main", parse_address(url), "", known_hosts)
    place = Workplace(tmp_path / "copy.git", tmp_path / "home", str(authority or ""))
    process = FetchProcess(remote, place, seconds)
    try:
        yield process
    finally:
        await process.close()


def test_served() -> None:
    """So that the file fails for the right reason where the tests' own need is not met."""
    import shutil

    assert shutil.which("git"), "these tests serve repositories with git: install it"


async def test_https_with_a_token(origin: Origin, tmp_path: Path) -> None:
    with http_server(origin.path.parent, TOKEN, certificate=tmp_path / "tls") as server:
        async with fetching(tmp_path, f"{server.url}/flows.git", authority=server.authority) as process:
            first = await process.fetch(Credentials(token=TOKEN))
            second = origin.push({"a/main.py": "print('b')\n"})
            assert await process.fetch(Credentials(token=TOKEN)) == second != first


async def test_a_certificate_of_an_unknown_authority_is_refused(origin: Origin, tmp_path: Path) -> None:
    with http_server(origin.path.parent, TOKEN, certificate=tmp_path / "tls") as server:
        async with fetching(tmp_path, f"{server.url}/flows.git") as process:
            with pytest.raises(FetchFailed, match=r"certificate of 127\.0\.0\.1 is not trusted: set ca_bundle"):
                await process.fetch(Credentials(token=TOKEN))
        assert server.requests == [], "no token was sent"


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "wants a token and there is none, .*ffctl secrets set TOKEN --source main"),
        ("wr0ng-token-value", "the server refused the token: store it with `ffctl secrets set TOKEN --source main`"),
    ],
)
async def test_a_wrong_token_is_told_and_never_shown(
    origin: Origin, tmp_path: Path, capfd: pytest.CaptureFixture[str], token: str, message: str
) -> None:
    with http_server(origin.path.parent, TOKEN) as server:
        async with fetching(tmp_path, f"{server.url}/flows.git") as process:
            good = await process.fetch(Credentials(token=TOKEN))
            with pytest.raises(FetchFailed, match=message) as caught:
                await process.fetch(Credentials(token=token))
            assert await process.fetch(Credentials(token=TOKEN)) == good, "the copy is as it was"
    shown = str(caught.value) + "".join(capfd.readouterr())
    assert TOKEN not in shown
    assert not token or token not in shown
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "served" not in path.parts)
    assert TOKEN.encode() not in kept


async def test_a_repository_that_is_not_on_the_server_is_told(origin: Origin, tmp_path: Path) -> None:
    with http_server(origin.path.parent, TOKEN) as server:
        async with fetching(tmp_path, f"{server.url}/other.git") as process:
            with pytest.raises(FetchFailed, match=r"404; check url, and whether it may be read"):
                await process.fetch(Credentials(token=TOKEN))


def wants_password(request: BaseHTTPRequestHandler, body: bytes) -> Answer:
    return WANTS_PASSWORD


async def test_a_token_does_not_follow_a_redirect_to_another_host(tmp_path: Path) -> None:
    with answering(wants_password) as other:
        elsewhere = other.url.replace("127.0.0.1", "localhost")

        def redirect(request: BaseHTTPRequestHandler, body: bytes) -> Answer:
            return 302, {"Location": elsewhere + request.path}, b""

        with answering(redirect) as server:
            async with fetching(tmp_path, f"{server.url}/flows.git") as process:
                with pytest.raises(FetchFailed, match="sent only to the host of url, and the server asks for it at"):
                    await process.fetch(Credentials(token=TOKEN))
    assert other.requests, "the redirect was followed"
    assert server.authorizations == other.authorizations == []


async def test_a_token_is_not_sent_in_the_clear(tmp_path: Path) -> None:
    with answering(wants_password) as server:
        # An address of this machine, but none of those that are known to lead nowhere else.
        url = server.url.replace("127.0.0.1", "0.0.0.0")
        async with fetching(tmp_path, f"{url}/flows.git") as process:
            with pytest.raises(FetchFailed, match="the token is sent only encrypted: use https in url"):
                await process.fetch(Credentials(token=TOKEN))
    assert server.requests
    assert server.authorizations == []


@pytest.mark.parametrize("times", [1, 100], ids=["once", "to beyond what is told"])
async def test_a_server_that_repeats_the_token_makes_nobody_see_it(tmp_path: Path, times: int) -> None:
    def repeat(request: BaseHTTPRequestHandler, body: bytes) -> Answer:
        if "Authorization" not in request.headers:
            return WANTS_PASSWORD
        sent = base64.b64decode(request.headers["Authorization"].removeprefix("Basic ")).decode()
        lines = ("# service=git-upload-pack\n", "", f"ERR no entry for {' '.join([sent] * times)}")
        packed = "".join(f"{len(line) + 4:04x}{line}" if line else "0000" for line in lines)
        return 200, {"Content-Type": "application/x-git-upload-pack-advertisement"}, packed.encode()

    with answering(repeat) as server:
        async with fetching(tmp_path, f"{server.url}/flows.git") as process:
            with pytest.raises(FetchFailed, match=r"no entry for git:\*\*\*") as caught:
                await process.fetch(Credentials(token=TOKEN))
    assert TOKEN[:4] not in str(caught.value)


@pytest.mark.parametrize("variable", ["HOME", "XDG_CONFIG_HOME"])
async def test_the_git_settings_of_a_user_change_nothing(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    other = Origin(tmp_path / "other.git")
    other.push({"evil/main.py": ""})
    config = tmp_path / "user" / (".gitconfig" if variable == "HOME" else "git/config")
    config.parent.mkdir(parents=True)
    config.write_text(f'[url "{other.url}"]\n\tinsteadOf = {origin.url}\n')
    monkeypatch.setenv(variable, str(tmp_path / "user"))
    async with fetching(tmp_path, origin.url) as process:
        assert await process.fetch(Credentials()) == str(origin.repository.references["refs/heads/main"].target)


async def test_a_ca_bundle_that_is_gone_is_told(origin: Origin, tmp_path: Path) -> None:
    gone = tmp_path / "gone.pem"
    async with fetching(tmp_path, origin.url, authority=gone) as process:
        for _ in range(2):
            with pytest.raises(FetchFailed, match=rf"the file {gone}, which ca_bundle names, can not be used"):
                await process.fetch(Credentials())


async def test_a_full_disk_is_told(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "home" / ".ssh").mkdir(parents=True)
    (tmp_path / "home" / ".ssh" / "known_hosts").symlink_to("/dev/full")
    async with fetching(tmp_path, origin.url, known_hosts=(new_host_key(22),)) as process:
        with pytest.raises(FetchFailed, match="is full: nothing was fetched until there is room"):
            await process.fetch(Credentials())


@pytest.fixture
def server() -> Iterator[SshServer]:
    with ssh_server() as server:
        yield server


def ssh_url(server: SshServer, origin: Origin) -> str:
    return f"ssh://git@127.0.0.1:{server.port}{origin.path}"


async def test_ssh_with_a_key_and_a_pinned_host_key(origin: Origin, tmp_path: Path, server: SshServer) -> None:
    async with fetching(tmp_path, ssh_url(server, origin), known_hosts=(server.host_key,)) as process:
        await process.fetch(Credentials(ssh_key=server.key))
        second = origin.push({"a/main.py": "2"})
        assert await process.fetch(Credentials(ssh_key=server.key)) == second


async def test_another_host_key_than_the_pinned_one_is_refused(
    origin: Origin, tmp_path: Path, server: SshServer
) -> None:
    for known in ((new_host_key(server.port),), ()):
        async with fetching(tmp_path, ssh_url(server, origin), known_hosts=known) as process:
            command = f"`ssh-keyscan -p {server.port} 127.0.0.1`"
            with pytest.raises(FetchFailed, match=f"is none of the pinned ones: set `known_hosts` .* {command} prints"):
                await process.fetch(Credentials(ssh_key=server.key))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", "wants a key and there is none: store it with `ffctl secrets set SSH_KEY --source main`"),
        ("hello", "is no private key without passphrase: make one with `ssh-keygen -t ed25519"),
        (new_key(), "the server refused the key"),
        # The libssh2 of pygit2 1.21 corrupts its memory when it signs with RSA for this server, not for OpenSSH: that
        # ends the process that fetches, and nothing else.
        (new_key("ssh-rsa"), r"was cut off: its process was ended by SIG.* take an ed25519 one|refused the key"),
    ],
    ids=["none", "garbage", "stranger", "rsa"],
)
async def test_a_wrong_key_is_told(origin: Origin, tmp_path: Path, server: SshServer, key: str, message: str) -> None:
    async with fetching(tmp_path, ssh_url(server, origin), known_hosts=(server.host_key,)) as process:
        with pytest.raises(FetchFailed, match=message):
            await process.fetch(Credentials(ssh_key=key))
        assert await process.fetch(Credentials(ssh_key=server.key))


async def test_a_repository_that_is_not_there_over_ssh_is_told(tmp_path: Path, server: SshServer) -> None:
    url = f"ssh://git@127.0.0.1:{server.port}/no/such.git"
    async with fetching(tmp_path, url, known_hosts=(server.host_key,)) as process:
        with pytest.raises(FetchFailed, match="check url, and whether it may be read"):
            await process.fetch(Credentials(ssh_key=server.key))


@pytest.mark.parametrize("scheme", ["http", "ssh"])
async def test_an_unreachable_remote_is_told_at_once(tmp_path: Path, scheme: str) -> None:
    async with fetching(tmp_path, f"{scheme}://127.0.0.1:1/x.git") as process:
        with pytest.raises(FetchFailed, match="Connection refused; see to the network, or check url"):
            await process.fetch(Credentials())


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that is connected to and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize("scheme", ["http", "ssh"])
async def test_a_remote_that_never_answers_is_given_up(tmp_path: Path, silent: int, scheme: str) -> None:
    async with fetching(tmp_path, f"{scheme}://127.0.0.1:{silent}/x.git", seconds=1.0) as process:
        started = time.monotonic()
        with pytest.raises(FetchFailed, match="took longer than 1 s and was ended"):
            await process.fetch(Credentials())
        assert time.monotonic() - started < 60
