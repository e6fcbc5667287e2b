"""What pamqp can't read in a message's properties, read leniently.

pamqp raises, aiormq closes the connection for it, and the broker delivers the message again: one publisher's timestamp
in microseconds would keep the bridge from consuming for ever. A property that can't be read is no reason to refuse an
event: none of them but `type` and `content_encoding` matters here.
"""

from collections.abc import Callable
from typing import Any

from pamqp import decode

Decoder = Callable[[bytes], tuple[int, Any]]


def short_string(value: bytes) -> tuple[int, str]:
    """A string of up to 255 bytes behind its length: how long both are, and the string.

    Bytes that are not UTF-8 become question marks: what is longer than it came can't be published again.
    """
    end = 1 + value[0]
    try:
        return end, value[1:end].decode()
    except UnicodeDecodeError:
        return end, value[1:end].decode("utf-8", "replace").replace("\ufffd", "?")


def _leniently(strict: Decoder, size: Callable[[bytes], int], otherwise: Any) -> Decoder:
    """The same decoder, but for what it can't read: `size` says how long that is, `otherwise` is its value."""

    def decoded(value: bytes) -> tuple[int, Any]:
        try:
            return strict(value)
        # UnicodeDecodeError is a ValueError; tables may lie in each other deeper than Python's calls.
        except (ValueError, OverflowError, OSError, RecursionError):
            return size(value), otherwise

    return decoded


def install() -> None:
    """Puts the lenient decoders into pamqp's tables. Idempotent."""
    methods: dict[str, Any] = decode.METHODS
    if methods["shortstr"] is short_string:
        return
    methods["shortstr"] = short_string
    methods["timestamp"] = _leniently(methods["timestamp"], lambda value: 8, None)
    # A table that holds something unreadable is left out as a whole: within it, nothing says where that ends.
    methods["table"] = _leniently(methods["table"], lambda value: 4 + int.from_bytes(value[:4], "big"), None)
