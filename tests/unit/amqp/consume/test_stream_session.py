"""Tests that the deliveries of a stream are reported and settled in the right order."""

from __future__ import annotations

from zlib import crc32

import pytest
from pamqp import commands

from bridge.amqp.consume import stream_markers
from bridge.amqp.consume.gaps import GapReporter
from bridge.amqp.consume.stream_markers import MARKER_TYPE, StreamMarker
from bridge.amqp.consume.stream_position import RECREATED, TRUNCATED
from bridge.amqp.consume.stream_reader import StreamConfig, StreamReader
from bridge.amqp.consume.stream_session import NO_OFFSET, POSSIBLE_GAP, StreamSession
from bridge.amqp.status import Gap, Status
from bridge.amqp.wire.fast_channel import FastChannel
from bridge.amqp.wire.properties import StreamPropertiesReader
from bridge.contract.update_id import UpdateId
from bridge.metrics import Metrics
from tests.support.delivery_handler import CAUGHT_UP, Delivered, IdOnly, Recorder
from tests.support.fake_amqp import OWN, FakeAmqp, FakeTransport, header, method, part

STREAM = StreamConfig("history", 3600.0, 2**20, window=100)
BASE = 2**40
"""The first offset in these tests.

The offset is large, because the library encodes a small offset in fewer bytes than a broker does.
"""


def id_of(at: int, body: bytes = b"event") -> UpdateId:
    return UpdateId(BASE + at, crc32(body))


class FedReader:
    """A stream reader to which a test delivers messages, in one session after another. Offsets are relative to BASE."""

    def __init__(self) -> None:
        self.recorder = Recorder()
        self.metrics = Metrics()
        self.gaps = GapReporter(self.recorder, self.metrics)
        self.reader = StreamReader(STREAM, self.gaps, Status(), nodes=("one",))
        self.opened = 0
        self.transport = FakeTransport()
        self.session = self.begin(0)

    def begin(self, end: int) -> StreamSession:
        """Begins the next session."""
        self.reader.position.begin_session(BASE + end)
        self.fast_channel = FastChannel()
        self.fast_channel.attach(self.transport)
        channel = FakeAmqp().open_channel()
        self.session = session = StreamSession(
            self.recorder, channel, self.fast_channel, 50, self._on_open, self.reader
        )
        self.fast_channel.consume(OWN, session, StreamPropertiesReader().read)
        self._tag = 0
        return session

    def _on_open(self) -> None:
        self.opened += 1

    def feed(self, *places: int, body: bytes = b"event", kind: str = "killmail", exchange: str = "killmails") -> None:
        """Delivers messages in one read."""
        data = b""
        for at in places:
            self._tag += 1
            properties = commands.Basic.Properties(headers={"x-stream-offset": BASE + at}, message_type=kind)
            data += method(self._tag, exchange=exchange) + header(len(body), properties) + part(body)
        self.fast_channel.feed(data)

    def marker(self, at: int, body: bytes = b"token") -> None:
        """Delivers a marker of this reader or of another reader."""
        self.feed(at, body=body, kind=MARKER_TYPE, exchange="")

    @property
    def counted(self) -> float | None:
        """Returns the number of counted gaps."""
        return self.metrics.registry.get_sample_value("bridge_gaps_total")


@pytest.fixture
async def reader() -> FedReader:
    return FedReader()


async def test_deliveries_have_ids_and_markers_are_recorded_and_settled(reader: FedReader) -> None:
    reader.begin(5)
    reader.feed(1, 2)
    reader.marker(3)
    reader.feed(4)
    assert reader.recorder.log == [
        Delivered(b"event", id_of(1)),
        Delivered(b"event", id_of(2)),
        IdOnly(id_of(3, b"token")),
        Delivered(b"event", id_of(4)),
    ]
    assert reader.session.outstanding == 0
    assert len(reader.transport.written) == 3, "one write for each read"


async def test_event_with_the_type_of_a_marker_is_an_event(reader: FedReader) -> None:
    reader.begin(5)
    reader.feed(1, kind=MARKER_TYPE)
    assert reader.recorder.log == [Delivered(b"event", id_of(1))]


async def test_event_of_the_default_exchange_is_an_event(reader: FedReader) -> None:
    reader.begin(5)
    reader.feed(1, exchange="")
    assert reader.recorder.log == [Delivered(b"event", id_of(1))]


async def test_history_ends_once_after_the_own_marker(reader: FedReader) -> None:
    reader.begin(3)
    reader.marker(1)
    reader.feed(2)
    reader.marker(3)
    reader.marker(4)
    reader.feed(5)
    assert reader.recorder.past == [b"event"]
    assert reader.recorder.log.index(CAUGHT_UP) == 3
    assert reader.recorder.log.count(CAUGHT_UP) == 1


async def test_history_ends_before_the_first_new_event_if_the_marker_was_dropped(
    reader: FedReader,
) -> None:
    reader.begin(3)
    reader.feed(2, 4)
    assert reader.recorder.log == [Delivered(b"event", id_of(2)), CAUGHT_UP, Delivered(b"event", id_of(4))]


async def test_message_that_was_read_before_is_settled_and_not_delivered(reader: FedReader) -> None:
    reader.begin(3)
    reader.feed(1, 2, 2, 1)
    reader.marker(3)
    reader.begin(9)
    reader.feed(1, 2)
    reader.marker(3)
    reader.feed(4, 4)
    assert reader.recorder.bodies == [b"event"] * 3
    assert reader.recorder.ids == [id_of(1), id_of(2), id_of(3, b"token"), id_of(4)]
    assert reader.session.outstanding == 0
    assert reader.recorder.gaps == []


async def test_session_without_new_messages_reports_nothing(reader: FedReader) -> None:
    """The session gets only its own marker and a message that an earlier session has already read."""
    reader.begin(3)
    reader.marker(3)
    log = [*reader.recorder.log]
    reader.begin(4)
    reader.marker(3)
    reader.marker(4)
    assert reader.recorder.log == [*log, IdOnly(id_of(4, b"token"))]


async def test_gap_is_reported_before_the_first_delivery_after_it(reader: FedReader) -> None:
    reader.begin(1)
    reader.marker(1)
    reader.begin(9)
    reader.feed(5, 6)
    [gap] = reader.recorder.gaps
    assert gap.reason == TRUNCATED
    assert reader.recorder.gap_ids == [id_of(5)._replace(before=True)]
    assert reader.recorder.log[2:] == [gap, Delivered(b"event", id_of(5)), Delivered(b"event", id_of(6))]
    assert reader.gaps.last == gap
    assert reader.counted == 1


async def test_gap_of_a_marker_is_reported_once_in_its_place(reader: FedReader) -> None:
    """A gap of another bridge is not counted, and does not become the last gap of this bridge.

    A bridge may publish its marker twice.
    """
    gap = Gap(1.0, 2.0, "away")
    body = stream_markers.encode(StreamMarker("theirs", gap))
    reader.begin(9)
    reader.feed(1)
    reader.marker(2, body)
    reader.marker(3, body)
    reader.feed(4)
    assert reader.recorder.log == [
        Delivered(b"event", id_of(1)),
        gap,
        IdOnly(id_of(2, body)),
        IdOnly(id_of(3, body)),
        Delivered(b"event", id_of(4)),
    ]
    assert reader.gaps.last is None
    assert reader.counted == 0


async def test_loss_that_a_marker_shows_is_reported_before_the_gap_of_the_marker(reader: FedReader) -> None:
    """The id of each gap resumes before all that follows this gap."""
    away = Gap(1.0, 2.0, "away")
    body = stream_markers.encode(StreamMarker("theirs", away))
    reader.begin(1)
    reader.marker(1)
    log = [*reader.recorder.log]
    reader.begin(9)
    reader.marker(5, body)
    lost, _ = reader.recorder.gaps
    assert lost.reason == TRUNCATED
    assert reader.recorder.log[len(log) :] == [lost, away, IdOnly(id_of(5, body))]
    assert reader.recorder.gap_ids == [id_of(5, body)._replace(before=True), id_of(5, body)]


async def test_gap_of_an_own_marker_is_kept_and_counted(reader: FedReader) -> None:
    gap = Gap(1.0, 2.0, "away")
    reader.begin(9)
    reader.marker(2, stream_markers.encode(StreamMarker(f"{reader.reader._instance}1", gap)))
    assert reader.recorder.gaps == [gap]
    assert reader.gaps.last == gap
    assert reader.counted == 1


async def test_marker_without_a_gap_reports_none(reader: FedReader) -> None:
    reader.begin(9)
    reader.marker(1, stream_markers.encode(StreamMarker("theirs", None)))
    assert reader.recorder.gaps == []


async def test_missing_offsets_end_the_session_and_no_later_message_is_delivered(reader: FedReader) -> None:
    reader.begin(1)
    reader.marker(1)
    log = [*reader.recorder.log]
    reader.feed(9, 10)
    assert reader.recorder.log == log
    assert reader.session.failed.result() == POSSIBLE_GAP
    reader.begin(11)
    reader.marker(1)
    reader.feed(9, 10)
    assert reader.recorder.log[len(log) :] == [Delivered(b"event", id_of(9)), Delivered(b"event", id_of(10))]


async def test_other_stream_ends_the_session_and_none_of_its_messages_is_delivered(reader: FedReader) -> None:
    reader.begin(1)
    reader.feed(1)
    log = [*reader.recorder.log]
    reader.begin(9)
    reader.feed(1, 2, body=b"another")
    reader.feed(3, body=b"another")
    assert reader.recorder.log == log
    assert reader.session.failed.result() == RECREATED
    assert not reader.session.current
    assert reader.reader.position.loss == RECREATED


async def test_message_without_an_offset_ends_the_session(reader: FedReader) -> None:
    reader.fast_channel.feed(2 * (method(1) + header(0)))
    assert reader.session.failed.result() == NO_OFFSET
    assert reader.recorder.log == []


async def test_message_without_an_offset_returns_the_others_of_its_read_to_the_broker(reader: FedReader) -> None:
    reader.begin(1)
    reader.fast_channel.feed(method(1) + header(0))
    reader.feed(1)
    assert reader.recorder.log == []


async def test_session_is_opened_before_its_first_delivery_and_once(reader: FedReader) -> None:
    reader.begin(1)
    reader.feed(1)
    assert reader.opened == 1
    reader.session.open()
    reader.feed(2)
    assert reader.opened == 1


async def test_reader_at_the_end_has_missed_nothing_until_then(reader: FedReader) -> None:
    reader.begin(9)
    reader.reader.expect_end(BASE + 9, complete_s := reader.gaps._complete_until_s + 60)
    reader.feed(7, 8)
    assert reader.gaps._complete_until_s < complete_s
    reader.feed(9)
    assert reader.gaps._complete_until_s == complete_s


async def test_gap_begins_before_the_end_that_later_events_prove(reader: FedReader) -> None:
    """When events arrive after the missing ones, they prove that the reader has reached the end of the stream.

    A gap must begin before the reader is proven to have reached the end of the stream.
    """
    reader.feed(1)
    reader.begin(9)
    reader.reader.expect_end(BASE + 9, reader.gaps._complete_until_s + 60)
    reader.feed(9)
    [gap] = reader.recorder.gaps
    assert gap.since_s <= gap.until_s, "the proof has a later time"
