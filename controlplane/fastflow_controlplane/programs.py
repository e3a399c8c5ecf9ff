"""What environment the programs get that the control plane starts: what they need, and nothing else.

The control plane's own holds its settings, among them a token and the way to the database, and whatever else was set
for it. Anybody who has such a program in hand could read what it was given.
"""

import os
from collections.abc import Sequence

EVERYBODY = (
    *("PATH", "LD_LIBRARY_PATH", "HOME", "TMPDIR"),
    *("LANG", "LANGUAGE", "LC_*", "TZ"),
    *("OPENSSL_CONF", "SSL_CERT_FILE", "SSL_CERT_DIR"),
)
"""Where programs, their libraries and files are, in which words and times they speak, and whom OpenSSL trusts."""


def environment_of(*names: str) -> dict[str, str]:
    """Returns the variables that are set here of EVERYBODY and `names`; "LC_*" names all that begin with LC_."""
    return {name: value for name, value in os.environ.items() if _is_one_of((*EVERYBODY, *names), name)}


def _is_one_of(names: Sequence[str], name: str) -> bool:
    return any(name == each or (each.endswith("*") and name.startswith(each[:-1])) for each in names)
