"""Pages of lists: keyset tokens, which stay true while rows come and go."""

import base64
import binascii

from fastflow_controlplane.errors import FieldViolation, InvalidArgument

LARGEST_PAGE = 1000


def check_size(page_size: int, default: int) -> int:
    """Returns the page size to use; 0 = `default`. Raises InvalidArgument below 0 and above LARGEST_PAGE."""
    if not 0 <= page_size <= LARGEST_PAGE:
        message = f"page_size is {page_size}; allowed is 1 to {LARGEST_PAGE}, or 0 for {default}"
        raise InvalidArgument(message, violations=[FieldViolation("page_size", message)])
    return page_size or default


def token_after(key: str) -> str:
    """Returns the token of the page that begins behind `key`."""
    return base64.urlsafe_b64encode(key.encode()).decode()


def key_of(page_token: str) -> str:
    """Returns the key a token was made from; "" = the first page. Raises InvalidArgument for other text."""
    try:
        return base64.b64decode(page_token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        message = "page_token is none that this server gave out: repeat the list from its first page"
        raise InvalidArgument(
            message, reason="BAD_PAGE_TOKEN", violations=[FieldViolation("page_token", message)]
        ) from None
