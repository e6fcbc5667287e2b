"""Reads a client's frames: returns pings, close frames and violations of RFC 6455, and drops all other frames.

The bridge reads a client's messages only to check that the client follows the protocol. Between two reads, a reader
holds at most an incomplete header, an incomplete control frame, or an incomplete UTF-8 sequence, and never a message.
Clients send almost nothing, so a reader is created when bytes arrive, and dropped as soon as the reader is idle.

The module is pure: it has no sockets and no timers. The class `Connection` answers the client.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass

from websockets.frames import EXTERNAL_CLOSE_CODES, CloseCode, Opcode

from bridge.server.transport.compat import apply_mask

MAX_HEADER_BYTES = 14
"""The maximum size of a header: two bytes, eight bytes of extended length, and four bytes of mask (RFC 6455, section
5.2)."""

CONTROL_PAYLOAD_BYTES = 125
"""The maximum size of a control frame's payload (RFC 6455, section 5.5)."""

CONTROL_HEADER_BYTES = 6

TEXT_PIECE_BYTES = 65536
"""Text is unmasked and decoded in pieces of this size, so that a large read takes no more memory than a small read.

The size of a piece is divisible by four, so that each piece begins at the same byte of the mask.
"""

_FIN, _RESERVED, _OPCODE, _MASKED, _LENGTH = 0x80, 0x70, 0x0F, 0x80, 0x7F
_CONTROL = frozenset({int(Opcode.CLOSE), int(Opcode.PING), int(Opcode.PONG)})
_WHOLE_CONTROL = frozenset(_FIN | opcode for opcode in _CONTROL)

_utf8_decoder = codecs.getincrementaldecoder("utf-8")


@dataclass(frozen=True, slots=True)
class Ping:
    """A ping. The bridge answers a ping with a pong that has the same payload."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """A valid close frame. The bridge answers a close frame with the same code, or without a code if `code` is None."""

    code: int | None


@dataclass(frozen=True, slots=True)
class ProtocolViolation:
    """The client violated the protocol. The bridge closes the connection with `code`, which is 1002 or 1007.

    `detail` quotes nothing from the client, and fits into a close frame.
    """

    code: int
    detail: str


Incoming = Ping | Close | ProtocolViolation


class ProtocolError(Exception):
    """The client violates the protocol, so the bridge must close the connection."""

    def __init__(self, code: CloseCode, detail: str) -> None:
        super().__init__(detail)
        self.violation = ProtocolViolation(code, detail)


class FrameReader:
    """Reads the frames of one client, in pieces of any size."""

    __slots__ = (
        "_decoder",
        "_ended",
        "_fin",
        "_head",
        "_left",
        "_mask",
        "_opcode",
        "_payload",
        "_started",
        "close_bytes",
        "frames",
        "pong_bytes",
        "pongs",
    )

    def __init__(self) -> None:
        self._head = b""
        """The bytes of an incomplete header."""
        self._mask = b""
        """The mask of the current frame, which is empty between frames.

        In a text message, the mask is rotated so that its first byte applies to the next byte of text.
        """
        self._opcode = 0
        self._fin = False
        self._left = 0
        """How many payload bytes of the current frame are not read yet."""
        self._payload = b""
        """The masked payload of an incomplete control frame."""
        self._started = False
        """Whether a fragmented message is incomplete."""
        self._decoder: codecs.IncrementalDecoder | None = None
        """The decoder of the current text message."""
        self._ended = False
        """Whether the reader has ended, after a close frame or a violation."""
        self.frames = 0
        """How many frames the last call of `feed` began to read."""
        self.pongs = 0
        """How many pongs the last call of `feed` completed."""
        self.pong_bytes = 0
        """The total size, in bytes, of the pongs that the last call of `feed` completed."""
        self.close_bytes = 0
        """The size, in bytes, of the valid close frame that the last call of `feed` completed, or 0."""

    @property
    def idle(self) -> bool:
        """Whether this reader holds no data, so that a new reader can replace it."""
        return not (self._mask or self._head or self._started or self._ended)

    def feed(self, data: bytes | memoryview) -> list[Incoming]:
        """Returns the pings, the close frames and the protocol violations in `data`.

        After a `Close` or `ProtocolViolation`, returns an empty list. After the call, the caller can overwrite `data`.
        If n frames of six bytes fit into `data`, the list has at most n + 2 items.
        """
        found: list[Incoming] = []
        self.frames = self.pongs = self.pong_bytes = self.close_bytes = 0
        if self._ended:
            return found
        try:
            # The most common case is one whole control frame, such as the pong with which a browser answers a ping.
            if (
                len(data) >= 6
                and data[0] in _WHOLE_CONTROL
                and data[1] <= _MASKED | CONTROL_PAYLOAD_BYTES
                and len(data) == data[1] - _MASKED + 6
                and not (self._mask or self._head)
            ):
                self.frames = 1
                self._end_control(data[0] & _OPCODE, bytes(data[2:6]), data[6:], found)
            else:
                self._read(memoryview(data), found)
        except ProtocolError as error:
            self._end()
            found.append(error.violation)
        return found

    def _read(self, view: memoryview, found: list[Incoming]) -> None:
        at = 0
        while at < len(view) and not self._ended:
            if not self._mask:
                at += self._read_header(view[at : at + MAX_HEADER_BYTES])
            if self._mask:
                at += self._read_payload(view[at:], found)

    def _read_header(self, view: memoryview) -> int:
        """Reads the available part of a frame's header. Returns the number of bytes read."""
        held = len(self._head)
        head = self._head + view[: MAX_HEADER_BYTES - held]
        self._head = head
        if len(head) < 2:
            return len(head) - held
        self._check_header(head[0], head[1])
        length = head[1] & _LENGTH
        # The bridge accepts a length that is encoded in more bytes than necessary. RFC 6455, section 5.2, forbids
        # unnecessarily long encodings, but the library websockets also accepts them, and no Autobahn case tests them.
        extended = {126: 2, 127: 8}.get(length, 0)
        size = 2 + extended + 4
        if len(head) < size:
            return len(head) - held
        if extended:
            length = int.from_bytes(head[2 : 2 + extended], "big")
        if length >> 63:
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, "the length of a frame has its highest bit set")
        opcode = head[0] & _OPCODE
        if opcode in _CONTROL and length > CONTROL_PAYLOAD_BYTES:
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, "a control frame is longer than 125 bytes")
        if opcode == Opcode.TEXT:
            self._decoder = _utf8_decoder()
        self._opcode = opcode
        self._fin = bool(head[0] & _FIN)
        self._left = length
        self._mask = head[size - 4 : size]
        self._head = b""
        self.frames += 1
        return size - held

    def _check_header(self, first: int, second: int) -> None:
        """Checks the first two bytes of a frame (RFC 6455 sections 5.1, 5.2, 5.4 and 5.5). Raises ProtocolError."""
        opcode = first & _OPCODE
        detail = ""
        if first & _RESERVED:
            detail = "a reserved bit is set"
        elif opcode in _CONTROL:
            if not first & _FIN:
                detail = "a control frame is fragmented"
        elif opcode > Opcode.BINARY:
            detail = "an opcode is unknown"
        elif self._started != (opcode == Opcode.CONT):
            detail = (
                "a fragmented message is not finished" if self._started else "a continuation frame has no first frame"
            )
        if not (detail or second & _MASKED):
            detail = "a frame is not masked"
        if detail:
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, detail)

    def _read_payload(self, view: memoryview, found: list[Incoming]) -> int:
        """Reads the available part of a frame's payload. Returns the number of bytes read."""
        piece = view[: self._left]
        taken = len(piece)
        self._left -= taken
        if self._opcode in _CONTROL:
            self._payload += piece
            if not self._left:
                mask, payload = self._mask, self._payload
                self._mask = self._payload = b""
                self._end_control(self._opcode, mask, payload, found)
            return taken
        final = self._fin and not self._left
        if self._decoder is not None:
            self._check_text(self._decoder, piece, final=final)
        if final:
            self._decoder = None
        if not self._left:
            self._mask = b""
            self._started = not self._fin
        return taken

    def _check_text(self, decoder: codecs.IncrementalDecoder, masked: memoryview, *, final: bool) -> None:
        try:
            for at in range(0, len(masked), TEXT_PIECE_BYTES):
                decoder.decode(apply_mask(masked[at : at + TEXT_PIECE_BYTES], self._mask))
            # The first two bytes of an encoded surrogate are already invalid, but Python's decoder waits for the third
            # byte.
            decoder.decode(b"", final=final or b"\xed\xa0" <= decoder.getstate()[0] < b"\xee")
        except UnicodeDecodeError:
            raise ProtocolError(CloseCode.INVALID_DATA, "a text message is not UTF-8") from None
        rotation = len(masked) % 4
        self._mask = self._mask[rotation:] + self._mask[:rotation]

    def _end_control(self, opcode: int, mask: bytes, masked: bytes | memoryview, found: list[Incoming]) -> None:
        if opcode == Opcode.PONG:
            self.pongs += 1
            self.pong_bytes += CONTROL_HEADER_BYTES + len(masked)
        elif opcode == Opcode.PING:
            found.append(Ping(apply_mask(masked, mask)))
        else:
            # A close frame may also come between the fragments of a message (RFC 6455, section 5.4). The library
            # websockets treats a close frame between fragments as a violation, but Autobahn's case 7.1.5 expects a
            # clean close.
            found.append(Close(_close_code(apply_mask(masked, mask))))
            self.close_bytes = CONTROL_HEADER_BYTES + len(masked)
            self._end()

    def _end(self) -> None:
        self._ended = True
        self._head = self._mask = self._payload = b""
        self._decoder = None


def _close_code(payload: bytes) -> int | None:
    """Returns the code of a close frame, or raises ProtocolError (RFC 6455 sections 5.5.1 and 7.4)."""
    if not payload:
        return None
    if len(payload) < 2:
        raise ProtocolError(CloseCode.PROTOCOL_ERROR, "a close frame has only one byte of a code")
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        raise ProtocolError(CloseCode.INVALID_DATA, "the reason of a close frame is not UTF-8") from None
    code = int.from_bytes(payload[:2], "big")
    if code not in EXTERNAL_CLOSE_CODES and not 3000 <= code <= 4999:
        raise ProtocolError(CloseCode.PROTOCOL_ERROR, "the code of a close frame must not be sent")
    return code
