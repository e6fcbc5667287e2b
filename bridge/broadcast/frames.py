"""Builds WebSocket frames (RFC 6455, section 5) and blocks of Server-Sent Events (HTML standard, section 9.2).

A frame from a server has no mask and is not fragmented, and the bridge negotiates no extension. All clients can
therefore receive the same bytes.
"""

import struct

_MEDIUM = struct.Struct("!BBH")
_LONG = struct.Struct("!BBQ")

PING = b"\x89\x00"
"""A ping frame without a payload: the bridge need not know which of its pings a pong answers."""


EVENT_END = b"\n\n"
"""The end of the last line of a block, and the empty line after the block."""


def text_frame(payload: bytes) -> bytes:
    """Returns the frame of a whole text message. `payload` is UTF-8."""
    return text_header(len(payload)) + payload


def text_header(length: int) -> bytes:
    """Returns the frame header of a text message with a payload of `length` bytes."""
    return _header(0x81, length)


def payload_of(frame: bytes) -> memoryview:
    """Returns a view of the payload of a text frame from the bridge. A copy could take much memory."""
    length = frame[1]
    return memoryview(frame)[2 if length < 126 else 4 if length == 126 else 10 :]


def pong_frame(payload: bytes) -> bytes:
    """Returns a pong frame with the payload of the ping, at most 125 bytes (RFC 6455, section 5.5.3)."""
    return _header(0x8A, len(payload)) + payload


def close_frame(code: int | None, phrase: str = "") -> bytes:
    """Returns a close frame with a code and a phrase of at most 123 bytes.

    If `code` is None, the frame has no code and no phrase.
    """
    payload = b"" if code is None else struct.pack("!H", code) + phrase.encode()[:123].decode(errors="ignore").encode()
    return _header(0x88, len(payload)) + payload


def _header(first: int, length: int) -> bytes:
    if length < 126:
        return bytes((first, length))
    if length < 65536:
        return _MEDIUM.pack(first, 126, length)
    return _LONG.pack(first, 127, length)


def event_start(id: str) -> bytes:  # noqa: A002 - the field's own name
    """Returns the start of a block: its `id` line, and the name of its `data` line."""
    return f"id: {id}\ndata: ".encode("ascii")


def event_block(payload: bytes, id: str) -> bytes:  # noqa: A002 - the field's own name
    """Returns a whole block. `payload` is compact JSON, which has no line breaks."""
    return event_start(id) + payload + EVENT_END
