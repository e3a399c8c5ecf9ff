"""Encryption at rest: AES-256-GCM with keys from a file that only its owner may read.

A sealed value is a format byte, the id of its key, a random nonce (12 bytes) and the ciphertext with its tag. The
context it was sealed for (which secret, which version) is authenticated with it, so no sealed value can be put in the
place of another.
"""

import base64
import binascii
import contextlib
import hashlib
import hmac
import os
import secrets as randomness
import stat
import tempfile
from pathlib import Path

import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from fastflow.durable import sync_folder

from fastflow_controlplane.errors import DataLoss, FailedPrecondition

log = structlog.get_logger(__name__)

KEY_BYTES = 32
NONCE_BYTES = 12
"""Random nonces of this length are safe for 2^32 values per key (NIST SP 800-38D, section 8.3)."""

NOT_READABLE = "SECRET_NOT_READABLE"
"""Reason of the error where a value can not be opened."""

FORMAT = 1
_HEADER = (
    "# Fast-Flow seals secrets with the first key and opens them with any. Keep this file as secret as they are.\n"
)


class Sealer:
    """Seals with the first of `keys` and opens with any of them, so that a new key can be put before the old ones."""

    def __init__(self, keys: list[bytes], path: Path) -> None:
        self._path = path
        self._keys = {_key_id(key): AESGCM(key) for key in keys}
        self._newest = _key_id(keys[0])
        self._fingerprint_key = hmac.digest(keys[0], b"fastflow fingerprints", "sha256")

    @classmethod
    def load(cls, path: Path) -> "Sealer":
        """Reads the key file `path`, and makes it with a new key where there is none. Blocks; call it at start.

        Safe where two processes start at once: both use the key of the one that was first. Raises FailedPrecondition
        for a file that holds something else or can not be read.
        """
        if not path.exists():
            _create(path)
        try:
            _warn_if_readable(path)
            keys = _parse(path.read_text(encoding="ascii"))
        except (OSError, ValueError) as fault:
            raise FailedPrecondition(
                f"the key file {path} can not be used: {fault}; put back the one that belongs to this data folder",
                reason="KEY_FILE",
            ) from None
        return cls(keys, path)

    def seal(self, data: bytes, context: bytes = b"") -> bytes:
        """Encrypts `data` for `context`, which must be given again to open it."""
        nonce = randomness.token_bytes(NONCE_BYTES)
        head = bytes([FORMAT, self._newest])
        return head + nonce + self._keys[self._newest].encrypt(nonce, data, head + context)

    def open(self, sealed: bytes, context: bytes = b"") -> bytes:
        """Decrypts what `seal` returned for the same `context`; raises DataLoss."""
        head, nonce, ciphertext = sealed[:2], sealed[2 : 2 + NONCE_BYTES], sealed[2 + NONCE_BYTES :]
        if len(head) < 2 or head[0] != FORMAT:
            raise self._fault("not in a format that this version can open")
        key = self._keys.get(head[1])
        if key is None:
            raise self._fault("sealed with a key that is not in the key file")
        try:
            return key.decrypt(nonce, ciphertext, head + context)
        except (InvalidTag, ValueError):
            raise self._fault("damaged, or sealed with another key") from None

    def fingerprint(self, data: bytes) -> str:
        """Returns 64 hexadecimal digits that are equal for equal `data` and, without the key, tell nothing about it."""
        return hmac.new(self._fingerprint_key, data, hashlib.sha256).hexdigest()

    def _fault(self, what: str) -> DataLoss:
        return DataLoss(
            f"{what}; the key file is {self._path}: database and key file belong together, restore both from the "
            "same backup",
            reason=NOT_READABLE,
        )

    def __repr__(self) -> str:
        return f"Sealer({str(self._path)!r})"


def _key_id(key: bytes) -> int:
    """One byte that tells keys apart: most wrong keys are known as such before they fail."""
    return hashlib.sha256(b"fastflow key id" + key).digest()[0]


def _parse(text: str) -> list[bytes]:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    try:
        keys = [base64.b64decode(line, validate=True) for line in lines]
    except binascii.Error:
        raise ValueError("it holds something else than base64") from None
    if not keys:
        raise ValueError("it holds no key")
    if any(len(key) != KEY_BYTES for key in keys):
        raise ValueError(f"it holds a key that does not have {KEY_BYTES} bytes")
    if len({_key_id(key) for key in keys}) < len(keys):
        raise ValueError("it holds two keys of one id: make another new key")
    return keys


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # mkstemp makes it readable for its owner alone, from the first moment.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(_HEADER + base64.b64encode(randomness.token_bytes(KEY_BYTES)).decode() + "\n")
            file.flush()
            os.fsync(file.fileno())
        # Unlike a rename, a link never replaces the key that another process made meanwhile.
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
            log.info("made a key for secrets: back it up with the data folder", file=str(path))
    finally:
        Path(name).unlink()
    sync_folder(path.parent)


def _warn_if_readable(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        log.warning("others may read the key of all secrets: chmod 600 helps", file=str(path), mode=f"{mode:o}")
