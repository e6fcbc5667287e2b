"""Tests that the channel finds its deliveries in the bytes of a connection, no matter how the bytes are split."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import body, commands, frame, heartbeat
from pamqp.header import ContentHeader, ProtocolHeader

from bridge.amqp.wire import compat
from bridge.amqp.wire.fast_channel import EMPTY_HEADER, LARGE, FastChannel
from bridge.amqp.wire.properties import MessageProperties
from bridge.amqp.wire.settlement import Acknowledgement
from tests.support.fake_amqp import OWN, FakeTransport, delivery, header, method, part, payload_of, with_payload

compat.install_lenient_decoders()

Delivered = tuple[int, bool, str, str, bytes]
READ_END = None
"""Stands for a call of `on_read_end` in the list of deliveries."""


class RecordedChannel(FastChannel):
    """A channel that records its deliveries and the written bytes."""

    def __init__(self, number: int | None = OWN) -> None:
        super().__init__()
        self.log: list[Delivered | None] = []
        self.properties: list[MessageProperties] = []
        self.transport = FakeTransport()
        self.attach(self.transport)
        if number is not None:
            self.consume(number, self)

    def on_delivery(
        self, tag: int, redelivered: bool, exchange: str, routing_key: str, properties: MessageProperties, body: bytes
    ) -> None:
        assert type(body) is (bytes if len(body) < LARGE else bytearray)
        self.log.append((tag, redelivered, exchange, routing_key, body))
        self.properties.append(properties)

    def on_read_end(self) -> None:
        self.log.append(READ_END)

    @property
    def sent(self) -> list[bytes]:
        return self.transport.written

    @property
    def delivered(self) -> list[Delivered]:
        return [entry for entry in self.log if entry is not READ_END]


@pytest.fixture
def channel() -> RecordedChannel:
    return RecordedChannel()


DELIVERED: Delivered = (1, False, "killmails", "", b"body")


# Deliveries


def test_delivery_in_one_piece_is_reported_and_nothing_is_returned(channel: RecordedChannel) -> None:
    assert channel.feed(delivery(b"body")) == b""
    assert channel.log == [DELIVERED, READ_END]


def test_all_arguments_of_the_method_are_reported(channel: RecordedChannel) -> None:
    data = method(2**63 - 1, redelivered=True, exchange="x" * 127, routing_key="ä" * 127) + header(1) + part(b"1")
    channel.feed(data)
    assert channel.delivered == [(2**63 - 1, True, "x" * 127, "ä" * 127, b"1")]


def test_names_that_are_not_utf8_have_question_marks(channel: RecordedChannel) -> None:
    data = method(exchange="ab", routing_key="cde").replace(b"\x02ab\x03cde", b"\x02a\xff\x03\xfed\xfd")
    channel.feed(data + header(0))
    assert channel.delivered == [(1, False, "a?", "?d?", b"")]


def test_body_in_several_frames_is_reported_in_one_piece(channel: RecordedChannel) -> None:
    channel.feed(delivery(b"bo", b"d", b"y"))
    assert channel.log == [DELIVERED, READ_END]


def test_empty_body_is_reported_with_the_header(channel: RecordedChannel) -> None:
    channel.feed(delivery())
    assert channel.log == [(1, False, "killmails", "", b""), READ_END]


def test_delivery_waits_for_the_last_of_its_frames(channel: RecordedChannel) -> None:
    for piece in (method(), header(4), part(b"bod")):
        assert channel.feed(piece) == b""
        assert channel.log == []
    channel.feed(part(b"y"))
    assert channel.log == [DELIVERED, READ_END]


def test_deliveries_of_one_read_are_reported_in_order_with_one_read_end(
    channel: RecordedChannel,
) -> None:
    channel.feed(b"".join(delivery(b"body", tag=tag) for tag in (1, 2, 3)))
    assert [entry and entry[0] for entry in channel.log] == [1, 2, 3, READ_END]


def test_one_delivery_does_not_affect_the_next(channel: RecordedChannel) -> None:
    channel.feed(delivery(b"bo", b"dy"))
    channel.feed(delivery(tag=2))
    channel.feed(delivery(b"2", tag=3))
    assert [(tag, data) for tag, _, _, _, data in channel.delivered] == [(1, b"body"), (2, b""), (3, b"2")]


# Everything else


OTHERS = [
    frame.marshal(heartbeat.Heartbeat(), 0),
    frame.marshal(commands.Basic.Deliver("other", 9, False, "elsewhere", "key"), OWN + 1),
    frame.marshal(ContentHeader(body_size=3), OWN + 1),
    frame.marshal(body.ContentBody(b"abc"), OWN + 1),
    frame.marshal(commands.Basic.ConsumeOk("consumer"), OWN),
    frame.marshal(commands.Channel.Close(404, "NOT_FOUND", 0, 0), OWN),
    frame.marshal(commands.Basic.Return(312, "NO_ROUTE", "x", "y"), OWN)
    + frame.marshal(ContentHeader(body_size=1), OWN)
    + frame.marshal(body.ContentBody(b"1"), OWN),
]
"""Frames of other channels, and frames of the consumer's channel that do not belong to a delivery, such as a returned
message."""


@pytest.mark.parametrize("other", OTHERS)
def test_frame_that_is_no_delivery_of_the_channels_is_returned_unchanged(
    channel: RecordedChannel, other: bytes
) -> None:
    assert channel.feed(other) == other
    assert channel.log == []


def test_frames_that_are_not_the_channels_are_returned_in_order(channel: RecordedChannel) -> None:
    between = [delivery(b"body", tag=tag) for tag in range(len(OTHERS))]
    data = b"".join(mine + other for mine, other in zip(between, OTHERS, strict=True))
    assert channel.feed(data) == b"".join(OTHERS)
    assert [tag for tag, *_ in channel.delivered] == list(range(len(OTHERS)))


def test_frame_of_another_channel_within_a_delivery_is_returned_and_does_not_disturb_it(
    channel: RecordedChannel,
) -> None:
    other = b"".join(OTHERS[:4])
    assert channel.feed(method() + other + header(4) + other + part(b"bo") + other + part(b"dy")) == other * 3
    assert channel.log == [DELIVERED, READ_END]


def test_everything_is_returned_before_the_channel_is_known() -> None:
    channel = RecordedChannel(number=None)
    data = b"".join(OTHERS) + delivery(b"body")
    assert channel.feed(data) == data
    assert channel.log == []
    channel.consume(OWN, channel)
    assert channel.feed(data) == b"".join(OTHERS)
    assert channel.log == [DELIVERED, READ_END]


# Deliveries in pieces of any size


@dataclass(frozen=True)
class Stretch:
    """Consecutive frames, and the delivery that they contain, or None if they contain no delivery."""

    frames: list[bytes]
    delivered: Delivered | None


@st.composite
def deliveries(draw: st.DrawFn) -> Stretch:
    parts = draw(st.lists(st.binary(min_size=1, max_size=30), max_size=3))
    tag, redelivered = draw(st.integers(1, 2**63 - 1)), draw(st.booleans())
    exchange, routing_key = draw(st.text("abc.-", max_size=20)), draw(st.text(max_size=60))
    properties = commands.Basic.Properties(message_type=draw(st.none() | st.text(max_size=5)))
    frames = [
        method(tag, redelivered=redelivered, exchange=exchange, routing_key=routing_key),
        header(sum(map(len, parts)), properties),
        *map(part, parts),
    ]
    return Stretch(frames, (tag, redelivered, exchange, routing_key, b"".join(parts)))


streams = st.lists(deliveries() | st.sampled_from(OTHERS).map(lambda other: Stretch([other], None)), max_size=12)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """Returns the data, split at the given places."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


@given(stream=streams, cuts=st.lists(st.integers(0, 5000), max_size=20) | st.just(list(range(5000))))
def test_result_is_the_same_however_the_bytes_are_split(stream: list[Stretch], cuts: list[int]) -> None:
    channel = RecordedChannel()
    data = b"".join(b"".join(stretch.frames) for stretch in stream)
    ends = list(accumulate(sum(map(len, stretch.frames)) for stretch in stream))
    fed, returned = 0, b""
    for piece in pieces(data, cuts):
        before = len(channel.log)
        due = [
            stretch.delivered
            for stretch, end in zip(stream, ends, strict=True)
            if stretch.delivered is not None and fed < end <= fed + len(piece)
        ]
        returned += channel.feed(piece)
        fed += len(piece)
        assert channel.log[before:] == [*due, *([READ_END] if due else [])]
        whole = [stretch for stretch, end in zip(stream, ends, strict=True) if stretch.delivered is None and end <= fed]
        others = b"".join(frames for stretch in whole for frames in stretch.frames)
        assert returned.startswith(others), "complete frames are not held back"
    assert returned == b"".join(b"".join(stretch.frames) for stretch in stream if stretch.delivered is None)


# Bytes that are not AMQP

BROKEN = {
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "protocol header": ProtocolHeader().marshal(),
    "unknown frame type": b"\x04" + frame.marshal(heartbeat.Heartbeat(), 0)[1:],
    "wrong frame end": OTHERS[4][:-1] + b"\xcd",
    "wrong end of a frame of a delivery": method()[:-1] + b"\x00",
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_bytes_that_are_not_amqp_end_the_channel(channel: RecordedChannel, broken: bytes) -> None:
    behind = delivery(b"body", tag=2) + OTHERS[0]
    assert channel.error is None
    assert channel.feed(delivery(b"body") + OTHERS[0] + broken + behind) == OTHERS[0]
    assert channel.log == [DELIVERED, READ_END]
    assert channel.error
    for more in (behind, b"\x01", b""):
        assert channel.feed(more) == b""
    assert channel.log == [DELIVERED, READ_END]


@given(kind=st.sampled_from(sorted(BROKEN)), cuts=st.lists(st.integers(0, 500), max_size=10))
def test_bytes_that_are_not_amqp_are_returned_before_the_channel_is_known(kind: str, cuts: list[int]) -> None:
    channel = RecordedChannel(number=None)
    data = OTHERS[4] + BROKEN[kind] + delivery(b"body", tag=2) + OTHERS[0]
    assert b"".join(map(channel.feed, pieces(data, cuts))) == data
    assert channel.error
    assert channel.log == []


# Malformed deliveries

PAYLOAD = payload_of(method(exchange="killmails", routing_key="key"))
IDENTIFIED = 4
"""The number of bytes that the class id and the method id take at the start of a method frame's payload."""
AT_EXCHANGE = PAYLOAD.index(b"\x09killmails")


def promising(payload: bytes, at: int, length: int) -> bytes:
    """Returns the payload, with the length octet at the index `at` replaced by `length`.

    The length octet is the first octet of a string.
    """
    return payload[:at] + bytes([length]) + payload[at + 1 :]


CUT_SHORT = {
    **{f"{end} bytes of a method": with_payload(method(), PAYLOAD[:end]) for end in range(len(PAYLOAD))},
    **{
        f"{name} of {length} bytes": with_payload(method(), promising(PAYLOAD, at, length))
        for name, at, length in [
            ("consumer's tag", IDENTIFIED, 255),
            ("consumer's tag", IDENTIFIED, len(PAYLOAD) - IDENTIFIED - 1),
            ("exchange", AT_EXCHANGE, 255),
            ("exchange", AT_EXCHANGE, len(PAYLOAD) - AT_EXCHANGE - 1),
            ("routing key", AT_EXCHANGE + 10, 255),
            ("routing key", AT_EXCHANGE + 10, 4),
        ]
    },
    **{
        f"{end} bytes of a header": method() + with_payload(header(4), payload_of(header(4))[:end])
        for end in range(EMPTY_HEADER)
    },
}
"""Deliveries in which every frame is complete, but a method, a header or a string is too short."""


@pytest.mark.parametrize("cut_short", CUT_SHORT.values(), ids=CUT_SHORT)
@pytest.mark.parametrize("before", [b"", OTHERS[0], delivery(b"body")], ids=["first", "second", "after-a-delivery"])
def test_delivery_that_is_cut_short_ends_the_channel(channel: RecordedChannel, before: bytes, cut_short: bytes) -> None:
    """The malformed delivery is not reported.

    If complete deliveries came before the malformed one, `on_read_end` is called for them.
    """
    handed_out = [DELIVERED, READ_END] if before == delivery(b"body") else []
    behind = header(4) + part(b"late") + delivery(b"body", tag=2) + OTHERS[0]
    assert channel.feed(before + cut_short + behind) == (b"" if handed_out else before)
    assert channel.error is not None
    assert channel.error.startswith("a malformed delivery: ")
    assert channel.log == handed_out
    assert channel.feed(behind) == b""
    assert channel.log == handed_out


@given(
    kind=st.sampled_from(sorted(CUT_SHORT)), cuts=st.lists(st.integers(0, 500), max_size=10) | st.just([*range(500)])
)
def test_delivery_that_is_cut_short_ends_the_channel_however_it_is_split(kind: str, cuts: list[int]) -> None:
    channel = RecordedChannel()
    behind = header(4) + part(b"late") + delivery(b"body", tag=2)
    data = delivery(b"body") + OTHERS[4] + CUT_SHORT[kind] + behind
    assert b"".join(map(channel.feed, pieces(data, cuts))) == OTHERS[4]
    assert channel.delivered == [DELIVERED]


CONTRADICTORY = {
    "longer body than announced": method() + header(3) + part(b"four"),
    "further body than announced": method() + header(3) + part(b"on") + part(b"two"),
    "body before its header": method() + part(b"four"),
    "two headers": method() + header(4) + header(4),
    "another delivery instead of the body": method() + header(4) + method(tag=2),
    "another delivery instead of the header": method() + method(tag=2),
}


@pytest.mark.parametrize("contradictory", CONTRADICTORY.values(), ids=CONTRADICTORY)
def test_delivery_that_contradicts_itself_ends_the_channel(channel: RecordedChannel, contradictory: bytes) -> None:
    assert channel.feed(delivery(b"body") + contradictory + delivery(b"body", tag=3)) == b""
    assert channel.error is not None
    assert channel.error.startswith("a malformed delivery: ")
    assert channel.log == [DELIVERED, READ_END]


@pytest.mark.parametrize("left_behind", [OTHERS[4][:9], b"HTTP/1.1 400 Bad Request"], ids=["half a frame", "no AMQP"])
def test_next_connection_does_not_get_bytes_of_the_previous_one(left_behind: bytes) -> None:
    channel = RecordedChannel(number=None)
    channel.feed(left_behind)
    channel.attach(channel.transport)
    assert channel.feed(OTHERS[0]) == OTHERS[0]
    channel.consume(OWN, channel)
    assert channel.feed(delivery(b"body")) == b""
    assert channel.log == [DELIVERED, READ_END]


def test_large_frame_in_small_pieces_is_joined_once(channel: RecordedChannel) -> None:
    """If 64 MB arrive in pieces of 64 KB, joining all data again after each piece would copy 32 GB."""
    piece = bytes(65536)
    frame_of_it = part(piece * 1024)
    channel.feed(method() + header(len(piece) * 1024) + frame_of_it[:7])
    began = time.process_time()
    for at in range(7, len(frame_of_it), len(piece)):
        channel.feed(frame_of_it[at : at + len(piece)])
    assert time.process_time() - began < 3
    assert [len(delivered[4]) for delivered in channel.delivered] == [len(piece) * 1024]


def test_header_of_the_smallest_size_is_not_cut_short(channel: RecordedChannel) -> None:
    assert len(payload_of(header(0))) == EMPTY_HEADER
    assert channel.feed(method() + header(0)) == b""
    assert channel.log == [(1, False, "killmails", "", b""), READ_END]


def test_cut_short_delivery_of_another_channel_is_ignored() -> None:
    channel = RecordedChannel(OWN + 1)
    broken = b"".join(CUT_SHORT.values())
    assert channel.feed(broken) == broken
    channel.consume(OWN, channel)
    assert channel.feed(delivery(b"body")) == b""
    assert channel.log == [DELIVERED, READ_END]


def test_protocol_header_of_another_amqp_version_is_not_held_back() -> None:
    channel = RecordedChannel(number=None)
    reply = ProtocolHeader(0, 8, 0).marshal()
    assert len(reply) == 8
    assert channel.feed(reply[:7]) == b""
    assert channel.feed(reply[7:]) == reply


# Properties


texts = st.none() | st.text(max_size=63)
values = st.recursive(
    st.booleans() | st.integers(-(2**31), 2**31 - 1) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)
all_properties = st.builds(
    commands.Basic.Properties,
    content_type=texts,
    content_encoding=texts,
    headers=st.none() | st.dictionaries(st.text(max_size=10), values, max_size=4),
    delivery_mode=st.none() | st.sampled_from([1, 2]),
    priority=st.none() | st.integers(0, 9),
    correlation_id=texts,
    reply_to=texts,
    expiration=texts,
    message_id=texts,
    timestamp=st.none() | st.integers(0, 4_000_000_000).map(lambda second: datetime.fromtimestamp(second, UTC)),
    message_type=texts,
    user_id=texts,
    app_id=texts,
)


@given(properties=all_properties)
def test_type_and_encoding_are_those_that_the_library_reads_with_any_other_properties(
    properties: commands.Basic.Properties,
) -> None:
    payload = ContentHeader(body_size=5, properties=properties).marshal()
    theirs = ContentHeader()
    theirs.unmarshal(payload)
    read = MessageProperties(payload)
    assert (read.type, read.encoding) == (theirs.properties.message_type, theirs.properties.content_encoding)
    assert (read.type or "", read.encoding or "") == (
        properties.message_type or "",
        properties.content_encoding or "",
    )
    assert dict(read.decode()) == dict(theirs.properties)


def properties_with(flags: int, data: bytes) -> MessageProperties:
    return MessageProperties(b"\x00\x3c\x00\x00" + bytes(8) + flags.to_bytes(2, "big") + data)


@pytest.mark.parametrize(
    ("flags", "data", "kind", "encoding"),
    [
        pytest.param(0x0000, b"", None, None, id="nothing"),
        pytest.param(0x0020, b"\x01a", "a", None, id="type"),
        pytest.param(0x4000, b"\x04gzip", None, "gzip", id="encoding"),
        pytest.param(0x4020, b"\x00\x00", "", "", id="both-empty"),
        pytest.param(0x4020, b"\x02\xffg\x02t\xff", "t?", "?g", id="not-utf8"),
        pytest.param(0x0020, b"\xff" + b"\xff" * 255, "?" * 255, None, id="not-utf8-must-not-grow"),
        pytest.param(0x0060, b"\xff" * 8 + b"\x01a", "a", None, id="behind-a-time-beyond-the-calendar"),
        pytest.param(0x2020, b"\x00\x00\x00\x05\x02\xff\xfet\x01" + b"\x01a", "a", None, id="behind-a-table"),
        pytest.param(0x003C, b"\x01a\x01u\x01p\x01c", "a", None, id="before-all-others"),
    ],
)
def test_type_and_encoding_are_read_leniently(flags: int, data: bytes, kind: str | None, encoding: str | None) -> None:
    properties = properties_with(flags, data)
    assert (properties.type, properties.encoding) == (kind, encoding)
    decoded = properties.decode()
    assert (decoded.message_type, decoded.content_encoding) == (kind, encoding)


@pytest.mark.parametrize(
    ("flags", "data"),
    [
        pytest.param(0x0020, b"", id="type-missing"),
        pytest.param(0x0020, b"\x01", id="type-empty"),
        pytest.param(0x0020, b"\x05kind", id="type"),
        pytest.param(0x0020, b"\xff" + b"x" * 254, id="longest-type"),
        pytest.param(0x4000, b"", id="encoding-missing"),
        pytest.param(0x4000, b"\x05gzip", id="encoding"),
        pytest.param(0x4020, b"\x06gzip\x04kind"[:6], id="encoding-before-a-type-that-is-missing"),
        pytest.param(0x4020, b"\x04gzip\x05kind", id="type-behind-an-encoding"),
        pytest.param(0x4060, b"\x04gzip" + bytes(8) + b"\x05kind", id="type-behind-a-time"),
    ],
)
def test_type_or_encoding_that_is_cut_short_gives_neither(flags: int, data: bytes) -> None:
    properties = properties_with(flags, data)
    assert (properties.type, properties.encoding) == (None, None)


EVERYTHING = ContentHeader(
    body_size=5,
    properties=commands.Basic.Properties(
        "text/plain", "gzip", {"a": 1}, 2, 5, "c", "r", "e", "m", datetime(2024, 1, 1, tzinfo=UTC), "kind"
    ),
).marshal()


@pytest.mark.parametrize("end", range(len(EVERYTHING) - len("kind")))
def test_properties_that_end_before_the_type_give_none(end: int) -> None:
    properties = MessageProperties(EVERYTHING[:end])
    assert (properties.type, properties.encoding) == (None, None)


def test_delivery_with_properties_that_end_too_early_is_reported(channel: RecordedChannel) -> None:
    payload = EVERYTHING[:-6]
    damaged = b"\x02\x00\x03" + len(payload).to_bytes(4, "big") + payload + b"\xce"
    assert channel.feed(method() + damaged + part(b"lives")) == b""
    assert [data for *_, data in channel.delivered] == [b"lives"]
    assert (channel.properties[0].type, channel.properties[0].encoding) == (None, None)


def test_properties_that_the_library_can_not_decode_leave_type_and_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("anything")

    payload = ContentHeader(
        body_size=0, properties=commands.Basic.Properties(message_type="kill", content_encoding="gzip", priority=3)
    ).marshal()
    properties = MessageProperties(payload)
    monkeypatch.setattr(ContentHeader, "unmarshal", fail)
    assert properties.decode().message_type == "kill"
    assert properties.decode().content_encoding == "gzip"
    assert properties.decode().priority is None


def test_each_delivery_has_its_own_properties(channel: RecordedChannel) -> None:
    for kind in ("a", None, "b"):
        channel.feed(method() + header(0, commands.Basic.Properties(message_type=kind, priority=3)))
    assert [each.type for each in channel.properties] == ["a", None, "b"]
    assert [each.decode().priority for each in channel.properties] == [3, 3, 3]


# Acknowledgements


@given(
    acknowledgements=st.lists(st.builds(Acknowledgement, st.integers(1, 2**63 - 1), st.booleans()), min_size=1),
    number=st.integers(1, 65535),
)
def test_acknowledgements_are_what_the_library_would_send_in_one_write(
    acknowledgements: list[Acknowledgement], number: int
) -> None:
    channel = RecordedChannel(number)
    channel.acknowledge(acknowledgements)
    assert channel.sent == [
        b"".join(frame.marshal(commands.Basic.Ack(tag, multiple), number) for tag, multiple in acknowledgements)
    ]


def test_no_acknowledgement_is_no_write(channel: RecordedChannel) -> None:
    channel.acknowledge([])
    assert channel.sent == []


def test_acknowledgement_without_a_connection_is_dropped() -> None:
    channel, receiver = FastChannel(), RecordedChannel()
    channel.consume(OWN, receiver)
    channel.acknowledge([Acknowledgement(1, True)])
    channel.pause_reading()
    channel.resume_reading()
    assert channel.feed(OTHERS[0]) == OTHERS[0]
    assert receiver.transport.written == []


def test_nothing_is_written_after_the_last_frame_of_the_library(channel: RecordedChannel) -> None:
    channel.transport.closing = True
    channel.acknowledge([Acknowledgement(1, True)])
    channel.pause_reading()
    channel.resume_reading()
    assert (channel.sent, channel.transport.paused) == ([], [])


def test_reading_is_paused_and_resumed(channel: RecordedChannel) -> None:
    channel.pause_reading()
    channel.resume_reading()
    assert channel.transport.paused == [True, False]
