"""Tests when the stream's end is probed, and what the detector concludes from the broker's answers."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import aiormq
import pytest
from structlog.testing import capture_logs

from bridge.amqp.consume import gaps
from bridge.amqp.consume import stall_detector as module
from bridge.amqp.consume.gaps import GapReporter
from bridge.amqp.consume.stall_detector import LONGEST_PAUSE_S, STALLED, StallDetector, first_offset
from bridge.amqp.consume.stream_position import Verdict
from bridge.amqp.consume.stream_reader import StreamConfig, StreamReader
from bridge.amqp.status import Status
from bridge.metrics import Metrics
from bridge.timing import DEFAULT
from tests.support.delivery_handler import Recorder
from tests.support.fake_amqp import HANGS, REFUSED, FakeAmqp
from tests.support.virtual_time import VirtualTime
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

CONSUME, CANCEL = "consume past", "cancel tag-1"
FIRST_S, CHECK_S = DEFAULT.stall_check_s, DEFAULT.check_interval_s
START = 5


@pytest.fixture(autouse=True)
async def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    return VirtualTime(monkeypatch, module, gaps)


class Stream:
    """A broker with a stream, and the deliveries of its consumer."""

    def __init__(self) -> None:
        self.newest = START
        self.gaps = GapReporter(Recorder(), Metrics())
        self.reader = StreamReader(StreamConfig("past", 3600.0, 2**20, 100), self.gaps, Status(), nodes=("one",))
        self.reader.start_offset = START
        self.position = self.reader.position
        self.position.begin_session(0)
        self.probes_s: list[float] = []
        """The times of the probes that check if the stream has a message after the last delivery."""
        self.ends_s: list[float] = []
        """The times of the probes that wait for the next published message."""
        self.proofs_s: list[float] = []
        self.may_deliver = True
        self.amqp = FakeAmqp().on(CONSUME, self.deliver)
        self.waiting: Callable[[Any], Any] | None = None
        """The consumer of a probe that waits for the next published message, if there is such a probe."""
        self._taking: list[asyncio.Task[None]] = []

    def read(self, number: int) -> None:
        """Delivers a message to the consumer."""
        assert self.position.observe(number, 1) is Verdict.NEW

    @asynccontextmanager
    async def detecting(self) -> AsyncIterator[asyncio.Task[None]]:
        detector = StallDetector(self.amqp.amqp, self.reader, self.proofs_s.append)
        detecting = asyncio.create_task(detector.run(lambda: self.may_deliver))
        try:
            yield detecting
        finally:
            detecting.cancel()
            await asyncio.wait([detecting])
        await asyncio.gather(*self._taking)

    def deliver(self) -> None:
        """Delivers to a new consumer all messages from the offset that the consumer requested."""
        channel = self.amqp.channels[-1]
        arguments: Any = channel.arguments[-1]
        assert channel.consumer is not None
        first = arguments["x-stream-offset"]
        self.waiting = None
        now_s = asyncio.get_running_loop().time()
        if first == "next":
            self.ends_s.append(now_s)
            self.waiting = channel.consumer
        else:
            self.probes_s.append(now_s)
            self._give(channel.consumer, range(first, self.newest + 1))

    def publish(self) -> None:
        """Publishes a message, and delivers it to the consumer and to a probe that waits for the next message."""
        self.newest += 1
        self.read(self.newest)
        if self.waiting is not None:
            self._give(self.waiting, [self.newest])

    def _give(self, consumer: Callable[[Any], Any], offsets: Iterable[int]) -> None:
        for offset in offsets:
            properties = SimpleNamespace(headers={"x-stream-offset": offset})
            message = SimpleNamespace(header=SimpleNamespace(properties=properties))
            self._taking.append(asyncio.create_task(consumer(message)))

    @property
    def complete_s(self) -> float:
        """The time up to which the events are known to be complete."""
        return self.gaps._complete_until_s

    async def probed(self, times: int) -> None:
        await eventually(f"the detector has probed {times} times", lambda: len(self.probes_s) >= times, limit_s=1000)


@pytest.fixture
async def stream() -> Stream:
    return Stream()


async def test_stall_is_confirmed_by_a_second_probe(stream: Stream, clock: VirtualTime) -> None:
    stream.read(10)
    stream.newest = 11
    before_s = clock.now_s
    async with stream.detecting() as detecting:
        with pytest.raises(ConnectionError, match=STALLED):
            await detecting
    assert clock.now_s - before_s == pytest.approx(FIRST_S + CHECK_S, abs=CHECK_S)
    assert len(stream.probes_s) == 2
    assert stream.proofs_s == [pytest.approx(clock.now_s)], "the broker answers, so the next session reports no outage"
    assert [request for request in stream.amqp.requests if request.startswith("channel")] == ["channel without a bound"]


async def test_stream_may_stall_before_the_first_delivery(stream: Stream) -> None:
    async with stream.detecting() as detecting:
        with pytest.raises(ConnectionError, match=STALLED):
            await detecting
    assert stream.amqp.channels[0].arguments == [{"x-stream-offset": START}] * 2


async def test_pauses_between_probes_grow_while_there_is_nothing_newer(stream: Stream) -> None:
    stream.read(10)
    stream.newest = 10
    async with stream.detecting():
        await stream.probed(6)
        # A probe waits FIRST_S for a message before it ends without one.
        pauses_s = [later - earlier - FIRST_S for earlier, later in pairwise(stream.probes_s)]
        assert pauses_s == pytest.approx([20.0, 40.0, *[LONGEST_PAUSE_S] * 3], abs=2 * CHECK_S)
        stream.newest = 11
        stream.read(11)
        before_s = asyncio.get_running_loop().time()
        await stream.probed(7)
        # A probe may already be in progress when the message arrives.
        assert stream.probes_s[-1] - before_s <= 2 * FIRST_S + 2 * CHECK_S + 0.001, (
            "the pauses begin again with the shortest one"
        )
    assert stream.proofs_s == []


async def test_probe_without_a_newer_message_clears_the_previous_result(stream: Stream) -> None:
    stream.read(10)
    stream.newest = 11
    async with stream.detecting() as detecting:
        await stream.probed(1)
        stream.newest = 10
        await stream.probed(2)
        stream.newest = 11
        with pytest.raises(ConnectionError, match=STALLED):
            await detecting
    assert len(stream.probes_s) == 4


async def test_delivery_between_two_probes_prevents_a_stall(stream: Stream) -> None:
    stream.read(10)
    async with stream.detecting() as detecting:
        for number in range(11, 14):
            stream.newest = number
            await stream.probed(number - 10)
            stream.read(number)
        assert not detecting.done()
    assert all(later - earlier > FIRST_S for earlier, later in pairwise(stream.probes_s))


async def test_delivery_during_a_probe_prevents_a_stall(stream: Stream) -> None:
    stream.read(10)
    stream.newest = 11
    stream.amqp.on(CANCEL, None, lambda: stream.read(11), None)
    async with stream.detecting() as detecting:
        await stream.probed(2)
        await asyncio.sleep(2 * CHECK_S)
        assert len(stream.probes_s) == 2
        assert not detecting.done()


async def test_silence_begins_when_the_broker_may_deliver(stream: Stream) -> None:
    """When deliveries resume after a long pause, the broker may have to read the events from a slow disk."""
    stream.may_deliver = False
    async with stream.detecting() as detecting:
        await asyncio.sleep(10 * FIRST_S)
        assert stream.probes_s == []
        stream.may_deliver = True
        released_s = asyncio.get_running_loop().time()
        with pytest.raises(ConnectionError, match=STALLED):
            await detecting
    assert stream.probes_s[0] - released_s >= FIRST_S - CHECK_S


NOT_RUNNING = aiormq.exceptions.ChannelPreconditionFailed("PRECONDITION_FAILED - no running replica on the local node")


@pytest.mark.parametrize("request_", ["channel without a bound", "qos 1", CONSUME, CANCEL])
@pytest.mark.parametrize(
    ("answer", "words"), [(REFUSED, "access refused"), (NOT_RUNNING, "no running replica"), (HANGS, "TimeoutError")]
)
async def test_failed_probe_is_logged_once_and_the_session_continues(
    stream: Stream, request_: str, answer: object, words: str
) -> None:
    stream.read(10)
    stream.newest = 10
    before = stream.amqp.script.get(request_)
    stream.amqp.on(request_, answer)
    with capture_logs() as logged:
        async with stream.detecting() as detecting:
            await asyncio.sleep(300)
            assert not detecting.done()
            [line] = logged
            assert line["log_level"] == "warning"
            assert words in line["error"]
            stream.amqp.script.pop(request_)
            if before is not None:
                stream.amqp.script[request_] = before
            stream.newest = 11
            with pytest.raises(ConnectionError, match=STALLED):
                await detecting


# One probe


async def probe(stream: Stream, offset: int) -> int | None:
    channel: Any = await stream.amqp.channel(publisher_confirms=False)
    return await first_offset(channel, "past", offset, 1.0)


async def test_probe_requests_the_next_message_and_cancels_its_consumer(stream: Stream, clock: VirtualTime) -> None:
    stream.newest = 41
    before_s = clock.now_s
    assert await probe(stream, 40) == 40
    assert clock.now_s == before_s
    assert stream.amqp.requests == ["channel", "qos 1", CONSUME, CANCEL]
    assert stream.amqp.channels[0].arguments == [{"x-stream-offset": 40}]


async def test_probe_without_a_delivery_finds_nothing_newer(stream: Stream, clock: VirtualTime) -> None:
    before_s = clock.now_s
    assert await probe(stream, START + 1) is None
    assert clock.now_s - before_s == pytest.approx(1.0)
    assert stream.amqp.requests[-1] == CANCEL


async def test_channel_that_is_closed_during_a_probe_raises_the_brokers_error(stream: Stream) -> None:
    """RabbitMQ confirms a consumer before it tries to read the stream, so an error of the stream comes later."""

    def end() -> None:
        stream.amqp.channels[0].closing.set_exception(NOT_RUNNING)

    stream.amqp.on(CONSUME, lambda: asyncio.get_running_loop().call_soon(end))
    with pytest.raises(aiormq.exceptions.ChannelPreconditionFailed, match="no running replica"):
        await probe(stream, 40)


# The time up to which the events are known to be complete


async def test_probe_without_a_delivery_proves_the_end_at_its_start(stream: Stream, clock: VirtualTime) -> None:
    stream.newest = 10
    stream.read(10)
    async with stream.detecting():
        await stream.probed(1)
        began_s = clock.monotonic()
        assert stream.complete_s < began_s
        await asyncio.sleep(FIRST_S + 0.01)
    assert stream.complete_s == pytest.approx(began_s, abs=0.01)


@pytest.mark.parametrize("answer", [REFUSED, HANGS])
async def test_probe_that_fails_proves_nothing(stream: Stream, answer: object) -> None:
    stream.read(10)
    before_s = stream.complete_s
    stream.amqp.on("qos 1", answer)
    async with stream.detecting():
        await asyncio.sleep(100)
    assert stream.complete_s == before_s


async def test_end_is_probed_while_deliveries_arrive(stream: Stream, clock: VirtualTime) -> None:
    """When a probe gets the next message, all smaller offsets are known to have been published earlier."""
    stream.read(stream.newest)
    async with stream.detecting() as detecting:
        for _ in range(100):
            await asyncio.sleep(1.0)
            stream.publish()
        assert not detecting.done()
        assert clock.monotonic() - stream.complete_s < FIRST_S + 2 * CHECK_S
    assert len(stream.ends_s) == pytest.approx(100 / FIRST_S, abs=2)
    assert stream.probes_s == []


async def test_end_is_proven_only_when_it_is_read(stream: Stream, clock: VirtualTime) -> None:
    """The probe gets a message that the reader reaches only later, because the publishers are faster."""
    stream.newest = 1000
    stream.read(10)
    before_s = stream.complete_s
    async with stream.detecting():
        number = 10
        while not stream.ends_s:
            await asyncio.sleep(1.0)
            stream.read(number := number + 1)
        requested_s = clock.monotonic()
        assert stream.waiting is not None
        stream._give(stream.waiting, [1001])
        await asyncio.sleep(0.01)
        assert stream.complete_s == before_s
        assert stream.reader.expected_end == 1001
        stream.reader.on_expected_end()
    assert stream.complete_s == pytest.approx(requested_s, abs=1.01)
