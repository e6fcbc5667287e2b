"""A client's bytes -> pings, closes and violations (RFC 6455); everything else is dropped unbuffered.

The bridge only emits, so a client's messages are read for one thing: whether they keep the protocol. What is held
between two reads is the beginning of a frame's header, of a control frame's payload, or of a UTF-8 sequence, never a
message. Clients send next to nothing: an ``Inbound`` is made when bytes arrive and thrown away once it is idle.

This file must never know of sockets, of timers, or of what is answered.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass

from websockets.frames import EXTERNAL_CLOSE_CODES, CloseCode, Opcode

try:
    from websockets.speedups import apply_mask
except ImportError:  # no wheel for this platform: the same in Python
    from websockets.utils import apply_mask

# RFC 6455 section 5.2: two bytes, up to eight of extended length, four of mask. Section 5.5: control payloads.
HEADER_BYTES = 14
CONTROL_PAYLOAD_BYTES = 125
CONTROL_HEADER_BYTES = 6
# A text is unmasked and decoded in pieces, so that what that costs in memory does not grow with the read. Divisible
# by four: every piece begins at the same byte of the mask.
TEXT_PIECE_BYTES = 65536

_FIN, _RESERVED, _OPCODE, _MASKED, _LENGTH = 0x80, 0x70, 0x0F, 0x80, 0x7F
_CONTROL = frozenset({int(Opcode.CLOSE), int(Opcode.PING), int(Opcode.PONG)})
_WHOLE_CONTROL = frozenset(_FIN | opcode for opcode in _CONTROL)

_utf8_decoder = codecs.getincrementaldecoder("utf-8")


@dataclass(frozen=True, slots=True)
class Ping:
    """A ping, to be answered by a pong with the same payload."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """A valid close frame, to be answered by one with the same code, or with none where there was none."""

    code: int | None


@dataclass(frozen=True, slots=True)
class Violation:
    """The client broke the protocol: fail the connection with this code, 1002 or 1007.

    ``sentence`` is ours alone and fits into a close frame.
    """

    code: int
    sentence: str


Event = Ping | Close | Violation


class _BrokenError(Exception):
    def __init__(self, code: CloseCode, sentence: str) -> None:
        super().__init__(sentence)
        self.violation = Violation(code, sentence)


class Inbound:
    """Where a connection stands in what its client sends."""

    __slots__ = (
        "_decoder",
        "_fin",
        "_head",
        "_left",
        "_mask",
        "_opcode",
        "_over",
        "_payload",
        "_started",
        "frames",
        "pong_bytes",
        "pongs",
    )

    def __init__(self) -> None:
        self._head = b""  # an unfinished header
        self._mask = b""  # empty between frames; for text, turned to where the next byte is
        self._opcode = 0
        self._fin = False
        self._left = 0  # payload bytes still to come
        self._payload = b""  # of a control frame, still masked
        self._started = False  # a fragmented message is open
        self._decoder: codecs.IncrementalDecoder | None = None  # of the text message that is open
        self._over = False
        self.frames = 0
        """How many frames began, or ended as a whole, with the last bytes: what they cost to judge."""
        self.pongs = 0
        """How many pongs were completed by the last call of `feed`."""
        self.pong_bytes = 0
        """The size of these pongs."""

    @property
    def idle(self) -> bool:
        """Whether a new ``Inbound`` would do as well: at a message boundary, nothing held, nothing ended."""
        return not (self._mask or self._head or self._started or self._over)

    def feed(self, data: bytes | memoryview) -> list[Event]:
        """What these bytes bring about; nothing any more once a ``Close`` or a ``Violation`` was returned.

        ``data`` may be overwritten afterwards. As many events can come as six-byte frames fit into it.
        """
        events: list[Event] = []
        self.frames = self.pongs = self.pong_bytes = 0
        if self._over:
            return events
        try:
            # The common case: one whole control frame, which is what a browser answers to a ping.
            if (
                len(data) >= 6
                and data[0] in _WHOLE_CONTROL
                and data[1] <= _MASKED | CONTROL_PAYLOAD_BYTES
                and len(data) == data[1] - _MASKED + 6
                and not (self._mask or self._head)
            ):
                self.frames = 1
                self._end_control(data[0] & _OPCODE, bytes(data[2:6]), data[6:], events)
            else:
                self._read(memoryview(data), events)
        except _BrokenError as broken:
            self._end()
            events.append(broken.violation)
        return events

    def _read(self, view: memoryview, events: list[Event]) -> None:
        at = 0
        while at < len(view) and not self._over:
            if not self._mask:
                at += self._take_header(view[at : at + HEADER_BYTES])
            if self._mask:
                at += self._take_payload(view[at:], events)

    def _take_header(self, view: memoryview) -> int:
        """Read a header, or as much as there is; the number of bytes taken."""
        held = len(self._head)
        head = self._head + view[: HEADER_BYTES - held]
        self._head = head
        if len(head) < 2:
            return len(head) - held
        self._judge(head[0], head[1])
        length = head[1] & _LENGTH
        # A length in more bytes than it needs is let through: RFC 6455 section 5.2 forbids it, but websockets'
        # own parser accepts it, no Autobahn case asks, and a length is a length.
        extended = {126: 2, 127: 8}.get(length, 0)
        size = 2 + extended + 4
        if len(head) < size:
            return len(head) - held
        if extended:
            length = int.from_bytes(head[2 : 2 + extended], "big")
        if length >> 63:
            raise _BrokenError(CloseCode.PROTOCOL_ERROR, "the length of a frame has its highest bit set")
        opcode = head[0] & _OPCODE
        if opcode in _CONTROL and length > CONTROL_PAYLOAD_BYTES:
            raise _BrokenError(CloseCode.PROTOCOL_ERROR, "a control frame is longer than 125 bytes")
        if opcode == Opcode.TEXT:
            self._decoder = _utf8_decoder()
        self._opcode = opcode
        self._fin = bool(head[0] & _FIN)
        self._left = length
        self._mask = head[size - 4 : size]
        self._head = b""
        self.frames += 1
        return size - held

    def _judge(self, first: int, second: int) -> None:
        """The rules that a frame's first two bytes can break (RFC 6455 sections 5.1, 5.2, 5.4 and 5.5)."""
        opcode = first & _OPCODE
        sentence = ""
        if first & _RESERVED:
            sentence = "a reserved bit is set"
        elif opcode in _CONTROL:
            if not first & _FIN:
                sentence = "a control frame is fragmented"
        elif opcode > Opcode.BINARY:
            sentence = "an opcode is unknown"
        elif self._started != (opcode == Opcode.CONT):
            sentence = "a fragmented message is not finished" if self._started else "a continuation continues nothing"
        if not (sentence or second & _MASKED):
            sentence = "a frame is not masked"
        if sentence:
            raise _BrokenError(CloseCode.PROTOCOL_ERROR, sentence)

    def _take_payload(self, view: memoryview, events: list[Event]) -> int:
        """Read a payload, or as much as there is; the number of bytes taken."""
        piece = view[: self._left]
        taken = len(piece)
        self._left -= taken
        if self._opcode in _CONTROL:
            self._payload += piece
            if not self._left:
                mask, payload = self._mask, self._payload
                self._mask = self._payload = b""
                self._end_control(self._opcode, mask, payload, events)
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
            # What begins as a surrogate can't end well, yet Python's decoder waits for its last byte.
            decoder.decode(b"", final=final or b"\xed\xa0" <= decoder.getstate()[0] < b"\xee")
        except UnicodeDecodeError:
            raise _BrokenError(CloseCode.INVALID_DATA, "a text message is not UTF-8") from None
        turn = len(masked) % 4
        self._mask = self._mask[turn:] + self._mask[:turn]

    def _end_control(self, opcode: int, mask: bytes, masked: bytes | memoryview, events: list[Event]) -> None:
        if opcode == Opcode.PONG:
            self.pongs += 1
            self.pong_bytes += CONTROL_HEADER_BYTES + len(masked)
        elif opcode == Opcode.PING:
            events.append(Ping(apply_mask(masked, mask)))
        else:
            # In the midst of a fragmented message too: a control frame may stand between fragments (section 5.4).
            # websockets' parser calls it a violation, Autobahn's case 7.1.5 a clean close.
            events.append(Close(_close_code(apply_mask(masked, mask))))
            self._end()

    def _end(self) -> None:
        self._over = True
        self._head = self._mask = self._payload = b""
        self._decoder = None


def _close_code(payload: bytes) -> int | None:
    """The code of a close frame's payload, once all of it is known to be valid (RFC 6455 sections 5.5.1 and 7.4)."""
    if not payload:
        return None
    if len(payload) < 2:
        raise _BrokenError(CloseCode.PROTOCOL_ERROR, "a close frame has half a code")
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        raise _BrokenError(CloseCode.INVALID_DATA, "the reason of a close frame is not UTF-8") from None
    code = int.from_bytes(payload[:2], "big")
    if code not in EXTERNAL_CLOSE_CODES and not 3000 <= code <= 4999:
        raise _BrokenError(CloseCode.PROTOCOL_ERROR, "the code of a close frame is not one that may be sent")
    return code
