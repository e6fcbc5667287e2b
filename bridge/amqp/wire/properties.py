"""Reads the properties of a delivery: type, encoding and offset at once, all other properties on demand.

In a stream, no two messages have the same properties, because each message has its own offset in a header. The offset
is found without decoding the other headers. Decoding all headers would take longer than all other work for a delivery.
This module neither reads frames nor interprets properties.
"""

import struct
from contextlib import suppress

from pamqp import commands
from pamqp.header import ContentHeader

FLAGS_AT = 12
"""The position of the property flags in a content header. The flags follow the class, the weight and the body size."""
OFFSET_NAME = b"x-stream-offset"
OFFSET = struct.Struct(">q")
OFFSET_KEY = bytes([len(OFFSET_NAME)]) + OFFSET_NAME + b"l"
"""The name of the offset header as a short string, and the type letter of a signed 64-bit number (AMQP 0-9-1, section
4.2.5.5)."""


WIDTHS = {
    ord(kind): width
    for kinds, width in (("V", 0), ("tbB", 1), ("su", 2), ("Iif", 4), ("D", 5), ("lLdT", 8))
    for kind in kinds
}
"""The size of a header's value in bytes, for each type letter that RabbitMQ uses for a value of fixed size.

Values of all other types begin with their length.
"""

TypeAndEncoding = tuple[str | None, str | None]


class MessageProperties:
    """The properties of an AMQP message."""

    __slots__ = ("_header", "encoding", "offset", "type")

    def __init__(self, header: bytes, type_and_encoding: TypeAndEncoding | None = None) -> None:
        """`header` is the payload of a content header frame (AMQP 0-9-1, section 4.2.6.1)."""
        self._header = header
        self.offset: int | None = None
        """The message's offset in its stream. Only `StreamPropertiesReader` sets this offset."""
        try:
            self.type, self.encoding = _type_and_encoding(header) if type_and_encoding is None else type_and_encoding
        # the properties are incomplete (no broker sends such properties): the exchange's default type applies
        except IndexError:
            self.type = self.encoding = None

    def decode(self) -> commands.Basic.Properties:
        """Returns all properties, decoded leniently (see `compat`).

        If decoding fails, the returned properties contain only the type and the encoding.
        """
        header = ContentHeader()
        try:
            header.unmarshal(self._header)
        except Exception:  # pamqp may raise an error of any type, which must not make the bridge lose the event
            return commands.Basic.Properties(message_type=self.type, content_encoding=self.encoding)
        return header.properties


class StreamPropertiesReader:
    """Reads the properties of the messages of one stream."""

    __slots__ = ("_last_around", "_last_type_and_encoding")

    def __init__(self) -> None:
        self._last_around: tuple[bytes, bytes] | None = None
        """The bytes before and after the offset in the last message's properties.

        If the next message has the same bytes around its offset, its type and encoding are the same too.
        """
        self._last_type_and_encoding: TypeAndEncoding = (None, None)

    def read(self, header: bytes) -> MessageProperties:
        """Returns the properties of a message, with the offset if the broker sent an offset."""
        # The body size, which stands before the flags, differs between messages. The comparison with the last message
        # therefore begins at the flags.
        before, key, after = header[FLAGS_AT:].partition(OFFSET_KEY)
        # A publisher may put the name of the offset header anywhere in the properties. The broker always adds the name,
        # so if the name occurs only once, the broker has added it.
        if not key or OFFSET_NAME in before or OFFSET_NAME in after or len(after) < OFFSET.size:
            properties = MessageProperties(header)
            with suppress(IndexError, struct.error):
                properties.offset = _offset(header)
            return properties
        around = (before, after[OFFSET.size :])
        properties = MessageProperties(header, self._last_type_and_encoding if around == self._last_around else None)
        self._last_around, self._last_type_and_encoding = around, (properties.type, properties.encoding)
        properties.offset = int.from_bytes(after[: OFFSET.size], "big", signed=True)
        return properties


def stream_offset(properties: commands.Basic.Properties) -> int:
    """Returns the offset from the decoded properties of a stream's message."""
    offset = (properties.headers or {}).get(OFFSET_NAME.decode())
    assert isinstance(offset, int)
    return offset


def _offset(header: bytes) -> int | None:
    """Finds the offset of a message by going from header to header.

    Raises IndexError or struct.error if the headers are incomplete. This method does not use pamqp, because with pamqp,
    a single unreadable header would hide the offset.
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
        type_at = at + 1 + header[at]
        if header[at : type_at + 1] == OFFSET_KEY:
            return int(OFFSET.unpack_from(header, type_at + 1)[0])
        width = WIDTHS.get(header[type_at])
        at = type_at + 1
        at += 4 + int.from_bytes(header[at : at + 4], "big") if width is None else width
    return None


def _type_and_encoding(header: bytes) -> TypeAndEncoding:
    """Reads `type` and `content_encoding`. Raises IndexError if the properties are incomplete.

    In a frame, properties have no names and follow each other in a fixed order.
    """
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


def short_string(data: bytes) -> tuple[int, str]:
    """Returns the size of a short string, including its length octet, and the string's text.

    Each byte that is not UTF-8 becomes one question mark. With a longer replacement, the text could become too long to
    publish again.
    """
    end = 1 + data[0]
    try:
        return end, data[1:end].decode()
    except UnicodeDecodeError:
        return end, data[1:end].decode("utf-8", "replace").replace("\ufffd", "?")


def string(data: bytes) -> tuple[int, str]:
    """Does the same as `short_string`, but raises IndexError if the string is incomplete."""
    size, text = short_string(data)
    if size > len(data):
        raise IndexError(f"a string of {size - 1} bytes in {len(data) - 1}")
    return size, text
