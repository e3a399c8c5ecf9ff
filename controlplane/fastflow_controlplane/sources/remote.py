"""Where a Git source's commits come from: addresses that are safe to show, and what is needed to get in."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from fastflow.addresses import is_loopback

TOKEN_SECRET = "TOKEN"
"""Name of the secret that a source over https sends."""

SSH_KEY_SECRET = "SSH_KEY"
"""Name of the secret that holds the private key of a source over ssh, as ssh-keygen writes it."""

SOURCE_SECRETS = (TOKEN_SECRET, SSH_KEY_SECRET)
"""Names of all secrets that a source can have."""

_SCP_LIKE = re.compile(r"(?:(?P<user>[^@/:\s]+)@)?(?P<host>\[[0-9a-fA-F:]+\]|[^@/:\s]+):(?P<path>[^/].*|/.*)")

_USER_INFO = re.compile(r"@[^/]*:")
"""What follows the user in an address: in the path of one like host:path it was meant as user:password@host:path."""

_HOLDS_CREDENTIAL = (
    "url must hold no user name, password or token, as it is shown: write it without, like https://host/path, and "
    f"store the token with `ffctl secrets set {TOKEN_SECRET} --source NAME`"
)


@dataclass(frozen=True)
class Address:
    """`url` as libgit2 takes it and as it is shown; `transport` is "https", "http", "ssh" or "file"."""

    url: str
    transport: str
    host: str
    user: str

    @property
    def keyscan(self) -> str:
        """The command that prints the host keys of an SSH server."""
        port = urlsplit(self.url).port if "://" in self.url else None
        return f"ssh-keyscan -p {port} {self.host}" if port else f"ssh-keyscan {self.host}"


@dataclass(frozen=True)
class Credentials:
    """What a source may send to get in; "" = it has none."""

    token: str = field(default="", repr=False)
    ssh_key: str = field(default="", repr=False)

    def hidden(self, text: str) -> str:
        """Returns `text` without them, should a server or a library repeat one."""
        for value in filter(None, (self.token, self.ssh_key)):
            text = text.replace(value, "***")
        return text


def credentials_of(secrets: Mapping[str, str]) -> Credentials:
    """Returns what the secrets of a source, by name, are for."""
    return Credentials(
        token=secrets.get(TOKEN_SECRET, "").strip(),
        ssh_key=secrets.get(SSH_KEY_SECRET, ""),
    )


@dataclass(frozen=True)
class Remote:
    """What a Git source follows: `branch` "" = the one the remote's HEAD names; host keys as in ssh's known_hosts."""

    source: str
    address: Address
    branch: str = ""
    known_hosts: tuple[str, ...] = ()


def parse_address(url: str) -> Address:
    """Reads the address of a repository. Raises ValueError with the remedy; no message ever repeats the address.

    Credentials in it are refused: an address is shown, logged and stored.
    """
    if any(character.isspace() or ord(character) < 32 for character in url) or not url:
        raise ValueError("url is empty or holds blanks")
    if url.startswith("/"):
        return Address(url, "file", "", "")
    if "://" not in url:
        return _scp_like(url)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("url is no address; write it like https://host/path.git") from None
    if parts.query or parts.fragment:
        raise ValueError("url must end with its path: what follows ? or # might be a credential, and it is shown")
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise ValueError("url names a file of this machine: write it without a host, like file:///path")
        return Address(url, "file", "", "")
    if not host:
        raise ValueError("url names no host")
    if parts.scheme in ("http", "https"):
        if parts.username is not None or parts.password is not None:
            raise ValueError(_HOLDS_CREDENTIAL)
        return Address(url, parts.scheme, host, "")
    if parts.scheme == "ssh":
        if parts.password is not None:
            raise ValueError(
                "url must hold no password, as it is shown: write ssh://user@host/path, and store a key with "
                f"`ffctl secrets set {SSH_KEY_SECRET} --source NAME`"
            )
        return Address(url, "ssh", host, parts.username or "git")
    raise ValueError("url must begin with https://, ssh://, http://, file:// or /, or be like git@host:path")


def may_carry_token(address: Address) -> bool:
    """Tells whether a token can be sent: only encrypted, or to this machine itself."""
    return address.transport == "https" or (address.transport == "http" and is_loopback(address.host))


def check_folder(folder: str) -> str:
    """Returns a path within a repository in its one form, "" = all of it. Raises ValueError."""
    parts = PurePosixPath(folder.strip("/")).parts
    if ".." in parts or "\0" in folder:
        raise ValueError('path must stay in the repository: write it without ".."')
    return "/".join(parts)


def _scp_like(url: str) -> Address:
    match = _SCP_LIKE.fullmatch(url)
    if match is None:
        raise ValueError("url is no address; write https://host/path, ssh://user@host/path, git@host:path or /path")
    if _USER_INFO.search(match["path"]) or (match["user"] is None and "@" in match["path"]):
        raise ValueError(_HOLDS_CREDENTIAL)
    return Address(url, "ssh", match["host"].strip("[]"), match["user"] or "git")
