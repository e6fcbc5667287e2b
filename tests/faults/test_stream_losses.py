"""A bridge that detects a possible loss of events from a stream reports it to all readers. No loss is silent."""

import asyncio
import signal
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import orjson
import pytest
from aio_pika.abc import AbstractConnection
from structlog.testing import capture_logs

from bridge.amqp.connection import open_connection
from bridge.amqp.consume import stall_detector
from bridge.amqp.consume.consumer import Consumer, ConsumerConfig
from bridge.amqp.consume.flow_control import FlowControl
from bridge.amqp.consume.stall_detector import STALLED, first_offset
from bridge.amqp.consume.stream_end_probe import StreamEndProbe
from bridge.amqp.consume.stream_position import TRUNCATED
from bridge.amqp.consume.stream_reader import AWAY, StreamConfig
from bridge.amqp.nodes import Node
from bridge.amqp.status import State
from bridge.amqp.topology import Topology
from bridge.amqp.wire.fast_channel import DELIVER, FRAME, METHOD
from bridge.metrics import Metrics
from bridge.timing import DEFAULT, Timing
from tests.support.broker.find import Broker
from tests.support.clients import RawClient
from tests.support.delivery_handler import CAUGHT_UP, Recorder, reading
from tests.support.fake_amqp import split_frames
from tests.support.killmail import killmail
from tests.support.proxy import proxy
from tests.support.publishing import publish
from tests.support.running import bridge_process, running, sample, unique
from tests.support.scene import SceneFetcher
from tests.support.waiting import eventually

BYTES = 2**20

KEPT_S = 6.0
"""If the broker is killed, it keeps a stream that is at least this many seconds old."""

SIZE, TOGETHER = 4000, 20
"""The size of an event in bytes, and the number of events in a batch. The broker keeps or drops each batch as a
whole."""


def stream_of(name: str) -> StreamConfig:
    return StreamConfig(name, 3600.0, BYTES, 10**6)


async def fill(amqp: AbstractConnection, exchange: str, count: int) -> None:
    for first in range(0, count, TOGETHER):
        await publish(amqp, exchange, *(b"%0*d" % (SIZE, number) for number in range(first, first + TOGETHER)))


async def caught_up(recorder: Recorder) -> None:
    await eventually("all messages in the stream are read", lambda: CAUGHT_UP in recorder.log)


async def test_events_that_the_stream_drops_before_they_are_read_are_a_gap(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    """The reader starts reading again by itself. The reader's connection stays open, unless the broker fails."""
    recorder = Recorder()
    with capture_logs() as logged:
        timing = Timing(stall_check_s=1.0)
        async with reading(broker.url, exchange, stream_of(queue), recorder, TOGETHER, timing) as consumer:
            await caught_up(recorder)
            recorder.holds = True
            await fill(amqp, exchange, 1500)
            held = [*recorder.deliveries]
            recorder.holds = False
            for delivery in held:
                delivery.settle()
            await eventually("the newest is read", lambda: int(recorder.bodies[-1]) == 1499)
            losses = consumer._metrics.registry.get_sample_value("bridge_broker_losses_total")
    lost = [line for line in logged if line["event"] == "broker lost"]
    # RabbitMQ 4.3.6 sometimes closes the connection with error 541 because it deletes a segment of the stream that it
    # is still reading.
    assert all("INTERNAL_ERROR" in line["error"] for line in lost)
    assert losses == len(lost)
    numbers = [int(body) for body in recorder.bodies]
    assert numbers == sorted(set(numbers))
    assert len(numbers) < 1500
    assert {gap.reason for gap in recorder.gaps} == {TRUNCATED}
    jumps = [at for at in range(1, len(numbers)) if numbers[at] > numbers[at - 1] + 1]
    assert len(recorder.gaps) >= len(jumps) > 0


class Withheld:
    """Withholds the deliveries on the first channel of one connection while `now` is true."""

    def __init__(self) -> None:
        self.now = False
        self._channel: int | None = None
        self._rest = b""

    def of_a_connection(self) -> Callable[[bytes], bytes]:
        """Returns the function that changes the broker's bytes on a new connection.

        Only the bytes of the first connection change, because later connections belong to later sessions.
        """
        return self._pass if self._channel is None and not self.now else bytes

    def _pass(self, data: bytes) -> bytes:
        frames, self._rest = split_frames(self._rest + data)
        return b"".join(each for each in frames if not self._keeps(each))

    def _keeps(self, each: bytes) -> bool:
        kind, channel, _ = FRAME.unpack_from(each)
        if channel and self._channel is None:
            self._channel = channel
        # The broker's answer to a request has only a method frame, but a delivery also has header and body frames.
        delivers = kind != METHOD or each[FRAME.size : FRAME.size + len(DELIVER)] == DELIVER
        return self.now and channel == self._channel and delivers


async def test_stalled_stream_is_reread_from_the_last_event(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    """The proxy withholds deliveries. RabbitMQ 3.10.8 and 4.0.5 sometimes do so after they have dropped segments."""
    recorder, withheld = Recorder(), Withheld()
    timing = Timing(stall_check_s=1.5, check_interval_s=0.5)
    with capture_logs() as logged:
        async with proxy(broker.url) as tunnel:
            tunnel.alteration = withheld.of_a_connection
            await tunnel.open()
            async with reading(tunnel.url, exchange, stream_of(queue), recorder, timing=timing) as consumer:
                await caught_up(recorder)
                await publish(amqp, exchange, b"1")
                await eventually("the first event is read", lambda: recorder.bodies == [b"1"])
                withheld.now = True
                await publish(amqp, exchange, b"2", b"3")
                await eventually("all events are read", lambda: recorder.bodies == [b"1", b"2", b"3"])
                assert tunnel.accepted == 2
                assert consumer._metrics.registry.get_sample_value("bridge_broker_losses_total") == 0
    assert recorder.gaps == []
    assert [line["reason"] for line in logged if "rereading" in line["event"]] == [STALLED]


async def test_stream_without_new_messages_is_probed_and_not_reread(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe that asks for messages after the last event gets no answer."""
    recorder, answers = Recorder(), list[int | None]()

    async def noted(*arguments: Any) -> int | None:
        answers.append(await first_offset(*arguments))
        return answers[-1]

    monkeypatch.setattr(stall_detector, "first_offset", noted)
    timing = Timing(stall_check_s=0.3, check_interval_s=0.1)
    async with reading(broker.url, exchange, stream_of(queue), recorder, timing=timing) as consumer:
        await caught_up(recorder)
        for count in (1, 5, 1):
            await publish(amqp, exchange, *[b"event"] * count)
            probes = len(answers)
            await eventually("three probes are answered", lambda: len(answers) >= probes + 3)  # noqa: B023 - the wait ends within this iteration
        assert consumer._metrics.registry.get_sample_value("bridge_broker_connection_attempts_total") == 1
    assert len(recorder.bodies) == 7
    assert answers[-1] is None
    assert recorder.gaps == []


async def test_entries_of_the_broker_are_no_loss(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    """Small segments contain many of the broker's own entries.

    The reader does not mistake these entries for missing events.
    """
    recorder = Recorder()
    async with reading(broker.url, exchange, StreamConfig(queue, 3600.0, 64 * BYTES, 10**6), recorder) as consumer:
        await caught_up(recorder)
        await fill(amqp, exchange, 1500)
        await eventually("all events are read", lambda: len(recorder.bodies) == 1500)
        assert consumer._metrics.registry.get_sample_value("bridge_broker_connection_attempts_total") == 1
    assert recorder.gaps == []


async def test_gap_begins_with_the_last_answer_before_the_first_of_two_losses(
    broker: Broker, exchange: str, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    async with proxy(broker.url) as tunnel, reading(tunnel.url, exchange, stream_of(queue), recorder) as consumer:
        await tunnel.open()
        await caught_up(recorder)
        before_s, attempts = time.time(), tunnel.accepted
        await tunnel.close()
        await eventually("the loss is noticed", lambda: consumer.status.state is not State.WORKING)
        on_open = consumer._on_open

        def lost_again(found: Topology, requested_s: float) -> None:
            on_open(found, requested_s)
            monkeypatch.undo()
            raise ConnectionError("lost before the first delivery")

        monkeypatch.setattr(consumer, "_on_open", lost_again)
        await tunnel.open()
        await eventually("the connection is lost again", lambda: tunnel.accepted >= attempts + 2)
        await eventually("the gap is reported", lambda: recorder.gaps and consumer.is_live)
        gap = recorder.gaps[0]
    assert gap.reason == AWAY
    assert gap.since_s <= before_s < gap.until_s


@pytest.mark.parametrize("kind", ["stream", "queue"])
async def test_declared_exchange_is_reported_although_the_connection_failed(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    of_its_own, stream = (None, stream_of(queue)) if kind == "stream" else (queue, None)
    config = ConsumerConfig((Node(broker.url),), (exchange,), of_its_own, "reader", stream)
    consumer = Consumer(config, recorder, FlowControl(20), Metrics(), wait=False)
    running_one = asyncio.create_task(consumer.run())
    try:
        await eventually("the bridge consumes", lambda: consumer.is_live)

        async def lost(*arguments: object) -> None:
            monkeypatch.undo()
            raise ConnectionError("lost while it was set up")

        monkeypatch.setattr(consumer._queue, "prepare", lost)
        channel = await amqp.channel()
        await channel.exchange_delete(exchange)
        await eventually("the loss is noticed", lambda: consumer.status.state is not State.WORKING)
        await eventually("the bridge consumes again", lambda: consumer.is_live)
        await publish(amqp, exchange, b"event")
        await eventually("the event arrives", lambda: recorder.bodies == [b"event"])
        await channel.close()
    finally:
        consumer.stop()
        await running_one
    assert len(recorder.gaps) == 1
    assert consumer.gaps.last == recorder.gaps[0]


@pytest.mark.slow
async def test_events_that_the_broker_loses_on_its_return_are_a_gap_for_all_readers_then_or_later(
    mortal_broker: Broker,
) -> None:
    """One reader starts before the broker is killed, one while the broker is down, and one much later."""
    exchange, stream = unique("exchange"), stream_of(unique("stream"))
    older, waiting, later = Recorder(), Recorder(), Recorder()
    async with reading(mortal_broker.url, exchange, stream, older) as first:
        await caught_up(older)
        made_s = time.monotonic()
        fetcher = SceneFetcher(mortal_broker.url, exchange)
        try:
            await eventually("the stream is on the disk", lambda: time.monotonic() > made_s + KEPT_S)
            await fetcher.further(10)
            await asyncio.to_thread(mortal_broker.kill)
            await eventually("the loss is noticed", lambda: first.status.state is not State.WORKING)
            async with reading(mortal_broker.url, exchange, stream, waiting) as second:
                await eventually("the second bridge retries", lambda: second.status.attempts > 1)
                await asyncio.to_thread(mortal_broker.start)
                await eventually("both bridges read", lambda: first.is_live and second.is_live)
                await fetcher.further(50)
                await fetcher.stop()
                await eventually(
                    "both bridges have all events", lambda: older.bodies and older.bodies == waiting.bodies
                )
                own = {first.gaps.last, second.gaps.last}
                async with reading(mortal_broker.url, exchange, stream, later) as third:
                    await caught_up(later)
                    assert third.gaps.last is None, "the third bridge lost nothing"
        finally:
            await fetcher.stop()
    assert {*own} == {*later.gaps} == {*older.gaps} == {*waiting.gaps}
    assert len(own) == 2
    assert {gap.reason for gap in own if gap} == {AWAY}
    assert later.bodies[: len(older.bodies)] == older.bodies
    # The later reader gets the gap only after the ten events that were published before the broker was killed.
    assert later.log.index(later.gaps[0]) > len(older.bodies[:10])


@pytest.mark.parametrize("mandatory", ["returned", "dropped"])
async def test_marker_that_is_not_read_back_is_published_again(
    broker: Broker, amqp: AbstractConnection, queue: str, mandatory: str
) -> None:
    channel = await amqp.channel()
    await channel.declare_queue(queue, durable=True, arguments=stream_of(queue).arguments)
    nowhere = unique("nowhere")
    if mandatory == "dropped":  # the broker confirms the marker, but puts it into another queue
        await channel.declare_queue(nowhere, exclusive=True)
    asked: list[float] = []
    async with open_connection((Node(broker.url),), "stream end probe") as connection:
        probe = await StreamEndProbe.listen(connection, queue, DEFAULT.marker_retry_s)
        probe._stream = nowhere

        def gap() -> None:
            asked.append(time.monotonic())
            probe._stream = queue if len(asked) > 2 else nowhere

        assert await probe.end("token", gap) == 0
    assert len(asked) == 3
    await channel.close()


async def test_rejected_events_that_are_held_at_the_stop_are_logged_as_lost(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, rejects: str
) -> None:
    """After a restart, the bridge would not read these events again, so the held rejects are lost."""
    channel = await amqp.channel()
    await channel.declare_queue(rejects, durable=True, arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
    flags = {"exchanges": f"{exchange}=killmail", "history": "stream", "history_stream": queue}
    flags["shutdown_timeout"] = "10s"  # long enough for all events of this test to arrive
    with capture_logs() as logged:
        async with running(broker.url, reject_exchange=rejects, **flags) as bridge:
            await publish(amqp, exchange, *(b"invalid" for _ in range(5)))
            await eventually("the rejected events are held", lambda: bridge._rejects.waiting == 5)
            assert sample(bridge, "bridge_rejects_total", reason="not-json") == 5
    [stopped] = [line for line in logged if line["event"] == "stopped with unsettled deliveries"]
    assert stopped["deliveries"] == 5
    assert stopped["kept_by_the_broker"] is False
    await channel.close()


@pytest.mark.slow
async def test_gap_of_a_bridge_that_was_frozen_contains_all_lost_events(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    """After the freeze, the bridge first reads events that were buffered before the freeze.

    The buffered events don't prove that later events are still in the stream.
    """
    names = {"EXCHANGES": f"{exchange}=killmail", "HISTORY": "stream", "HISTORY_STREAM": queue}
    names |= {"HISTORY_MAX_BYTES": str(BYTES), "REJECT_EXCHANGE": "off"}
    async with bridge_process(broker.url, **{f"BRIDGE_{name}": text for name, text in names.items()}) as process:
        await process.consuming()
        port = await process.port()
        client = await RawClient.open(port, path="/updates?after=")
        assert orjson.loads(await client.text())["type"] == "resume"
        published_s: list[float] = []

        async def publish_some(count: int) -> None:
            for _ in range(0, count, TOGETHER):
                numbers = range(len(published_s), len(published_s) + TOGETHER)
                published_s.extend([time.time()] * TOGETHER)
                await publish(amqp, exchange, *(killmail(number, padding="x" * SIZE) for number in numbers))

        await publish_some(TOGETHER)
        came: list[int] = []
        gaps: list[Any] = []

        async def read_until(last: int) -> None:
            while not came or came[-1] < last:
                message = orjson.loads(await client.text())
                if message["type"] == "gap":
                    gaps.append(message["data"])
                else:
                    came.append(message["data"]["killmailId"])

        await read_until(TOGETHER - 1)
        process.process.send_signal(signal.SIGSTOP)
        try:
            await publish_some(1500)
        finally:
            process.process.send_signal(signal.SIGCONT)
        await publish_some(TOGETHER)
        await read_until(len(published_s) - 1)
        await client.close()
    missed = sorted({*range(len(published_s))} - {*came})
    assert missed
    intervals = [[datetime.fromisoformat(gap[end]).timestamp() for end in ("since", "until")] for gap in gaps]
    assert min(since for since, _ in intervals) <= published_s[missed[0]]
    assert published_s[missed[-1]] <= max(until for _, until in intervals)
