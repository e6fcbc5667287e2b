"""A message's properties as they came: what everybody asks for is read at once, the rest where it is wanted.

In a stream no two messages have the same properties: each has its own offset among its headers. It is found, and the
others are told apart, without decoding them, which would cost more than all the rest of a delivery. This file must
never know of frames, or of what a property is for.
"""

import struct
from contextlib import suppress

from pamqp import commands
from pamqp.header import ContentHeader

from bridge.amqp.wire.compat import short_string

FLAGS_AT = 12
"""Where the properties begin: behind class, weight and body size."""
OFFSET_NAME = b"x-stream-offset"
OFFSET = struct.Struct(">q")
OFFSET_KEY = bytes([len(OFFSET_NAME)]) + OFFSET_NAME + b"l"
"""The name as a short string, and the type of a signed 64-bit number behind it (AMQP 0-9-1, section 4.2.5.5)."""


WIDTHS = {
    ord(kind): width
    for kinds, width in (("V", 0), ("tbB", 1), ("su", 2), ("Iif", 4), ("D", 5), ("lLdT", 8))
    for kind in kinds
}
"""Bytes of a header's value, by its type, in RabbitMQ's own choice of letters; of any other type, they are behind its
length."""

TypeAndEncoding = tuple[str | None, str | None]


class MessageProperties:
    """What came with a body."""

    __slots__ = ("_header", "encoding", "offset", "type")

    def __init__(self, header: bytes, known: TypeAndEncoding | None = None) -> None:
        """`header` is the payload of a content header frame (AMQP 0-9-1, section 4.2.6.1)."""
        self._header = header
        self.offset: int | None = None
        """Where the message is in its stream; known only to what `StreamPropertiesReader` has read."""
        try:
            self.type, self.encoding = _type_and_encoding(header) if known is None else known
        except IndexError:  # no broker lets this through; without a type, the exchange's default holds
            self.type = self.encoding = None

    def decode(self) -> commands.Basic.Properties:
        """All of them, leniently decoded (see `decoding`); type and encoding alone, where even that can't be done."""
        header = ContentHeader()
        try:
            header.unmarshal(self._header)
        except Exception:  # there is no bound to what the library raises, and the message is somebody's event
            return commands.Basic.Properties(message_type=self.type, content_encoding=self.encoding)
        return header.properties


class StreamPropertiesReader:
    """Reads the properties of one stream's messages."""

    __slots__ = ("_around", "_known")

    def __init__(self) -> None:
        self._around: tuple[bytes, bytes] | None = None
        """What was before and behind the offset last: where it is the same again, so are type and encoding."""
        self._known: TypeAndEncoding = (None, None)

    def read(self, header: bytes) -> MessageProperties:
        """The content, with its offset; None there where the broker gave none."""
        # In front of flags and properties is how long the body is, which is something else each time.
        before, key, behind = header[FLAGS_AT:].partition(OFFSET_KEY)
        # Anybody may put anything into a header. But what is there once only is the broker's.
        if not key or OFFSET_NAME in before or OFFSET_NAME in behind or len(behind) < OFFSET.size:
            properties = MessageProperties(header)
            with suppress(IndexError, struct.error):
                properties.offset = _offset(header)
            return properties
        around = (before, behind[OFFSET.size :])
        properties = MessageProperties(header, self._known if around == self._around else None)
        self._around, self._known = around, (properties.type, properties.encoding)
        properties.offset = int.from_bytes(behind[: OFFSET.size], "big", signed=True)
        return properties


def _offset(header: bytes) -> int | None:
    """The offset among the headers, from one to the next. Raises IndexError or struct.error where they are cut short.

    Not with the library, which reads all of them or none: one that it can't read must not hide the offset.
    """
    flags = header[12] << 8 | header[13]
    at = 14
    for flag in (0x8000, 0x4000):  # content_type, content_encoding
        if flags & flag:
            at += 1 + header[at]
    if not flags & 0x2000:
        return None
    end = at + 4 + int.from_bytes(header[at : at + 4], "big")
    at += 4
    while at < end:
        behind = at + 1 + header[at]
        if header[at : behind + 1] == OFFSET_KEY:
            return int(OFFSET.unpack_from(header, behind + 1)[0])
        width = WIDTHS.get(header[behind])
        at = behind + 1
        at += 4 + int.from_bytes(header[at : at + 4], "big") if width is None else width
    return None


def _type_and_encoding(header: bytes) -> TypeAndEncoding:
    """A message's `type` and `content_encoding`: its properties follow each other without names, in a fixed order."""
    encoding = kind = None
    flags = header[12] << 8 | header[13]
    at = 14
    if flags & 0x8000:  # content_type
        at += 1 + header[at]
    if flags & 0x4000:
        length, encoding = string(header[at : at + 256])
        at += length
    if flags & 0x2000:  # headers
        at += 4 + int.from_bytes(header[at : at + 4], "big")
    if flags & 0x1000:  # delivery_mode
        at += 1
    if flags & 0x0800:  # priority
        at += 1
    for flag in (0x0400, 0x0200, 0x0100, 0x0080):  # correlation_id, reply_to, expiration, message_id
        if flags & flag:
            at += 1 + header[at]
    if flags & 0x0040:  # timestamp
        at += 8
    if flags & 0x0020:
        _, kind = string(header[at : at + 256])
    return kind, encoding


def string(data: bytes) -> tuple[int, str]:
    """A short string, and how long it is with its length. Raises IndexError where it is cut short."""
    size, text = short_string(data)
    if size > len(data):
        raise IndexError(f"a string of {size - 1} bytes in {len(data) - 1}")
    return size, text
