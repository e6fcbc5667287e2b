"""Reading a stream of a real broker's: nothing twice, nothing lost in silence, whatever becomes of it."""

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
"""After this long a new stream outlasts the end of its broker."""


def stream_of(name: str, window: int = 1000) -> StreamConfig:
    return StreamConfig(name, 3600.0, BYTES, window)


def bodies(first: int, last: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, last)]


async def has(recorder: Recorder, wanted: list[bytes]) -> None:
    """Returns when all of these are there; fails where anything else is."""
    await eventually("all are read", lambda: len(recorder.bodies) >= len(wanted))
    assert recorder.bodies == wanted


async def caught_up(recorder: Recorder) -> None:
    await eventually("all that was there is read", lambda: CAUGHT_UP in recorder.log)


async def working_again(line: Proxy, consumer: Consumer, before: int) -> None:
    """Returns when there is a new connection, and the stream is read from it."""
    await eventually("it connects again", lambda: line.accepted > before)
    await eventually("it reads again", lambda: consumer.status.state is State.WORKING)


def surely(recorder: Recorder) -> Gap:
    """The one gap that says what happened. A line that is closed for long is one more reason to doubt the broker."""
    [gap] = [gap for gap in recorder.gaps if gap.reason != AWAY]
    return gap


def place_of(recorder: Recorder, body: bytes) -> int:
    """Where in the recorder's log a delivery is."""
    return next(at for at, entry in enumerate(recorder.log) if isinstance(entry, Delivered) and entry.body == body)


async def test_what_was_there_before_is_read_as_the_past_and_in_order(
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
    # All readers find the same ids, those of markers too. The tag of an event is that of its body.
    assert second.ids == first.ids == sorted(first.ids)
    assert all(came.id and came.id.tag == crc32(came.body) for came in first.log if isinstance(came, Delivered))
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
    # The broker's own notes take places too.
    assert 0 < len(second.past) <= 10
    assert second.past == bodies(50 - len(second.past), 50)


async def test_connection_that_is_lost_without_a_reason_loses_nothing_and_reports_a_gap(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    """The connection is lost amid deliveries, some not settled. The broker may have restarted meanwhile."""
    recorder = Recorder()
    async with (
        proxy(broker.url) as line,
        reading(line.url, exchange, stream_of(queue), recorder, prefetch=20) as consumer,
    ):
        await line.open()
        await caught_up(recorder)
        recorder.holds = True
        for first in range(0, 400, 10):
            # Not all at once: what is published together is delivered together, whatever the prefetch.
            await publish(amqp, exchange, *bodies(first, first + 10))
        wanted = 0
        for _ in range(5):
            connections, wanted = line.accepted, len(recorder.bodies) + 20
            line.cut()
            await working_again(line, consumer, connections)
            await eventually("the prefetch is used up", lambda: len(recorder.bodies) >= wanted)  # noqa: B023 - over before the next turn
        assert len(recorder.bodies) < 400
        recorder.holds = False
        line.cut()
        await has(recorder, bodies(0, 400))
    assert recorder.ids == sorted(set(recorder.ids))
    assert len(recorder.gaps) == 6
    assert {gap.reason for gap in recorder.gaps} == {AWAY}


async def test_connection_that_the_broker_closes_with_a_reason_is_no_gap(node_broker: PrivateNode) -> None:
    """It lives, and says so."""
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
        await eventually("it is back", lambda: attempts() == 2 and consumer.is_live)
        async with observer(node_broker.url) as again:
            await publish(again, exchange, b"2")
        await has(recorder, [b"1", b"2"])
    assert recorder.gaps == []


async def test_broker_that_is_killed_and_started_again_loses_nothing_in_silence(mortal_broker: Broker) -> None:
    """Promise: what it had confirmed before is there; what it confirms and drops on its return is in the gap."""
    exchange, stream, recorder = unique("exchange"), stream_of(unique("stream")), Recorder()
    async with reading(mortal_broker.url, exchange, stream, recorder) as consumer:
        await caught_up(recorder)
        made_s = time.monotonic()
        fetcher = SceneFetcher(mortal_broker.url, exchange)
        try:
            # Killed within three seconds of its first stream, RabbitMQ 3.10 never finds that stream's leader again.
            await eventually("the stream is on the disk", lambda: time.monotonic() > made_s + KEPT_S)
            await fetcher.further(1)
            before = set(fetcher.confirmed)
            await asyncio.to_thread(mortal_broker.kill)
            await eventually("that is noticed", lambda: consumer.status.state is not State.WORKING)
            await asyncio.to_thread(mortal_broker.start)
            await eventually("it reads again", lambda: consumer.status.state is State.WORKING)
            await fetcher.further(50)
        finally:
            await fetcher.stop()
        last = max(fetcher.confirmed)
        await eventually("the newest is read", lambda: last in numbers(recorder))
    came = numbers(recorder)
    assert came == sorted(set(came)), "this fetcher publishes nothing twice"
    assert recorder.ids == sorted(set(recorder.ids))
    assert before <= set(came)
    # A broker that starts may end a connection once more, after the first gap was told: the next one follows it.
    gaps = recorder.gaps
    assert {gap.reason for gap in gaps} == {AWAY}
    assert all(later.since_s <= earlier.until_s for earlier, later in itertools.pairwise(gaps))
    since_s, until_s = gaps[0].since_s, gaps[-1].until_s
    ahead_s = time.time() - time.monotonic()
    lost = set(fetcher.confirmed) - set(came)
    began, confirmed = fetcher.began, fetcher.confirmed
    assert [n for n in lost if began[n] + ahead_s > until_s or confirmed[n] + ahead_s < since_s] == []


def numbers(recorder: Recorder) -> list[int]:
    return [orjson.loads(body)["killmailId"] for body in recorder.bodies]


async def test_stream_that_is_deleted_while_it_is_read_is_made_again_and_that_is_told(
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
        await eventually("it is made again", lambda: recorder.gaps)
        await eventually("and read", lambda: consumer.status.state is State.WORKING)
        await publish(amqp, exchange, *bodies(5, 10))
        await has(recorder, bodies(0, 10))
    [gap] = recorder.gaps
    assert gap.reason == RECREATED
    assert consumer.gaps.last == gap
    assert place_of(recorder, b"4") < recorder.log.index(gap) < place_of(recorder, b"5")


@pytest.mark.parametrize("new", [3, 300])
async def test_stream_that_is_deleted_and_made_again_meanwhile_is_read_from_its_beginning(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, new: int
) -> None:
    """Be it shorter than before, or longer: there, only the check tells that it is another."""
    recorder, stream = Recorder(), stream_of(queue)
    async with proxy(broker.url) as line, reading(line.url, exchange, stream, recorder):
        await line.open()
        await caught_up(recorder)
        await publish(amqp, exchange, *bodies(0, 30))
        await has(recorder, bodies(0, 30))
        before_s = time.time()
        await line.close()
        channel = await amqp.channel()
        await channel.queue_delete(queue)
        made = await channel.declare_queue(queue, durable=True, arguments=stream.arguments)
        await made.bind(exchange, "#")
        await channel.close()
        await publish(amqp, exchange, *bodies(1000, 1000 + new))
        await line.open()
        await has(recorder, bodies(0, 30) + bodies(1000, 1000 + new))
    gap = surely(recorder)
    assert gap.reason == RECREATED
    assert gap.since_s <= before_s < gap.until_s
    assert place_of(recorder, b"29") < recorder.log.index(gap) < place_of(recorder, b"1000")


async def test_what_the_stream_has_dropped_unread_is_told(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    """The bound in bytes bites, and whoever was away for too long is told so before what is left."""
    recorder, stream = Recorder(), stream_of(queue)
    size, count, together = 4000, 1000, 20
    async with proxy(broker.url) as line, reading(line.url, exchange, stream, recorder) as consumer:
        await line.open()
        await caught_up(recorder)
        await publish(amqp, exchange, b"before")
        await has(recorder, [b"before"])
        await line.close()
        # Not all at once: what is published together is kept together, and dropped so.
        for first in range(0, count, together):
            await publish(amqp, exchange, *(b"%0*d" % (size, number) for number in range(first, first + together)))
        await line.open()
        last = b"%0*d" % (size, count - 1)
        await eventually("all that is left is read", lambda: last in recorder.bodies)
    gap = surely(recorder)
    assert gap.reason == TRUNCATED
    assert consumer.gaps.last in recorder.gaps
    left = [int(body) for body in recorder.bodies[1:]]
    assert left == list(range(left[0], count))
    assert BYTES // 2 < len(left) * size < BYTES + 3 * together * size, "the newest stay, and little more"
    assert place_of(recorder, b"before") < recorder.log.index(gap) < place_of(recorder, recorder.bodies[1])


async def test_what_is_too_old_is_not_kept(broker: Broker, amqp: AbstractConnection, exchange: str, queue: str) -> None:
    """By file: what is old enough goes when the broker begins another one."""
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

        await eventually("the oldest is gone", oldest_is_gone)


async def test_stream_that_exists_is_used_as_it_is(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    recorder = Recorder()
    channel = await amqp.channel()
    theirs: FieldTable = {"x-queue-type": "stream", "x-max-age": "7D"}
    await channel.declare_queue(queue, durable=True, arguments=theirs)
    with capture_logs() as logged:
        async with proxy(broker.url) as line, reading(line.url, exchange, stream_of(queue), recorder) as consumer:
            await line.open()
            await caught_up(recorder)
            connections = line.accepted
            line.cut()
            await working_again(line, consumer, connections)
            await publish(amqp, exchange, *bodies(0, 5))
            await has(recorder, bodies(0, 5))
    [said] = [line for line in logged if line["event"] == "the existing stream keeps its own limits"]
    assert said["stream"] == queue
    assert "inequivalent arg 'x-m" in said["difference"]
    await channel.declare_queue(queue, durable=True, arguments=theirs)
    await channel.close()


async def test_queue_of_another_kind_is_refused_and_nothing_in_it_is_touched(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    await bind(amqp, exchange, queue)
    await publish(amqp, exchange, *bodies(0, 3))
    with pytest.raises(BrokerRefusal, match=f"the queue '{queue}' is not a stream"):
        await refused(broker.url, exchange, stream_of(queue))
    assert await depth(amqp, queue) == 3
    assert [message.redelivered for message in await take(amqp, queue, 3)] == [False] * 3


async def test_exchange_that_is_deleted_and_made_again_is_bound_again(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    recorder = Recorder()
    async with reading(broker.url, exchange, stream_of(queue), recorder) as consumer:
        await caught_up(recorder)
        await delete_until_missed(
            amqp, exchange, lambda: consumer.status.state is not State.WORKING or bool(recorder.gaps)
        )
        await eventually("it is made", lambda: recorder.gaps)
        await eventually("and consumed from", lambda: consumer.status.state is State.WORKING)
        await publish(amqp, exchange, *bodies(0, 5))
        await has(recorder, bodies(0, 5))
        [gap] = recorder.gaps
        assert "NOT_FOUND" in gap.reason
        # Where its owner makes it again at once, nobody is told, and it is bound again with the next check.
        await remade(amqp, exchange, aio_pika.ExchangeType.FANOUT)
        for _ in range(2):
            last_answered_s = consumer.status.last_answered_s
            await eventually("the topology is looked at", lambda: consumer.status.last_answered_s != last_answered_s)  # noqa: B023 - over before the next turn
        await publish(amqp, exchange, *bodies(5, 10))
        await has(recorder, bodies(0, 10))


async def test_bridge_is_ready_when_the_history_is_read_and_says_how_far_it_is(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, rejects: str
) -> None:
    flags = {"exchanges": f"{exchange}=killmail", "history": "stream", "history_stream": queue}
    async with running(broker.url, reject_exchange=rejects, **flags) as bridge:
        await publish(amqp, exchange, killmail(1))
        await eventually("it is broadcast", lambda: sample(bridge, "bridge_updates_total", type="killmail"))
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
        assert not bridge._hub._source.is_live, "nobody is told that an id is unknown"
        await publish(amqp, exchange, killmail(2))
        await eventually("it is broadcast", lambda: sample(bridge, "bridge_updates_total", type="killmail") == 2)
        history.position.begin_session(0)
        assert not bridge._hub._source.is_live, "it is another stream now"
