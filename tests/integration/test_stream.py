"""Reading a stream of a real broker: the bridge delivers no event twice, and reports each possible loss."""

import asyncio
import itertools
import time
from zlib import crc32

import aio_pika
import orjson
import pytest
from aio_pika.abc import AbstractConnection
from pamqp.common import FieldTable
from structlog.testing import capture_logs

from bridge.amqp.consume.consumer import Consumer
from bridge.amqp.consume.stream_position import RECREATED, TRUNCATED
from bridge.amqp.consume.stream_reader import AWAY, StreamConfig
from bridge.amqp.status import Gap, State
from bridge.errors import BrokerRefusal
from tests.support.broker.find import Broker
from tests.support.broker.node import PrivateNode
from tests.support.delivery_handler import CAUGHT_UP, Delivered, Recorder, reading, refused
from tests.support.killmail import killmail
from tests.support.proxy import Proxy, proxy
from tests.support.publishing import bind, delete_until_missed, depth, observer, publish, remade, take
from tests.support.running import consumer_of, running, sample, unique
from tests.support.scene import SceneFetcher
from tests.support.waiting import eventually

BYTES = 2**20

KEPT_S = 6.0
"""If the broker is killed, it keeps a stream that is at least this many seconds old."""


def stream_of(name: str, window: int = 1000) -> StreamConfig:
    return StreamConfig(name, 3600.0, BYTES, window)


def bodies(first: int, last: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, last)]


async def has(recorder: Recorder, wanted: list[bytes]) -> None:
    """Waits for the deliveries `wanted`, and fails if there are other deliveries."""
    await eventually("all events are read", lambda: len(recorder.bodies) >= len(wanted))
    assert recorder.bodies == wanted


async def caught_up(recorder: Recorder) -> None:
    await eventually("the end of the stream is reached", lambda: CAUGHT_UP in recorder.log)


async def working_again(broker_proxy: Proxy, consumer: Consumer, before: int) -> None:
    """Waits until a new connection reads the stream."""
    await eventually("the bridge connects again", lambda: broker_proxy.accepted > before)
    await eventually("the bridge reads again", lambda: consumer.status.state is State.WORKING)


def known_gap(recorder: Recorder) -> Gap:
    """Returns the only gap with a known cause.

    A long outage causes a second gap, because the broker may have restarted.
    """
    [gap] = [gap for gap in recorder.gaps if gap.reason != AWAY]
    return gap


def index_of(recorder: Recorder, body: bytes) -> int:
    """Returns the index of a delivery in the recorder's log."""
    return next(at for at, entry in enumerate(recorder.log) if isinstance(entry, Delivered) and entry.body == body)


async def test_events_from_before_the_start_are_read_back_in_order(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    first, second = Recorder(), Recorder()
    async with reading(broker.url, exchange, stream_of(queue), first):
        await caught_up(first)
        await publish(amqp, exchange, *bodies(0, 50))
        await has(first, bodies(0, 50))
        assert first.past == []
        async with reading(broker.url, exchange, stream_of(queue), second):
            await caught_up(second)
            assert second.past == bodies(0, 50)
            await publish(amqp, exchange, *bodies(50, 60))
            await has(first, bodies(0, 60))
            await has(second, bodies(0, 60))
    # All readers get the same ids, also for markers. The tag in the id of an event is the checksum of the event's body.
    assert second.ids == first.ids == sorted(first.ids)
    assert all(entry.id and entry.id.tag == crc32(entry.body) for entry in first.log if isinstance(entry, Delivered))
    assert first.gaps == second.gaps == []


async def test_only_the_window_is_read_back(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    first, second = Recorder(), Recorder()
    async with reading(broker.url, exchange, stream_of(queue), first):
        await caught_up(first)
    await publish(amqp, exchange, *bodies(0, 50))
    async with reading(broker.url, exchange, stream_of(queue, window=10), second):
        await caught_up(second)
    # The window also counts the broker's own entries in the stream.
    assert 0 < len(second.past) <= 10
    assert second.past == bodies(50 - len(second.past), 50)


async def test_connection_lost_without_a_reason_loses_no_event_and_reports_a_gap(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    """The connection is lost between deliveries, while some deliveries are unsettled.

    The broker may have restarted while the connection was lost.
    """
    recorder = Recorder()
    async with (
        proxy(broker.url) as broker_proxy,
        reading(broker_proxy.url, exchange, stream_of(queue), recorder, prefetch=20) as consumer,
    ):
        await broker_proxy.open()
        await caught_up(recorder)
        recorder.holds = True
        for first in range(0, 400, 10):
            # The events are not published all at once, because RabbitMQ delivers a batch as a whole, even if the batch
            # exceeds the prefetch.
            await publish(amqp, exchange, *bodies(first, first + 10))
        wanted = 0
        for _ in range(5):
            connections, wanted = broker_proxy.accepted, len(recorder.bodies) + 20
            broker_proxy.cut()
            await working_again(broker_proxy, consumer, connections)
            await eventually("the prefetch is used up", lambda: len(recorder.bodies) >= wanted)  # noqa: B023 - the wait ends within this iteration
        assert len(recorder.bodies) < 400
        recorder.holds = False
        broker_proxy.cut()
        await has(recorder, bodies(0, 400))
    assert recorder.ids == sorted(set(recorder.ids))
    assert len(recorder.gaps) == 6
    assert {gap.reason for gap in recorder.gaps} == {AWAY}


async def test_connection_that_the_broker_closes_with_a_reason_causes_no_gap(node_broker: PrivateNode) -> None:
    """If a broker gives a reason when it closes a connection, it is still running."""
    exchange, stream, recorder = unique("exchange"), stream_of(unique("stream")), Recorder()
    async with (
        observer(node_broker.url) as amqp,
        reading(node_broker.url, exchange, stream, recorder) as consumer,
    ):
        await caught_up(recorder)
        await publish(amqp, exchange, b"1")
        await has(recorder, [b"1"])

        def attempts() -> float:
            return consumer._metrics.registry.get_sample_value("bridge_broker_connection_attempts_total") or 0

        assert attempts() == 1
        await node_broker.ctl("close_all_connections", "maintenance")
        await eventually("the bridge is connected again", lambda: attempts() == 2 and consumer.is_live)
        async with observer(node_broker.url) as again:
            await publish(again, exchange, b"2")
        await has(recorder, [b"1", b"2"])
    assert recorder.gaps == []


async def test_killed_broker_loses_no_event_outside_the_reported_gap(mortal_broker: Broker) -> None:
    """Events that were confirmed before the kill arrive.

    Events that the broker confirms after the kill and then loses are in the gap.
    """
    exchange, stream, recorder = unique("exchange"), stream_of(unique("stream")), Recorder()
    async with reading(mortal_broker.url, exchange, stream, recorder) as consumer:
        await caught_up(recorder)
        declared_s = time.monotonic()
        fetcher = SceneFetcher(mortal_broker.url, exchange)
        try:
            # If RabbitMQ 3.10 is killed within 3 s after it declared its first stream, it never finds the leader of
            # that stream again.
            await eventually("the stream survives a kill", lambda: time.monotonic() > declared_s + KEPT_S)
            await fetcher.further(1)
            before = set(fetcher.confirmed)
            await asyncio.to_thread(mortal_broker.kill)
            await eventually("the loss is noticed", lambda: consumer.status.state is not State.WORKING)
            await asyncio.to_thread(mortal_broker.start)
            await eventually("the bridge reads again", lambda: consumer.status.state is State.WORKING)
            await fetcher.further(50)
        finally:
            await fetcher.stop()
        last = max(fetcher.confirmed)
        await eventually("the newest is read", lambda: last in numbers(recorder))
    received = numbers(recorder)
    assert received == sorted(set(received))
    assert recorder.ids == sorted(set(recorder.ids))
    assert before <= set(received)
    # While a broker starts, it may close another connection after the first gap, and so cause a second gap.
    gaps = recorder.gaps
    assert {gap.reason for gap in gaps} == {AWAY}
    assert all(later.since_s <= earlier.until_s for earlier, later in itertools.pairwise(gaps))
    since_s, until_s = gaps[0].since_s, gaps[-1].until_s
    ahead_s = time.time() - time.monotonic()
    lost = set(fetcher.confirmed) - set(received)
    began, confirmed = fetcher.began, fetcher.confirmed
    assert [n for n in lost if began[n] + ahead_s > until_s or confirmed[n] + ahead_s < since_s] == []


def numbers(recorder: Recorder) -> list[int]:
    return [orjson.loads(body)["killmailId"] for body in recorder.bodies]


async def test_deleted_stream_is_declared_again_and_causes_a_gap(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    recorder = Recorder()
    async with reading(broker.url, exchange, stream_of(queue), recorder) as consumer:
        await caught_up(recorder)
        await publish(amqp, exchange, *bodies(0, 5))
        await has(recorder, bodies(0, 5))
        channel = await amqp.channel()
        await channel.queue_delete(queue)
        await channel.close()
        await eventually("the stream is declared again", lambda: recorder.gaps)
        await eventually("the stream is read", lambda: consumer.status.state is State.WORKING)
        await publish(amqp, exchange, *bodies(5, 10))
        await has(recorder, bodies(0, 10))
    [gap] = recorder.gaps
    assert gap.reason == RECREATED
    assert consumer.gaps.last == gap
    assert index_of(recorder, b"4") < recorder.log.index(gap) < index_of(recorder, b"5")


@pytest.mark.parametrize("new", [3, 300])
async def test_stream_that_was_replaced_during_an_outage_is_read_from_its_beginning(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, new: int
) -> None:
    """The new stream is shorter or longer than the old stream.

    If the new stream is longer, only the tags in the ids show that the stream is new.
    """
    recorder, stream = Recorder(), stream_of(queue)
    async with proxy(broker.url) as broker_proxy, reading(broker_proxy.url, exchange, stream, recorder):
        await broker_proxy.open()
        await caught_up(recorder)
        await publish(amqp, exchange, *bodies(0, 30))
        await has(recorder, bodies(0, 30))
        before_s = time.time()
        await broker_proxy.close()
        channel = await amqp.channel()
        await channel.queue_delete(queue)
        replacement = await channel.declare_queue(queue, durable=True, arguments=stream.arguments)
        await replacement.bind(exchange, "#")
        await channel.close()
        await publish(amqp, exchange, *bodies(1000, 1000 + new))
        await broker_proxy.open()
        await has(recorder, bodies(0, 30) + bodies(1000, 1000 + new))
    gap = known_gap(recorder)
    assert gap.reason == RECREATED
    assert gap.since_s <= before_s < gap.until_s
    assert index_of(recorder, b"29") < recorder.log.index(gap) < index_of(recorder, b"1000")


async def test_events_that_the_stream_dropped_before_the_bridge_read_them_cause_a_gap(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    """The stream exceeds its size limit during an outage. The gap is reported before the remaining events."""
    recorder, stream = Recorder(), stream_of(queue)
    size, count, together = 4000, 1000, 20
    async with proxy(broker.url) as broker_proxy, reading(broker_proxy.url, exchange, stream, recorder) as consumer:
        await broker_proxy.open()
        await caught_up(recorder)
        await publish(amqp, exchange, b"before")
        await has(recorder, [b"before"])
        await broker_proxy.close()
        # The events are not published all at once, because the stream keeps or drops each batch as a whole.
        for first in range(0, count, together):
            await publish(amqp, exchange, *(b"%0*d" % (size, number) for number in range(first, first + together)))
        await broker_proxy.open()
        last = b"%0*d" % (size, count - 1)
        await eventually("the last event is read", lambda: last in recorder.bodies)
    gap = known_gap(recorder)
    assert gap.reason == TRUNCATED
    assert consumer.gaps.last in recorder.gaps
    remaining = [int(body) for body in recorder.bodies[1:]]
    assert remaining == list(range(remaining[0], count))
    assert BYTES // 2 < len(remaining) * size < BYTES + 3 * together * size, (
        "the stream keeps about as many bytes as its limit"
    )
    assert index_of(recorder, b"before") < recorder.log.index(gap) < index_of(recorder, recorder.bodies[1])


async def test_events_above_the_maximum_age_are_dropped(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    """The broker drops only whole segments, and only when it starts a new segment."""
    stream = StreamConfig(queue, 1.0, BYTES, 10**6)
    recorder = Recorder()
    async with reading(broker.url, exchange, stream, recorder):
        await caught_up(recorder)
        await publish(amqp, exchange, *(b"%05d" % number + bytes(1000) for number in range(100)))

        async def oldest_is_gone() -> bool:
            await publish(amqp, exchange, *(b"later" + bytes(1000) for _ in range(40)))
            again = Recorder()
            async with reading(broker.url, exchange, stream, again):
                await caught_up(again)
            return not again.bodies[0].startswith(b"00000")

        await eventually("the oldest event is dropped", oldest_is_gone)


async def test_existing_stream_keeps_its_limits(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    recorder = Recorder()
    channel = await amqp.channel()
    arguments: FieldTable = {"x-queue-type": "stream", "x-max-age": "7D"}
    await channel.declare_queue(queue, durable=True, arguments=arguments)
    with capture_logs() as logged:
        async with (
            proxy(broker.url) as broker_proxy,
            reading(broker_proxy.url, exchange, stream_of(queue), recorder) as consumer,
        ):
            await broker_proxy.open()
            await caught_up(recorder)
            connections = broker_proxy.accepted
            broker_proxy.cut()
            await working_again(broker_proxy, consumer, connections)
            await publish(amqp, exchange, *bodies(0, 5))
            await has(recorder, bodies(0, 5))
    [entry] = [line for line in logged if line["event"] == "the existing stream keeps its own limits"]
    assert entry["stream"] == queue
    assert "inequivalent arg 'x-m" in entry["difference"]
    await channel.declare_queue(queue, durable=True, arguments=arguments)
    await channel.close()


async def test_queue_that_is_not_a_stream_is_refused_and_keeps_its_events(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    await bind(amqp, exchange, queue)
    await publish(amqp, exchange, *bodies(0, 3))
    with pytest.raises(BrokerRefusal, match=f"the queue '{queue}' is not a stream"):
        await refused(broker.url, exchange, stream_of(queue))
    assert await depth(amqp, queue) == 3
    assert [message.redelivered for message in await take(amqp, queue, 3)] == [False] * 3


async def test_exchange_that_is_declared_again_is_bound_again(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    recorder = Recorder()
    async with reading(broker.url, exchange, stream_of(queue), recorder) as consumer:
        await caught_up(recorder)
        await delete_until_missed(
            amqp, exchange, lambda: consumer.status.state is not State.WORKING or bool(recorder.gaps)
        )
        await eventually("the exchange is declared", lambda: recorder.gaps)
        await eventually("the bridge consumes", lambda: consumer.status.state is State.WORKING)
        await publish(amqp, exchange, *bodies(0, 5))
        await has(recorder, bodies(0, 5))
        [gap] = recorder.gaps
        assert "NOT_FOUND" in gap.reason
        # If another program deletes the exchange and declares it again at once, the broker sends no error. The bridge's
        # next check binds the queue again.
        await remade(amqp, exchange, aio_pika.ExchangeType.FANOUT)
        for _ in range(2):
            last_answered_s = consumer.status.last_answered_s
            await eventually("the topology is checked", lambda: consumer.status.last_answered_s != last_answered_s)  # noqa: B023 - the wait ends within this iteration
        await publish(amqp, exchange, *bodies(5, 10))
        await has(recorder, bodies(0, 10))


async def test_bridge_is_ready_once_it_has_read_the_history_and_reports_its_position(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, rejects: str
) -> None:
    flags = {"exchanges": f"{exchange}=killmail", "history": "stream", "history_stream": queue}
    async with running(broker.url, reject_exchange=rejects, **flags) as bridge:
        await publish(amqp, exchange, killmail(1))
        await eventually("the update is broadcast", lambda: sample(bridge, "bridge_updates_total", type="killmail"))
        history = consumer_of(bridge).stream_reader
        assert history is not None
        assert history.position.last is not None
        _, body = bridge.readiness.report()
        last = history.position.last.sequence
        assert body["history"] == {"stream": queue, "read": True, "last": last, "end": history.position.end}
        history.position.begin_session(2**40)
        ready, body = bridge.readiness.report()
        assert not ready
        assert body["missing"] == ["the history is being read"]
        assert not bridge._hub._source.is_live, "ids would be unknown too early"
        await publish(amqp, exchange, killmail(2))
        await eventually(
            "the update is broadcast", lambda: sample(bridge, "bridge_updates_total", type="killmail") == 2
        )
        history.position.begin_session(0)
        assert not bridge._hub._source.is_live, "another stream counts as read"
