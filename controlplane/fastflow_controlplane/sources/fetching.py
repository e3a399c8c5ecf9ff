"""Fetches from a remote repository into its copy here: `python -m fastflow_controlplane.sources.fetching`.

A process of its own, started by `fetch_process`: what libgit2 waits for can be ended only with the process, and a fault
in its native code ends that process alone. One JSON object per line comes in and goes out; the end of input is the end
of the process, also in the middle of a fetch. It never moves `mirror.IN_USE`, so any end leaves the last good state.
"""

import contextlib
import functools
import json
import os
import queue
import re
import resource
import shutil
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pygit2
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from pygit2.enums import CredentialType

from fastflow_controlplane.disk import full_message, says_full
from fastflow_controlplane.sources.mirror import BRANCHES, BRANCHES_NAMED, TAGS, Mirror, Upstream
from fastflow_controlplane.sources.packs import adopt_packs, join_packs, remove_cut_off, sync_packs
from fastflow_controlplane.sources.remote import (
    SSH_KEY_SECRET,
    TOKEN_SECRET,
    Credentials,
    Remote,
    may_carry_token,
    parse_address,
)
from fastflow_controlplane.sources.repository import DamagedRepository, StorageFault

CONNECT_SECONDS = 10
"""How long a connection to a Git server may take: longer than a lost packet or two, shorter than anybody waits."""

SILENT_SECONDS = 30
"""How long a connected Git server may be silent; it sends keep-alives while it prepares a pack."""

MAX_TOLD = 500
"""Characters of what a server says that are repeated."""

_REFSPECS = (f"+refs/heads/*:{BRANCHES}*", f"+refs/tags/*:{TAGS}*")
_ANEW = "anew.git"
"""Folder beside a damaged copy that all is fetched into."""

_REFERENCE = re.compile(rb"(?:[0-9a-f]{40}|ref: refs/\S+)\n?")


class FetchFault(Exception):
    """Nothing was fetched; the message says what is wrong and what to do, and holds no credential."""


def main() -> None:
    """Serves fetches until the input ends."""
    # It would hold the credentials.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    try:
        while True:
            answer = json.dumps(_serve(json.loads(requests.get())))
            os.write(sys.stdout.fileno(), answer.encode() + b"\n")
    except BaseException:  # noqa: BLE001 - told, and then the process ends
        traceback.print_exc()
    finally:
        # The interpreter's own end would collide with the thread that listens, and abort.
        os._exit(1)


def _listen(requests: "queue.SimpleQueue[bytes]") -> None:
    for line in sys.stdin.buffer:
        requests.put(line)
    # Whoever asked is gone, or wants this to end.
    os._exit(0)


def _serve(request: Mapping[str, Any]) -> dict[str, str]:
    address = parse_address(request["url"])
    remote = Remote(request["source"], address, request["branch"], tuple(request["known_hosts"]))
    credentials = Credentials(request["token"], request["ssh_key"])
    copy = Path(request["path"])
    try:
        with _explained(copy, remote, credentials):
            configure(Path(request["home"]), remote.known_hosts, request["ca_bundle"])
            return {"commit": fetch(copy, remote, credentials)}
    except FetchFault as fault:
        return {"fault": str(fault)}


@functools.cache
def configure(home: Path, known_hosts: tuple[str, ...], ca_bundle: str) -> None:
    """Sets what libgit2 holds once per process.

    `home` becomes its home folder, where it looks for host keys of SSH servers: they are checked against `known_hosts`
    alone; certificates against the file `ca_bundle`, "" = the system's. Raises FetchFault where that can not be read.
    """
    ssh = home / ".ssh"
    ssh.mkdir(mode=0o700, parents=True, exist_ok=True)
    (ssh / "known_hosts").write_text("".join(f"{line.strip()}\n" for line in known_hosts))
    pygit2.settings.homedir = str(home)
    pygit2.settings.server_connect_timeout = CONNECT_SECONDS * 1000
    pygit2.settings.server_timeout = SILENT_SECONDS * 1000
    if ca_bundle:
        try:
            pygit2.settings.set_ssl_cert_locations(ca_bundle, None)
        except pygit2.GitError as fault:
            raise FetchFault(f"the file {ca_bundle}, which ca_bundle names, can not be used: {fault}") from None


def fetch(path: Path, remote: Remote, credentials: Credentials) -> str:
    """Brings all branches and tags of a remote into the copy at `path`; returns the commit of the branch to follow.

    All that was fetched is on disk then. Raises FetchFault, and what libgit2 and the disk do; what the copy had stays.
    """
    with contextlib.closing(Mirror(path)) as mirror:
        _remove_leftovers(path)
        if not mirror.is_damaged:
            # What is damaged and not in use nobody else may have met so far.
            with contextlib.suppress(DamagedRepository):
                return _fetch(mirror, remote, credentials)
        _make_whole(mirror, remote, credentials)
        return _fetch(mirror, remote, credentials)


def _make_whole(damaged: Mirror, remote: Remote, credentials: Credentials) -> None:
    """Adds all objects of a remote to a damaged copy, whose other objects, which were pushed over, stay."""
    anew = damaged.path.with_name(_ANEW)
    shutil.rmtree(anew, ignore_errors=True)
    try:
        with contextlib.closing(Mirror(anew)) as fresh:
            # Into a copy of its own, for a server leaves out what belongs to a commit that is here.
            _fetch(fresh, remote, credentials)
        adopt_packs(_packs(damaged), _packs(fresh))
    finally:
        shutil.rmtree(anew, ignore_errors=True)
    damaged.see_fetched()
    damaged.mark_whole()


def _packs(mirror: Mirror) -> Path:
    return mirror.path / "objects" / "pack"


def _fetch(mirror: Mirror, remote: Remote, credentials: Credentials) -> str:
    callbacks = _Callbacks(remote, credentials)
    origin = mirror.repository.remotes.create_anonymous(remote.address.url)
    heads = origin.list_heads(callbacks=callbacks, proxy=True)
    there = {head.name: str(head.oid) for head in heads if head.name}
    branch = remote.branch or next((head.symref_target for head in heads if head.name == "HEAD"), None) or ""
    branch = branch.removeprefix("refs/heads/")
    wanted = there.get(f"refs/heads/{branch}")
    if wanted is None:
        raise FetchFault(_no_branch(branch, there))
    mirror.follow(Upstream(remote.address.url, remote.branch))
    here, there = mirror.held_references(), _as_here(there)
    gone = here.keys() - there.keys()
    moved = {name: target for name, target in there.items() if here.get(name) != target}
    if gone or not all(map(mirror.is_no_commit, moved.values())) or pygit2.Oid(hex=wanted) not in mirror.repository:
        # Before the fetch, for a branch "a" stands in the way of a branch "a/b".
        mirror.forget(gone)
        # What is no commit no run can have, and libgit2 does not fetch again into a copy that names it.
        mirror.forget(name for name, target in here.items() if mirror.is_no_commit(target))
        origin.fetch(list(_REFSPECS), callbacks=callbacks, proxy=True)
        mirror.forget(name for name, target in there.items() if mirror.is_no_commit(target))
        join_packs(mirror.repository, _packs(mirror))
    sync_packs(_packs(mirror))
    return wanted


def _as_here(there: Mapping[str, str]) -> dict[str, str]:
    here = {}
    for name, commit in there.items():
        if name.startswith("refs/heads/"):
            here[BRANCHES + name.removeprefix("refs/heads/")] = commit
        elif name.startswith(TAGS) and not name.endswith("^{}"):
            here[name] = commit
    return here


def _no_branch(branch: str, there: Mapping[str, str]) -> str:
    names = sorted(name.removeprefix("refs/heads/") for name in there if name.startswith("refs/heads/"))
    if not names:
        return "the repository is empty: push a first commit" + (f' to the branch "{branch}"' if branch else "")
    more = f" and {len(names) - BRANCHES_NAMED} more" if len(names) > BRANCHES_NAMED else ""
    listed = ", ".join(names[:BRANCHES_NAMED]) + more
    if not branch:
        return f"the repository names no default branch: set `branch` of the source to one of: {listed}"
    return f'there is no branch "{branch}" in the repository; there are: {listed}. Push it, or set `branch`'


class _Callbacks(pygit2.RemoteCallbacks):
    """Answers what libgit2 asks during a fetch. A credential is given once: one that was refused is refused again."""

    def __init__(self, remote: Remote, credentials: Credentials) -> None:
        super().__init__()
        self._remote = remote
        self._secrets = credentials
        self._offered = False

    def credentials(self, url: str, username_from_url: str | None, allowed_types: CredentialType) -> Any:
        """Gives the token or the key, to the configured host alone."""
        address, secrets = self._remote.address, self._secrets
        if CredentialType.USERNAME in allowed_types:
            return pygit2.Username(address.user)
        if address.transport == "ssh":
            if not secrets.ssh_key:
                raise FetchFault(f"the server wants a key and there is none: {self._store(SSH_KEY_SECRET)}")
            self._offer("key", SSH_KEY_SECRET)
            return _keypair(address.user, secrets.ssh_key)
        if not secrets.token:
            raise FetchFault(
                "the server wants a token and there is none, or there is no such repository: check url, or "
                + self._store(TOKEN_SECRET)
            )
        asked = parse_address(url)
        if asked.host != address.host:
            raise FetchFault(
                f"the token is sent only to the host of url, and the server asks for it at {asked.url}: if that is "
                "right, use it as url"
            )
        if not may_carry_token(asked):
            raise FetchFault("the token is sent only encrypted: use https in url")
        self._offer("token", TOKEN_SECRET)
        return pygit2.UserPass("git", secrets.token)

    def certificate_check(self, certificate: None, valid: bool, host: bytes) -> bool:
        """Accepts what libgit2 found valid: a pinned host key, a certificate of a known authority."""
        if valid:
            return True
        name = host.decode(errors="replace")
        if self._remote.address.transport == "ssh":
            raise FetchFault(
                f"the host key of {name} is none of the pinned ones: set `known_hosts` of the source to what "
                f"`{self._remote.address.keyscan}` prints, once you have compared it with what the server's operator "
                "publishes"
            )
        raise FetchFault(
            f"the certificate of {name} is not trusted: set ca_bundle of the control plane to its authority's file"
        )

    def _offer(self, what: str, secret: str) -> None:
        if self._offered:
            raise FetchFault(f"the server refused the {what}: {self._store(secret)}, one that may read the repository")
        self._offered = True

    def _store(self, secret: str) -> str:
        return f"store it with `ffctl secrets set {secret} --source {self._remote.source}`"


def _keypair(user: str, text: str) -> pygit2.Keypair:
    """Reads a private key. libssh2 gets both halves, as it can not find the public one in every format."""
    try:
        load = serialization.load_ssh_private_key if "OPENSSH" in text else serialization.load_pem_private_key
        key = load(text.encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise FetchFault(
            f"the secret {SSH_KEY_SECRET} is no private key without passphrase: make one with "
            "`ssh-keygen -t ed25519 -N ''`, and store the file without .pub"
        ) from None
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    return pygit2.KeypairFromMemory(user, public.decode(), private.decode(), "")


@contextlib.contextmanager
def _explained(path: Path, remote: Remote, credentials: Credentials) -> Iterator[None]:
    """Turns libgit2's faults into sentences without credentials."""
    try:
        yield
    except FetchFault as fault:
        raise FetchFault(credentials.hidden(str(fault))) from None
    except (pygit2.GitError, DamagedRepository, StorageFault, OSError, ValueError, KeyError) as fault:
        # Hidden first: in what is cut or joined a credential can no longer be found.
        said = credentials.hidden(str(fault))
        sentence = full_message(path, "nothing was fetched") if says_full(said) else _sentence(remote, said)
        raise FetchFault(sentence) from None


_REMEDIES = (
    (r"failed to (connect|resolve)|timed out|timeout|network|connection", "see to the network, or check url"),
    (r"could not find repository|No such file", "there is no repository at url"),
    (
        r"not appear to be a git repository|could not read refs|status code: 40[34]|not found",
        "check url, and whether it may be read",
    ),
    (r"could not read data", "the server ended the connection: check url, and whether it may be read, or try again"),
    (r"authenticat", "check the credential and whether it may read the repository"),
    (r"certificate|SSL|TLS", "check the server's certificate, and ca_bundle of the control plane"),
)


_NOTHING_THERE = "unsupported URL protocol"
"""What libgit2 says of a path at which nothing is: no word of it helps."""


def _sentence(remote: Remote, fault: str) -> str:
    if _NOTHING_THERE in fault:
        fault = "there is no repository at url; check the path, and whether the control plane may read it"
    advice = next((advice for pattern, advice in _REMEDIES if re.search(pattern, fault, re.IGNORECASE)), "")
    told = f"{remote.address.url} can not be fetched: {' '.join(fault.split())[:MAX_TOLD]}"
    return f"{told}; {advice}" if advice else told


def _remove_leftovers(path: Path) -> None:
    """Removes what is left of a fetch, or of the step to a commit in use, that ended with its process or the power."""
    remove_cut_off(path / "objects" / "pack")
    references = [file for file in (path / "refs").rglob("*") if file.is_file()]
    for file in (*path.glob("*.lock"), *references):
        if file.suffix == ".lock" or not _REFERENCE.fullmatch(file.read_bytes()):
            file.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
