"""Pages of lists: keyset tokens, which stay true while rows come and go."""

import base64
import binascii
from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

from google.protobuf.message import Message

from fastflow_controlplane.errors import FieldViolation, InvalidArgument

M = TypeVar("M", bound=Message)

LARGEST_PAGE = 1000

PAGE_BYTES = 4 * 1024 * 1024
"""A page ends behind as many: half of the largest message. What people wrote may be long in each of its rows."""


def check_size(page_size: int, default: int) -> int:
    """Returns the page size to use; 0 = `default`. Raises InvalidArgument below 0 and above LARGEST_PAGE."""
    if not 0 <= page_size <= LARGEST_PAGE:
        message = f"page_size is {page_size}; allowed is 1 to {LARGEST_PAGE}, or 0 for {default}"
        raise InvalidArgument(message, violations=[FieldViolation("page_size", message)])
    return page_size or default


def token_after(key: str) -> str:
    """Returns the token of the page that begins behind `key`."""
    return base64.urlsafe_b64encode(key.encode()).decode()


def fitting(messages: Sequence[M], keys: Sequence[str], next_page_token: str) -> tuple[Sequence[M], str]:
    """Returns those `messages` of a page, from the first, that fit one answer, and the token of what follows them.

    At least one is returned. `keys` are those of the messages; `next_page_token` is of what follows them all.
    """
    sizes = accumulate(message.ByteSize() for message in messages)
    count = max(1, sum(size <= PAGE_BYTES for size in sizes))
    return messages[:count], token_after(keys[count - 1]) if count < len(messages) else next_page_token


def key_of(page_token: str) -> str:
    """Returns the key a token was made from; "" = the first page. Raises InvalidArgument for other text."""
    try:
        return base64.b64decode(page_token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        message = "page_token is none that this server gave out: repeat the list from its first page"
        raise InvalidArgument(
            message, reason="BAD_PAGE_TOKEN", violations=[FieldViolation("page_token", message)]
        ) from None
