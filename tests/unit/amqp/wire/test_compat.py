"""Tests how pamqp, aiormq and aio-pika behave with and without each workaround.

A test with a name that begins with `test_pamqp_`, `test_aiormq_` or `test_aio_pika_` uses the library without the
workaround, and asserts that the library has the fault. If a test of a library's fault fails, the library has been
fixed, and the workaround and the test can be removed.
"""

from __future__ import annotations

import asyncio
import tracemalloc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import aio_pika
import aiormq
import pytest
from pamqp import commands, decode, encode, frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader
from yarl import URL

from bridge.amqp.wire import compat
from tests.support.fake_amqp import split_frames
from tests.support.fakes import ManualClock
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

compat.install_lenient_decoders()

# Decoding of properties

TOO_LATE = (10**18).to_bytes(8, "big")
NOT_UTF8 = b"\x02\xffa"
UNREADABLE_TABLE = b"\x00\x00\x00\x05\x02\xff\xfet\x01"


@pytest.mark.parametrize(
    ("decoder", "data"),
    [(decode.timestamp, TOO_LATE), (decode.short_str, NOT_UTF8), (decode.field_table, UNREADABLE_TABLE)],
    ids=["time", "string", "table"],
)
def test_pamqp_fails_on_values_that_it_can_not_represent(decoder: Callable[[bytes], object], data: bytes) -> None:
    with pytest.raises((ValueError, OverflowError, OSError)):
        decoder(data)


@pytest.mark.parametrize(
    ("kind", "data", "value"),
    [
        pytest.param("shortstr", b"\x03abc", "abc", id="string"),
        pytest.param("shortstr", NOT_UTF8, "?a", id="string-that-is-not-utf8"),
        pytest.param("shortstr", b"\x04\xef\xbf\xbda", "\ufffda", id="string-with-a-replacement-character"),
        pytest.param("shortstr", b"\xff" + b"\xff" * 255, "?" * 255, id="string-that-must-not-grow"),
        pytest.param("timestamp", TOO_LATE, None, id="time-beyond-the-calendar"),
        pytest.param("table", encode.field_table({"a": 1}), {"a": 1}, id="table"),
        pytest.param("table", UNREADABLE_TABLE, None, id="table-with-an-unreadable-name"),
    ],
)
def test_value_is_read_and_the_next_one_begins_after_it(kind: str, data: bytes, value: object) -> None:
    assert decode.by_type(data + b"what follows", kind) == (len(data), value)


def test_installing_twice_changes_nothing() -> None:
    before = dict(decode.METHODS)
    compat.install_lenient_decoders()
    assert before == decode.METHODS


# The transport of a connection


class Factory(aiormq.connection.TransportFactory):
    """A fake transport factory that opens no transport."""

    async def create(self, url: URL, **kwargs: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        raise aiormq.exceptions.AMQPConnectionError("from the factory")


@asynccontextmanager
async def closed_after(connection: aio_pika.Connection) -> AsyncIterator[aio_pika.Connection]:
    yield connection
    await connection.close()


URL_ = URL("amqp://localhost:1/")


async def test_aio_pika_drops_a_transport_factory() -> None:
    async with closed_after(aio_pika.Connection(URL_, transport_factory=Factory())) as connection:
        assert "transport_factory" not in connection.kwargs


async def test_transport_factory_is_used() -> None:
    async with closed_after(compat.Connection(URL_, transport_factory=Factory())) as connection:
        with pytest.raises(aiormq.exceptions.AMQPConnectionError, match="from the factory"):
            await connection.connect()


async def test_url_can_not_name_a_transport_factory() -> None:
    factory = Factory()
    url = URL_.update_query(transport_factory="another")
    async with closed_after(compat.Connection(url, transport_factory=factory)) as connection:
        assert connection.kwargs["transport_factory"] is factory


# Heartbeats

HEARTBEAT_S = 10
INTERVAL_S = HEARTBEAT_S // 2
"""The time between two of aiormq's checks for a missing heartbeat."""

GRACE_S = 33
"""How long a connection may go without a frame before aiormq closes it."""


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    return ManualClock(monkeypatch)


def opened() -> aiormq.connection.Connection:
    """Returns a connection that has just received a frame."""
    return aiormq.connection.Connection(f"amqp://localhost/?heartbeat={HEARTBEAT_S}", loop=asyncio.get_running_loop())


def test_aiormq_closes_the_connection_after_a_freeze() -> None:
    async def frozen() -> bool:
        with pytest.MonkeyPatch.context() as patch:
            clock, connection = ManualClock(patch), opened()
            clock.now_s += 3600.0
            return connection.is_connection_was_stuck

    assert asyncio.run(frozen())


async def test_broker_that_sends_nothing_is_given_up_in_time(clock: ManualClock) -> None:
    connection = opened()
    compat.tolerate_freezes(connection)
    for _ in range(GRACE_S // INTERVAL_S):
        clock.now_s += INTERVAL_S
        assert not connection.is_connection_was_stuck
    clock.now_s += INTERVAL_S
    assert connection.is_connection_was_stuck


@pytest.mark.parametrize("freeze_s", [GRACE_S + 1.0, 3600.0])
async def test_broker_that_was_frozen_with_the_bridge_has_its_full_timeout_again(
    clock: ManualClock, freeze_s: float
) -> None:
    connection = opened()
    compat.tolerate_freezes(connection)
    clock.now_s += freeze_s
    for _ in range(1 + GRACE_S // INTERVAL_S):
        assert not connection.is_connection_was_stuck
        clock.now_s += INTERVAL_S
    assert connection.is_connection_was_stuck


def test_connection_of_another_kind_is_not_changed() -> None:
    other = object()
    compat.tolerate_freezes(other)  # type: ignore[arg-type]  # a fake
    assert type(other) is object


# A connection of aiormq to a fake broker

START = commands.Connection.Start(
    0, 9, {"capabilities": {"publisher_confirms": True, "connection.blocked": True}}, "PLAIN", "en_US"
)
FRAME_MAX = 131_072
CHANNEL = 1


class Peer:
    """The broker at the other end of an aiormq connection.

    The peer answers the handshake, and each request for which a test has added an answer.
    """

    def __init__(self, frame_max: int = FRAME_MAX, open_reply: object | None = None) -> None:
        self.received: list[tuple[int, Any]] = []
        """Each frame that the peer received, decoded, with its channel."""
        self.confirms = True
        """If True, the peer confirms each complete message."""
        self.largest_write = 0
        self._replies: dict[type, Any] = {
            commands.Connection.StartOk: commands.Connection.Tune(100, frame_max, 0),
            commands.Connection.Open: open_reply or commands.Connection.OpenOk(),
            commands.Connection.Close: commands.Connection.CloseOk(),
            commands.Channel.Open: commands.Channel.OpenOk(),
            commands.Channel.Close: commands.Channel.CloseOk(),
            commands.Confirm.Select: commands.Confirm.SelectOk(),
        }
        self._writer: asyncio.StreamWriter | None = None
        self._missing = 0
        self._published = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        await reader.readexactly(8)
        self.send(START, 0)
        rest = b""
        while data := await reader.read(2**20):
            frames, rest = split_frames(rest + data)
            for each in frames:
                _, channel, decoded = frame.unmarshal(each)
                self._on_frame(channel, decoded)
        writer.close()

    def close(self) -> None:
        """Ends the connection, if a client is connected.

        Since Python 3.12, a server is closed only after its connections have ended.
        """
        if self._writer is not None:
            self._writer.transport.abort()

    def send(self, method: Any, channel: int = CHANNEL) -> None:
        assert self._writer is not None
        self._writer.write(frame.marshal(method, channel))

    def _on_frame(self, channel: int, decoded: Any) -> None:
        self.received.append((channel, decoded))
        if (reply := self._replies.get(type(decoded))) is not None:
            self.send(reply, channel)
        if isinstance(decoded, ContentHeader):
            self._missing = decoded.body_size
        elif isinstance(decoded, ContentBody):
            self._missing -= len(decoded.value)
        else:
            return
        if not self._missing:
            self._published += 1
            if self.confirms:
                self.send(commands.Basic.Ack(self._published), channel)

    @property
    def bodies(self) -> bytes:
        """The bodies of all received messages, joined."""
        return b"".join(each.value for _, each in self.received if isinstance(each, ContentBody))

    def count(self, kind: type) -> int:
        return sum(isinstance(each, kind) for _, each in self.received)


@asynccontextmanager
async def connected(peer: Peer) -> AsyncIterator[aiormq.connection.Connection]:
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connection = aiormq.connection.Connection(f"amqp://127.0.0.1:{port}/?heartbeat=0")
    try:
        await connection.connect()
        yield connection
        await connection.close()
    finally:
        server.close()
        peer.close()
        await server.wait_closed()


# Blocked connections


async def test_aiormq_has_no_callback_for_a_blocked_connection() -> None:
    """If this test fails, aiormq has gained a callback for a blocked connection, or has renamed private methods."""
    names = [name for name in dir(aiormq.connection.Connection) if "block" in name.lower()]
    assert names == [compat._ON_BLOCKED, compat._ON_UNBLOCKED]


async def test_observer_gets_the_reason_of_a_block_and_its_end_and_aiormq_waits_meanwhile() -> None:
    observed: list[str | None] = []
    async with connected(peer := Peer()) as connection:
        compat.observe_blocked(connection, observed.append)
        peer.send(commands.Connection.Blocked("low on memory"), 0)
        await eventually("the observer is called", lambda: observed == ["low on memory"])
        ready = asyncio.create_task(connection.ready())
        await asyncio.sleep(0)
        assert not ready.done()
        peer.send(commands.Connection.Unblocked(), 0)
        await ready
    assert observed == ["low on memory", None]


def test_version_without_the_private_methods_is_no_fault() -> None:
    compat.observe_blocked(cast("aiormq.abc.AbstractConnection", object()), lambda reason: None)


# Refused connections

REFUSED = commands.Connection.Close(530, "NOT_ALLOWED - vhost x not found", 0, 0)


async def refused() -> BaseException:
    with pytest.raises(aiormq.exceptions.AMQPError) as caught:
        async with connected(Peer(open_reply=REFUSED)):
            pass
    return caught.value


async def test_aiormq_does_not_have_the_reason_of_a_refusal_in_its_error() -> None:
    assert str(REFUSED.reply_text) not in str(await refused())


async def test_frame_of_a_refusal_is_found() -> None:
    found = compat.close_frame_of(await refused())
    assert found is not None
    assert (found.reply_code, found.reply_text) == (REFUSED.reply_code, REFUSED.reply_text)


def test_error_without_a_frame_has_none() -> None:
    assert compat.close_frame_of(ValueError()) is None


# Large messages

BODY = bytes(range(256)) * (4 * 4096)
"""A body of 4 MiB."""

PERSISTENT = commands.Basic.Properties(delivery_mode=2)


async def peak_of_publishing(*, in_pieces: bool) -> float:
    """Publishes a message. Returns the publisher's peak memory, divided by the size of the message's body.

    The test drops all data that the publisher sends.
    """
    async with connected(Peer()) as connection:
        channel = await connection.channel()
        peaks: list[int] = []

        async def put(sent: aiormq.abc.ChannelFrame) -> None:
            peaks.append(tracemalloc.get_traced_memory()[1])
            sent.drain()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(connection.write_queue, "put", put)
            tracemalloc.start()
            if in_pieces:
                publishing = asyncio.create_task(compat.publish_in_pieces(channel, BODY, "x", "", PERSISTENT))
            else:
                publishing = asyncio.create_task(publish(channel))
            pieces = 1 + len(BODY) // compat.LARGE if in_pieces else 1
            await eventually("all pieces are sent", lambda: len(peaks) >= pieces)
            tracemalloc.stop()
            publishing.cancel()
            await asyncio.wait([publishing])
    return max(peaks) / len(BODY)


async def publish(channel: aiormq.abc.AbstractChannel) -> None:
    await channel.basic_publish(BODY, exchange="x", properties=PERSISTENT)


async def test_aiormq_copies_a_large_body_several_times() -> None:
    assert await peak_of_publishing(in_pieces=False) > 2


async def test_large_body_is_copied_piece_by_piece() -> None:
    assert await peak_of_publishing(in_pieces=True) < 1


@pytest.mark.parametrize("frame_max", [FRAME_MAX, 4096, 0], ids=["usual", "small", "no limit"])
async def test_large_message_arrives_unchanged_and_is_confirmed(frame_max: int) -> None:
    async with connected(peer := Peer(frame_max)) as connection:
        channel = await connection.channel()
        for _ in range(2):
            await compat.publish_in_pieces(channel, BODY, "x", "key", PERSISTENT)
        assert channel.message_id_delivery_tag == {}  # type: ignore[attr-defined]  # only the class has it, not its abstraction
    methods = [each for _, each in peer.received if isinstance(each, commands.Basic.Publish)]
    assert [(each.exchange, each.routing_key, each.mandatory) for each in methods] == [("x", "key", True)] * 2
    assert peer.bodies == BODY + BODY
    [header, _] = [each for _, each in peer.received if isinstance(each, ContentHeader)]
    assert (header.body_size, header.properties.delivery_mode) == (len(BODY), 2)
    assert header.properties.message_id, "aiormq recognizes a returned message by its id"


async def test_unroutable_message_is_returned_to_its_publisher() -> None:
    async with connected(peer := Peer()) as connection:
        channel = await connection.channel()
        peer.confirms = False
        properties = commands.Basic.Properties(message_id="mine")
        publishing = asyncio.create_task(compat.publish_in_pieces(channel, BODY, "x", "", properties))
        await eventually("the body has arrived", lambda: len(peer.bodies) == len(BODY))
        peer.send(commands.Basic.Return(312, "NO_ROUTE", "x", ""))
        assert peer._writer is not None
        peer._writer.write(frame.marshal(ContentHeader(body_size=0, properties=properties), CHANNEL))
        with pytest.raises(aiormq.exceptions.PublishError):
            await publishing


async def test_message_of_a_cancelled_publisher_is_sent_to_its_end() -> None:
    async with connected(peer := Peer()) as connection:
        peer.confirms = False  # a confirm might end the publishing before the test cancels it
        channel = await connection.channel()
        publishing = asyncio.create_task(compat.publish_in_pieces(channel, BODY, "x", "", PERSISTENT))
        await eventually("the message has begun", lambda: peer.count(commands.Basic.Publish) == 1)
        publishing.cancel()
        await asyncio.wait([publishing])
        assert publishing.cancelled()
        await eventually("the whole body has arrived", lambda: len(peer.bodies) == len(BODY))


async def test_later_message_of_the_same_id_is_still_recognized_when_it_is_returned() -> None:
    async with connected(peer := Peer()) as connection:
        channel = await connection.channel()
        assert isinstance(channel, aiormq.Channel)
        peer.confirms = False
        properties = commands.Basic.Properties(message_id="mine")
        publishing = asyncio.create_task(compat.publish_in_pieces(channel, BODY, "x", "", properties))
        await eventually("the body has arrived", lambda: len(peer.bodies) == len(BODY))
        channel.message_id_delivery_tag["mine"] = 2
        peer.send(commands.Basic.Ack(1))
        await publishing
        assert channel.message_id_delivery_tag == {"mine": 2}


async def test_message_on_a_lost_connection_fails() -> None:
    peer = Peer()
    peer.confirms = False
    async with connected(peer) as connection:
        channel = await connection.channel()
        publishing = asyncio.create_task(compat.publish_in_pieces(channel, BODY, "x", "", PERSISTENT))
        await eventually("the whole body has arrived", lambda: len(peer.bodies) == len(BODY))
        publishing.cancel()
        await asyncio.wait([publishing])
        await connection.close()
    assert publishing.cancelled()
