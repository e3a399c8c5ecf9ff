"""One source of pipelines in the settings."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from fastflow_controlplane.sources.remote import (
    SSH_KEY_SECRET,
    TOKEN_SECRET,
    Address,
    Remote,
    check_folder,
    parse_address,
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_HOST_KEY = re.compile(r"\S+ (?:ssh-|ecdsa-|sk-)\S+ [A-Za-z0-9+/=]+(?: .*)?")

_CREDENTIALS = frozenset({"token", "password", "secret", "key", "ssh_key", "private_key", "user", "username"})
"""What people name a setting that they take a credential for."""


class SourceSettings(BaseModel):
    """A plain folder (`folder`) or a Git repository (`url`), never both.

    `branch` "" = the one the remote's HEAD names; `path` is the folder in the repository that holds the pipelines, "" =
    all of it; `known_hosts` are lines as in ssh's file of that name, needed for ssh.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    folder: Path | None = None
    url: str = ""
    branch: str = ""
    path: str = ""
    known_hosts: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _holds_no_credential(cls, values: Any) -> Any:
        if isinstance(values, dict) and (found := sorted(_CREDENTIALS & values.keys())):
            raise ValueError(
                f"{', '.join(found)}: a credential is no setting, as settings are shown: store it with "
                f"`ffctl secrets set {TOKEN_SECRET} --source NAME` (https) or `{SSH_KEY_SECRET}` (ssh)"
            )
        return values

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if _NAME.fullmatch(value) is None:
            raise ValueError("name has letters, digits, dots, dashes and underscores, at most 63")
        return value

    @field_validator("path")
    @classmethod
    def _is_within(cls, value: str) -> str:
        return check_folder(value)

    @field_validator("known_hosts")
    @classmethod
    def _are_host_keys(cls, value: Sequence[str]) -> Sequence[str]:
        if not all(_HOST_KEY.fullmatch(line.strip()) for line in value):
            raise ValueError('known_hosts holds lines like "host ssh-ed25519 AAAA…", as ssh-keyscan prints them')
        return value

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if (self.folder is None) == (not self.url):
            raise ValueError("a source has either folder or url; a folder inside the repository at url is its path")
        if self.folder is not None and (self.branch or self.path or self.known_hosts):
            raise ValueError("branch, path and known_hosts belong to a source with url")
        if self.url and self.address.transport == "ssh" and not self.known_hosts:
            raise ValueError(
                f"a source over ssh needs known_hosts, the pinned host key: see `{self.address.keyscan}`, and compare "
                "it with what the server's operator publishes"
            )
        return self

    @property
    def remote(self) -> Remote:
        """What is fetched of a source with `url`."""
        return Remote(self.name, self.address, self.branch, self.known_hosts)

    @property
    def address(self) -> Address:
        """The address in `url`. Raises ValueError, whose message does not repeat it."""
        return parse_address(self.url)
