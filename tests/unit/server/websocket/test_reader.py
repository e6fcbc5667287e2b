"""Tests that the reader returns pings and close frames, reports violations with the right code, and keeps no data."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ProtocolError
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.utils import apply_mask

from bridge.server.websocket.reader import (
    CONTROL_PAYLOAD_BYTES,
    MAX_HEADER_BYTES,
    TEXT_PIECE_BYTES,
    Close,
    FrameReader,
    Ping,
    ProtocolViolation,
)
from tests.support.examples import examples

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bridge.server.websocket.reader import Incoming

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
MASK = b"\x37\xfa\x21\x3d"


def frame(  # with the arguments, a test can make any part of a frame wrong
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    reserved: int = 0,
    mask: bytes | None = MASK,
    length_bytes: int | None = None,
    length: int | None = None,
) -> bytes:
    """Returns a client's frame. `length_bytes` (0, 2 or 8) and `length` replace the correct values for the payload."""
    length = len(payload) if length is None else length
    if length_bytes is None:
        length_bytes = 0 if length < 126 else 2 if length < 65536 else 8
    short = {0: length, 2: 126, 8: 127}[length_bytes]
    head = bytes([fin << 7 | reserved << 4 | opcode, (mask is not None) << 7 | short])
    head += length.to_bytes(length_bytes, "big") if length_bytes else b""
    return head + (payload if mask is None else mask + apply_mask(payload, mask))


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, code.to_bytes(2, "big") + reason)


def fed(*reads: bytes | memoryview) -> list[Incoming]:
    connection = FrameReader()
    return list(itertools.chain.from_iterable(connection.feed(read) for read in reads))


def fed_in_bytes(data: bytes) -> list[Incoming]:
    return fed(*(data[at : at + 1] for at in range(len(data))))


def outcome(events: Iterable[Incoming]) -> list[Incoming | int]:
    """Returns the reader's results, with each violation replaced by its code."""
    return [event.code if isinstance(event, ProtocolViolation) else event for event in events]


def held_bytes(connection: FrameReader) -> int:
    decoder = connection._decoder
    pending = b"" if decoder is None else decoder.getstate()[0]
    return len(connection._head) + len(connection._mask) + len(connection._payload) + len(pending)


HELD_AT_MOST = MAX_HEADER_BYTES + CONTROL_PAYLOAD_BYTES + 3

KEPT = [
    ("pong", frame(PONG, b"late"), []),
    ("ping", frame(PING, b"hello"), [Ping(b"hello")]),
    ("empty ping", frame(PING), [Ping(b"")]),
    ("longest ping", frame(PING, b"x" * 125), [Ping(b"x" * 125)]),
    ("ping masked with zeros", frame(PING, b"hello", mask=bytes(4)), [Ping(b"hello")]),
    ("several pings", frame(PING, b"1") + frame(PONG) + frame(PING, b"2"), [Ping(b"1"), Ping(b"2")]),
    ("text", frame(TEXT, "grüße \U0001f680".encode()), []),
    ("empty text", frame(TEXT), []),
    ("binary that is not UTF-8", frame(BINARY, b"\xff\xfe"), []),
    ("text of 126 bytes", frame(TEXT, b"x" * 126), []),
    ("text of 64 KiB", frame(TEXT, b"x" * 65536), []),
    ("text longer than a piece", frame(TEXT, "€".encode() * (TEXT_PIECE_BYTES // 2)), []),
    ("fragments", frame(TEXT, b"a", fin=False) + frame(CONT, b"b", fin=False) + frame(CONT, b"c"), []),
    ("fragments within a character", frame(TEXT, b"\xe2\x82", fin=False) + frame(CONT, b"\xac"), []),
    ("empty fragments", frame(TEXT, fin=False) + frame(CONT, fin=False) + frame(CONT), []),
    (
        "ping between fragments",
        frame(TEXT, b"\xe2", fin=False) + frame(PING, b"p") + frame(CONT, b"\x82\xac"),
        [Ping(b"p")],
    ),
    ("binary fragments", frame(BINARY, b"\xff", fin=False) + frame(CONT, b"\xfe"), []),
    ("text after binary fragments", frame(BINARY, fin=False) + frame(CONT, b"\xff") + frame(TEXT, b"a"), []),
    ("ping with a longer length", frame(PING, b"x" * 124, length_bytes=2), [Ping(b"x" * 124)]),
    (
        "length in more bytes than needed",
        frame(TEXT, b"abc", length_bytes=8) + frame(PING, b"p", length_bytes=2),
        [Ping(b"p")],
    ),
]

CLOSED = [
    ("close without a code", frame(CLOSE), Close(None)),
    ("close with a reason", close(1000, "grüße".encode()), Close(1000)),
    ("close with the longest reason", close(1001, b"x" * 123), Close(1001)),
    ("close between fragments", frame(TEXT, b"a", fin=False) + close(1000), Close(1000)),
    *((f"close {code}", close(code), Close(code)) for code in (1000, 1003, 1007, 1011, 1014, 3000, 3999, 4000, 4999)),
]

BROKEN = [
    ("unmasked text", frame(TEXT, b"a", mask=None), 1002),
    ("unmasked ping", frame(PING, mask=None), 1002),
    ("unmasked close", frame(CLOSE, mask=None), 1002),
    *((f"reserved bits {bits}", frame(TEXT, b"a", reserved=bits), 1002) for bits in range(1, 8)),
    ("reserved bit on a ping", frame(PING, reserved=4), 1002),
    *((f"opcode {opcode}", frame(opcode, b"a"), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
    *((f"fragmented control {opcode}", frame(opcode, fin=False), 1002) for opcode in (CLOSE, PING, PONG)),
    *((f"long control {opcode}", frame(opcode, b"a" * 126), 1002) for opcode in (CLOSE, PING, PONG)),
    ("ping of 64 KiB", frame(PING, b"a" * 65536), 1002),
    ("continuation of nothing", frame(CONT, b"a"), 1002),
    ("unfinished continuation of nothing", frame(CONT, b"a", fin=False), 1002),
    ("continuation after a whole message", frame(TEXT, b"a") + frame(CONT, b"b"), 1002),
    ("text within a message", frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), 1002),
    ("binary within a message", frame(TEXT, b"a", fin=False) + frame(BINARY, b"b", fin=False), 1002),
    ("highest bit of a length", frame(BINARY, length_bytes=8, length=1 << 63), 1002),
    ("longest length", frame(BINARY, length_bytes=8, length=(1 << 64) - 1), 1002),
    ("half a close code", frame(CLOSE, b"\x03"), 1002),
    *(
        (f"close {code}", close(code), 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    ),
    ("close reason that is not UTF-8", close(1000, b"\xce\xba\xed\xa0\x80"), 1007),
    ("close reason cut short", close(1000, b"\xe2\x82"), 1007),
    ("text that is not UTF-8", frame(TEXT, b"abc\xff"), 1007),
    ("text with a surrogate", frame(TEXT, b"\xed\xa0\x80"), 1007),
    ("text with an overlong character", frame(TEXT, b"\xc0\xaf"), 1007),
    ("text beyond Unicode", frame(TEXT, b"\xf4\x90\x80\x80"), 1007),
    ("text that ends within a character", frame(TEXT, b"abc\xe2\x82"), 1007),
    ("fragments that end within a character", frame(TEXT, b"\xe2", fin=False) + frame(CONT, b"\x82"), 1007),
    ("empty last fragment within a character", frame(TEXT, b"\xe2", fin=False) + frame(CONT), 1007),
    ("bad byte after a ping in between", frame(TEXT, b"\xe2", fin=False) + frame(PING) + frame(CONT, b"a"), 1007),
    ("bad byte in a later piece", frame(TEXT, b"a" * (2 * TEXT_PIECE_BYTES + 1) + b"\xff"), 1007),
]  # fmt: skip  # one case in each line


def cases(table: list[tuple[str, bytes, list[Incoming]]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("data", "expected"), [pytest.param(*rest, id=name) for name, *rest in table])


@cases([(name, data, list(events)) for name, data, events in KEPT])
def test_valid_frame_is_returned_or_dropped(data: bytes, expected: list[Incoming]) -> None:
    connection = FrameReader()
    assert connection.feed(data) == expected
    assert connection.idle
    assert fed(data, data) == expected * 2
    if len(data) < 1000:
        assert fed_in_bytes(data) == expected


@pytest.mark.parametrize(("data", "expected"), [pytest.param(*rest, id=name) for name, *rest in CLOSED])
def test_close_is_reported_once_and_nothing_after_it(data: bytes, expected: Close) -> None:
    for connection_events in (fed(data), fed_in_bytes(data), fed(data + frame(PING)), fed(data, frame(PING), b"\xff")):
        assert connection_events == [expected]


@pytest.mark.parametrize(("data", "code"), [pytest.param(*rest, id=name) for name, *rest in BROKEN])
def test_violation_is_reported_once_and_nothing_after_it(data: bytes, code: int) -> None:
    connection = FrameReader()
    events = [event for event in connection.feed(data) if not isinstance(event, Ping)]
    assert outcome(events) == [code]
    assert not connection.idle
    assert held_bytes(connection) == 0
    assert connection.feed(frame(PING)) == []
    assert outcome(event for event in fed(data + frame(PING)) if not isinstance(event, Ping)) == [code]
    if len(data) < 1000:
        assert outcome(event for event in fed_in_bytes(data) if not isinstance(event, Ping)) == [code]


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data, _ in BROKEN])
def test_detail_of_a_violation_fits_into_a_close_frame(data: bytes) -> None:
    violation = fed(data)[-1]
    assert isinstance(violation, ProtocolViolation)
    assert 0 < len(violation.detail.encode()) <= CONTROL_PAYLOAD_BYTES - 2


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(b"\x81\x00", 1002, id="unmasked, after two bytes"),
        pytest.param(b"\xf1\x80", 1002, id="reserved bits, after two bytes"),
        pytest.param(b"\x80\x80", 1002, id="continuation of nothing, after two bytes"),
        pytest.param(frame(PING, b"a" * 126)[:8], 1002, id="long ping, before its payload"),
        pytest.param(frame(BINARY, length_bytes=8, length=1 << 63), 1002, id="impossible length, before its payload"),
        pytest.param(frame(TEXT, b"\xff", length=1000), 1007, id="invalid byte, before the end of its frame"),
        pytest.param(frame(TEXT, b"\xf4\x90", length=1000), 1007, id="beyond Unicode, after two bytes of four"),
        pytest.param(frame(TEXT, b"\xed\xa0", length=1000), 1007, id="surrogate, after two bytes of three"),
        pytest.param(frame(TEXT, b"\xed\xbf", fin=False), 1007, id="surrogate, before the next fragment"),
    ],
)
def test_violation_is_reported_as_soon_as_it_is_certain(data: bytes, code: int) -> None:
    assert outcome(fed(data)) == [code]
    assert outcome(fed_in_bytes(data)) == [code]


@pytest.mark.parametrize("start", [b"\xed", b"\xed\x9f", b"\xee\x80", b"\xf4\x8f", b"\xf0\x9f\x9a"])
def test_incomplete_valid_character_is_not_a_violation(start: bytes) -> None:
    assert fed(frame(TEXT, start, fin=False)) == []
    assert fed(frame(TEXT, start, length=1000)) == []


@pytest.mark.parametrize(
    ("data", "idle"),
    [
        pytest.param(b"", True, id="at first"),
        pytest.param(b"\x8a", False, id="after a byte of a header"),
        pytest.param(frame(BINARY, b"abc")[:7], False, id="within a header and payload"),
        pytest.param(frame(BINARY, b"abc")[:6], False, id="before a payload"),
        pytest.param(frame(PING, b"abc")[:8], False, id="within a ping"),
        pytest.param(frame(BINARY, b"abc", fin=False), False, id="between fragments"),
        pytest.param(frame(BINARY, b"abc", fin=False) + frame(CONT), True, id="after the last fragment"),
        pytest.param(frame(PING, b"abc"), True, id="after a ping"),
        pytest.param(close(1000), False, id="after a close"),
        pytest.param(b"\x70\x00", False, id="after a violation"),
    ],
)
def test_reader_is_idle_exactly_if_a_new_one_can_replace_it(data: bytes, idle: bool) -> None:
    connection = FrameReader()
    connection.feed(data)
    assert connection.idle is idle


def test_whole_control_frame_within_an_unfinished_one_is_payload() -> None:
    assert fed(frame(BINARY, b"\0" * 9, mask=bytes(4))[:7], frame(PING, b"xx", mask=bytes(4)), frame(PONG)) == []
    assert fed(b"\x89", b"\x88" + bytes(4) + b"\x8a\x80abcdef"[:8]) == [Ping(b"\x8a\x80abcdef")]


def test_ping_outlives_the_buffer_that_it_was_read_into() -> None:
    buffer = bytearray(frame(PING, b"hello", mask=bytes(4)) * 2)
    events = FrameReader().feed(memoryview(buffer))
    single = FrameReader().feed(memoryview(buffer)[: len(buffer) // 2])
    buffer[:] = bytes(len(buffer))
    assert events == [Ping(b"hello"), Ping(b"hello")]
    assert single == [Ping(b"hello")]


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_gibibyte_of_data_costs_no_memory(opcode: int) -> None:
    # The test uses longer reads than a socket would give, because tracing the memory makes each read slow.
    size, read = 1 << 30, memoryview(bytes(1 << 24))
    connection = FrameReader()
    tracemalloc.start()
    try:
        assert connection.feed(frame(opcode, length_bytes=8, length=size, mask=bytes(4))) == []
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(size // len(read)):
            assert connection.feed(read) == []
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert connection.idle
    assert peak - before < 4 * TEXT_PIECE_BYTES


# Tests with any bytes, in pieces of any size

# The test has no time limit, so that it does not fail on a busy machine.
FAST = settings(deadline=None, max_examples=examples(100), suppress_health_check=[HealthCheck.too_slow])
MASKS = st.binary(min_size=4, max_size=4)
SIZES = st.sampled_from([0, 1, 2, 3, 5, 124, 125, 126, 127, 300])


@st.composite
def valid_messages(draw: st.DrawFn) -> tuple[bytes, list[Incoming]]:
    """Generates a data message in one or more fragments with control frames between them, or a control frame."""
    pieces: list[bytes] = []
    events: list[Incoming] = []

    def draw_control() -> None:
        opcode, payload = draw(st.sampled_from([PING, PONG])), draw(st.binary(max_size=20))
        pieces.append(frame(opcode, payload, mask=draw(MASKS)))
        if opcode == PING:
            events.append(Ping(payload))

    opcode = draw(st.sampled_from([TEXT, BINARY, PING]))
    if opcode == PING:
        draw_control()
    else:
        payload = draw(st.text(max_size=60)).encode() if opcode == TEXT else draw(st.binary(max_size=60))
        payload *= draw(st.sampled_from([1, 1, 5]))
        cuts = [0, *sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3))), len(payload)]
        for number, (start, end) in enumerate(itertools.pairwise(cuts)):
            fin, code = number == len(cuts) - 2, CONT if number else opcode
            pieces.append(frame(code, payload[start:end], fin=fin, mask=draw(MASKS)))
            if not fin and draw(st.booleans()):
                draw_control()
    return b"".join(pieces), events


def split(data: bytes, cuts: list[int]) -> list[memoryview]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [memoryview(data)[start:end] for start, end in itertools.pairwise(edges)]


CUTS = st.lists(st.integers(0, 5000), max_size=12)


@FAST
@given(messages=st.lists(valid_messages(), max_size=4), cuts=CUTS, ending=st.sampled_from([None, 1000, 4999]))
def test_valid_messages_have_the_same_result_in_every_split(
    messages: list[tuple[bytes, list[Incoming]]], cuts: list[int], ending: int | None
) -> None:
    data = b"".join(piece for piece, _ in messages)
    expected = [event for _, events in messages for event in events]
    connection = FrameReader()
    got = [event for read in split(data, cuts) for event in connection.feed(read)]
    assert got == expected
    assert connection.idle
    assert fed(data + frame(CLOSE) + frame(PING)) == [*expected, Close(None)]
    if ending is not None:
        assert fed(*split(data + close(ending), cuts)) == [*expected, Close(ending)]


# Payloads with complete characters, incomplete characters, and bytes that belong to no character
TEXTS = [
    b"a",
    "\u20ac".encode(),
    b"\xe2\x82",
    b"\xac",
    b"\xed\xa0",
    b"\xed\x9f",
    b"\xed\x9f\xbf",
    b"\xf4\x8f",
    b"\xf4\x90",
    b"\xff",
]


@st.composite
def frames_of_any_kind(draw: st.DrawFn) -> bytes:
    """Generates a complete frame, which may be wrong in any way, except that its length is never too great."""
    opcode = draw(st.sampled_from([CONT, CONT, TEXT, TEXT, BINARY, PING, PONG, CLOSE]) | st.integers(0, 15))
    if opcode in {CONT, TEXT}:
        payload = draw(st.sampled_from(TEXTS[:2])) * draw(SIZES) + draw(st.sampled_from([b"", *TEXTS]))
    else:
        payload = draw(st.binary(max_size=3)) * draw(SIZES)
    if opcode == CLOSE and draw(st.booleans()):
        codes = st.sampled_from([1000, 1004, 1005, 1012, 3000, 4999, 5000]) | st.integers(0, 65535)
        payload = draw(codes).to_bytes(2, "big") + draw(st.sampled_from([b"", b"bye", b"\xff"]))
    return frame(
        opcode,
        payload,
        fin=draw(st.sampled_from([True, True, False])),
        reserved=draw(st.sampled_from([0] * 12 + [1, 2, 4])),
        mask=None if draw(st.integers(0, 11)) == 11 else draw(MASKS),
        length_bytes=draw(st.sampled_from([None, None, 2, 8])),
    )


@st.composite
def texts_of_any_kind(draw: st.DrawFn) -> bytes:
    """Generates a valid or invalid text message in fragments. The last fragment of the message can be missing."""
    payloads = draw(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4))
    last = len(payloads) - 1 if draw(st.booleans()) else len(payloads)
    return b"".join(
        frame(CONT if number else TEXT, payload, fin=number == last, mask=draw(MASKS))
        for number, payload in enumerate(payloads)
    )


KNOWN = st.sampled_from([data for _, data, *_ in [*KEPT, *CLOSED, *BROKEN] if len(data) < 1000])
VALID = valid_messages().map(lambda message: message[0])
PIECES = st.lists(KNOWN | VALID | texts_of_any_kind() | frames_of_any_kind(), max_size=4).map(b"".join)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Generates frames in which garbage is inserted anywhere, or replaces some of the bytes.

    The end of the last frame can be missing.
    """
    data = draw(PIECES)
    for _ in range(draw(st.integers(0, 3))):
        at, gone = draw(st.integers(0, len(data))), draw(st.integers(0, 4))
        data = data[:at] + draw(st.binary(max_size=8)) + data[at + gone :]
    return data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data


# Bytes to append to a payload. If a payload ends with an incomplete character or an incomplete close code, one of these
# endings completes it.
ENDINGS = [b"", b"\x80", b"\x80\x80", b"\x80\x80\x80", b"\xbf", b"\xbf\xbf", b"\xbf\xbf\xbf", b"\x03\xe8"]


def may_become_utf8(text: bytes) -> bool:
    return any(is_utf8(text + ending) for ending in ENDINGS)


def is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def oracle(data: bytes) -> list[Incoming | int]:
    """Returns the result that the websockets library has for the complete frames in the given bytes.

    The websockets library does not check whether the text of a message is UTF-8. Therefore, Python's decoder checks the
    text of each message.
    """
    protocol = ServerProtocol(state=State.OPEN, max_size=None)
    protocol.receive_data(data)
    events: list[Incoming | int] = []
    text: bytes | None = None
    for received in protocol.events_received():
        assert isinstance(received, Frame)
        payload = bytes(received.data)
        if received.opcode is Opcode.PING:
            events.append(Ping(payload))
        elif received.opcode is Opcode.TEXT:
            text = payload
        elif received.opcode is Opcode.CONT and text is not None:
            text += payload
        if text is not None and received.opcode in {Opcode.TEXT, Opcode.CONT}:
            if not (is_utf8 if received.fin else may_become_utf8)(text):
                return [*events, 1007]
            if received.fin:
                text = None
    if isinstance(protocol.parser_exc, UnicodeDecodeError):
        events.append(1007)
    elif protocol.close_rcvd is not None:
        # A close frame between fragments is a violation for the library, but not for the bridge.
        code = protocol.close_rcvd.code
        events.append(Close(None if code == CloseCode.NO_STATUS_RCVD else int(code)))
    elif isinstance(protocol.parser_exc, ProtocolError):
        events.append(1002)
    else:
        assert protocol.parser_exc is None
    return events


def completions(data: bytes) -> list[bytes] | None:
    """Returns the data with its last frame completed in several ways, or None if the length's highest bit is set.

    All frames before the last frame must be valid. If the length of the last frame is too great for a test, the result
    has a smaller length, also in eight bytes.
    """
    at = 0
    while at < len(data):
        second = data[at + 1] if at + 1 < len(data) else 0x80
        extended = {126: 2, 127: 8}.get(second & 127, 0)
        size = 2 + extended + 4
        head = data[at : at + size]
        # The missing bytes of the head are filled with zeros, so that a missing mask and a missing length are zero.
        head = head[:1] + bytes([second]) + head[2:].ljust(size - 2, b"\0")
        length = int.from_bytes(head[2 : 2 + extended], "big") if extended else second & 127
        payload = data[at + size : at + size + length]
        if len(payload) < length or at + size > len(data):
            break
        at += size + length
    else:
        return [data]
    if length >> 63:
        return None
    if length > 65536:
        length = max(126, len(payload))
        head = head[:2] + length.to_bytes(8, "big") + head[10:]
    missing, turn = length - len(payload), len(payload) % 4
    mask = head[-4:][turn:] + head[-4:][:turn]
    ends = [ending.ljust(missing, b"a")[:missing] for ending in ENDINGS]
    return [data[:at] + head + payload + apply_mask(end, mask) for end in ends]


def check(data: bytes, cuts: list[int]) -> None:
    """Feeds bytes in pieces, and checks that the reader agrees with the library and keeps almost none of the bytes."""
    events = fed(data)
    ours, theirs = outcome(events), oracle(data)
    assert not any(isinstance(event, Close | ProtocolViolation) for event in events[:-1])
    if ours != theirs:
        # The library checks a frame only when it is complete, except for the frame's first two bytes. If the reader
        # reports a violation before the frame is complete, the library must report it for every completion.
        assert isinstance(events[-1], ProtocolViolation)
        assert ours[:-1] == theirs
        ends = completions(data)
        if ends is None:
            assert ours[-1] == 1002
        else:
            assert all(oracle(end) == ours for end in ends)
    connection = FrameReader()
    so_far: list[Incoming] = []
    at = 0
    for read in split(data, cuts):
        new = connection.feed(read)
        # A single read has at most these results: one for a frame that began earlier, one for every six bytes, and one
        # violation.
        assert len(new) <= 1 + len(read) // 6 + 1
        so_far += new
        at += len(read)
        assert so_far == fed(data[:at])
        assert held_bytes(connection) <= HELD_AT_MOST
        if connection.idle:
            assert held_bytes(connection) == 0
            connection = FrameReader()
    assert so_far == events


@settings(FAST, max_examples=examples(200))
@given(frames=st.lists(frames_of_any_kind(), max_size=5).map(b"".join), cuts=CUTS)
def test_frames_of_any_kind_have_the_result_of_the_library(frames: bytes, cuts: list[int]) -> None:
    assert outcome(fed(frames)) == oracle(frames)
    check(frames, cuts)


@settings(FAST, max_examples=examples(400))
@given(data=damaged(), cuts=CUTS)
def test_garbage_anywhere_has_the_result_of_the_library(data: bytes, cuts: list[int]) -> None:
    check(data, cuts)


@FAST
@given(data=st.binary(max_size=40), cuts=CUTS)
def test_any_bytes_have_the_result_of_the_library(data: bytes, cuts: list[int]) -> None:
    check(data, cuts)


# Frames with a broken length are left out, because the library accepts a length of 2^63 and waits for the bytes.
BROKEN_THERE = [pytest.param(data, id=name) for name, data, _ in BROKEN if "length" not in name]


@pytest.mark.parametrize("data", BROKEN_THERE)
def test_violation_is_one_for_the_library_too(data: bytes) -> None:
    assert outcome(fed(data)) == oracle(data)


# Tests of frames for which a client is charged less than their size


def test_pongs_that_end_with_the_last_bytes_are_counted_with_their_size() -> None:
    connection = FrameReader()
    connection.feed(frame(PONG) + frame(PING, b"x") + frame(PONG, b"y" * 125))
    assert (connection.frames, connection.pongs, connection.pong_bytes) == (3, 2, 6 + 131)
    connection.feed(frame(PONG, b"abc"))
    assert (connection.frames, connection.pongs, connection.pong_bytes) == (1, 1, 9)
    connection.feed(frame(PING))
    assert (connection.pongs, connection.pong_bytes) == (0, 0)


def test_pong_counts_with_its_last_byte() -> None:
    connection = FrameReader()
    pong = frame(PONG, b"abc")
    connection.feed(pong[:-1])
    assert (connection.frames, connection.pongs, connection.pong_bytes) == (1, 0, 0)
    connection.feed(pong[-1:])
    assert (connection.frames, connection.pongs, connection.pong_bytes) == (0, 1, len(pong))


def test_close_frame_counts_with_its_last_byte_and_once() -> None:
    connection = FrameReader()
    close = frame(CLOSE, b"\x03\xe8bye")
    connection.feed(frame(PING) + close[:-1])
    assert (connection.frames, connection.close_bytes) == (2, 0)
    connection.feed(close[-1:] + b"after")
    assert (connection.frames, connection.close_bytes) == (0, len(close))
    connection.feed(close)
    assert (connection.frames, connection.close_bytes) == (0, 0)


def test_invalid_close_frame_has_no_size() -> None:
    connection = FrameReader()
    connection.feed(frame(CLOSE, b"\x03"))
    assert (connection.frames, connection.close_bytes) == (1, 0)
