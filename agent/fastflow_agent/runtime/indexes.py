"""The package indexes of this host, and the logins for them, which only preparers get to see.

A run finds what was prepared for it in the uv cache, by the indexes' addresses alone (uv 0.13: neither the names of
indexes nor logins given apart from the address are part of what it looks by; a login in the address is).
"""

from __future__ import annotations

import netrc
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from fastflow_agent.runtime.base import Egress, RuntimeFault

_SCHEMES = ("http", "https", "file")


@dataclass(frozen=True)
class Index:
    """One package index. `url` holds no login."""

    url: str
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @classmethod
    def parse(cls, text: str) -> Index:
        """Reads an address that may hold a login. Raises ValueError, whose message does not repeat it."""
        try:
            parts = urlsplit(text)
            valid = parts.scheme in _SCHEMES and (parts.hostname or parts.scheme == "file") and parts.port != 0
        except ValueError:
            valid = False
        if not valid or any(character.isspace() for character in text):
            raise ValueError("an index is an address such as https://index.example/simple")
        login = unquote(parts.username or ""), unquote(parts.password or "")
        return cls(_without_login(parts), *login)


@dataclass(frozen=True)
class Indexes:
    """All indexes of this host: `extra` are asked first, in this order, then `default` (None: uv's own)."""

    default: Index | None
    extra: tuple[Index, ...] = ()

    @classmethod
    def of(cls, egress: Egress) -> Indexes:
        """Reads them from the settings; logins of `index_netrc` are not in it yet. Raises ValueError."""
        default = Index.parse(egress.index_url) if egress.index_url else None
        return cls(default, tuple(Index.parse(url) for url in egress.extra_index_urls))

    def with_logins(self, file: Path | None) -> Indexes:
        """Adds the logins of a netrc file to those indexes that have none. Raises RuntimeFault. Blocks."""
        if file is None:
            return self
        try:
            logins = netrc.netrc(str(file))
        except netrc.NetrcParseError as error:
            # Its text may repeat a password.
            raise RuntimeFault(f"{file}, line {error.lineno}, is no netrc; fix it, or index_netrc.") from None
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise RuntimeFault(f"{file} with the logins for package indexes can not be read: {reason}.") from None
        default = self.default and _log_in(self.default, logins)
        return Indexes(default, tuple(_log_in(each, logins) for each in self.extra))

    @property
    def names(self) -> str:
        """What the uv cache knows them by: another index makes other environments, another login does not."""
        return " ".join([self.default.url if self.default else "", *(each.url for each in self.extra)])

    def environment(self) -> dict[str, str]:
        """The variables by which uv finds the indexes, without logins."""
        return self._variables(named=False)

    def environment_with_logins(self) -> dict[str, str]:
        """The same, with logins."""
        values = self._variables(named=True)
        for number, index in self._numbered():
            values[f"UV_INDEX_FASTFLOW{number}_USERNAME"] = index.username
            values[f"UV_INDEX_FASTFLOW{number}_PASSWORD"] = index.password
        return {name: value for name, value in values.items() if value}

    @property
    def secrets(self) -> list[bytes]:
        """What must not be shown. A token may stand in the place of the user's name, without a password."""
        return [(index.password or index.username).encode() for _, index in self._numbered()]

    def _variables(self, *, named: bool) -> dict[str, str]:
        urls = {number: f"fastflow{number}={index.url}" if named else index.url for number, index in self._numbered()}
        values = {"UV_INDEX": " ".join(url for number, url in urls.items() if number)}
        if self.default:
            values["UV_DEFAULT_INDEX"] = urls[0]
        return {name: value for name, value in values.items() if value}

    def _numbered(self) -> Iterable[tuple[int, Index]]:
        return [*([(0, self.default)] if self.default else []), *enumerate(self.extra, 1)]


def _without_login(parts: SplitResult) -> str:
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _log_in(index: Index, logins: netrc.netrc) -> Index:
    found = logins.authenticators(urlsplit(index.url).hostname or "")
    if found is None or index.username or index.password:
        return index
    return replace(index, username=found[0], password=found[2] or "")
