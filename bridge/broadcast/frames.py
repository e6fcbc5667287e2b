"""What the server sends, as bytes: frames of RFC 6455, section 5, unmasked and unfragmented.

A server frame carries no mask, and no extension is ever negotiated, so one byte string serves every client.
"""

import struct

_MEDIUM = struct.Struct("!BBH")
_LONG = struct.Struct("!BBQ")

PING = b"\x89\x00"
"""An empty ping: the connection knows that something answered, and needs no more."""


def text_frame(payload: bytes) -> bytes:
    """A whole text message. `payload` is UTF-8."""
    return text_head(len(payload)) + payload


def text_head(length: int) -> bytes:
    """What stands before a text message's payload of so many bytes."""
    return _header(0x81, length)


def payload_of(frame: bytes) -> memoryview:
    """What a text frame of ours holds: a view, since it may be large."""
    length = frame[1]
    return memoryview(frame)[2 if length < 126 else 4 if length == 126 else 10 :]


def pong_frame(payload: bytes) -> bytes:
    """The answer to a ping: its payload, of at most 125 bytes, unchanged (RFC 6455, section 5.5.3)."""
    return _header(0x8A, len(payload)) + payload


def close_frame(code: int | None, phrase: str = "") -> bytes:
    """A close with a code and a phrase of at most 123 bytes, or an empty one where `code` is None (section 5.5.1)."""
    payload = b"" if code is None else struct.pack("!H", code) + phrase.encode()[:123].decode(errors="ignore").encode()
    return _header(0x88, len(payload)) + payload


def _header(first: int, length: int) -> bytes:
    if length < 126:
        return bytes((first, length))
    if length < 65536:
        return _MEDIUM.pack(first, 126, length)
    return _LONG.pack(first, 127, length)
