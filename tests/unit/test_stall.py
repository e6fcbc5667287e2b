"""Probes for messages newer than the last delivery: when they are made, and what follows from their answers."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import aiormq
import pytest
from pamqp import commands
from structlog.testing import capture_logs

from bridge.broker import stall as module
from bridge.broker.course import Course, Verdict
from bridge.broker.stall import LONGEST_PAUSE_S, STALLED, StallDetector, newest
from bridge.timing import DEFAULT
from tests.support.fake_amqp import REFUSED, FakeAmqp, FakeChannel
from tests.support.virtual_time import VirtualTime
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pamqp.common import FieldTable

CONSUME = "consume past"
FIRST_S, CHECK_S = DEFAULT.stall_check_s, DEFAULT.check_interval_s


@pytest.fixture(autouse=True)
async def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    return VirtualTime(monkeypatch, module)


class Stream:
    """A broker with a stream, and what a consumer of it was delivered."""

    def __init__(self) -> None:
        self.newest: int | None = None
        """None: the broker sends nothing to another consumer."""
        self.headers: FieldTable | None = None
        """Headers in the place of those with the offset."""
        self.course = Course(100)
        self.course.begin(0)
        self.probes_s: list[float] = []
        self.proofs = 0
        self.may_deliver = True
        self.amqp = FakeAmqp().on(CONSUME, self._deliver)
        self._tasks: list[asyncio.Task[None]] = []

    def read(self, number: int) -> None:
        """The consumer is delivered a message."""
        assert self.course.judge(number, 1) is Verdict.NEW

    @asynccontextmanager
    async def detecting(self) -> AsyncIterator[asyncio.Task[None]]:
        detector = StallDetector(self.amqp.amqp, "past", self.course, self._prove)
        detecting = asyncio.create_task(detector.run(lambda: self.may_deliver))
        yield detecting
        detecting.cancel()
        await asyncio.wait([detecting, *self._tasks])

    def _prove(self) -> None:
        self.proofs += 1

    def _deliver(self) -> None:
        self.probes_s.append(asyncio.get_running_loop().time())
        channel: FakeChannel = self.amqp.channels[0]
        if self.newest is None or channel.consumer is None:
            return
        for number in (self.newest, self.newest + 1):
            headers: FieldTable = {"x-stream-offset": number} if self.headers is None else self.headers
            properties = commands.Basic.Properties(headers=headers)
            message = SimpleNamespace(header=SimpleNamespace(properties=properties), delivery_tag=number)
            self._tasks.append(asyncio.create_task(channel.consumer(message)))


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
    assert stream.proofs == 1, "the broker answers, so the next session reports no outage"


async def test_stream_of_which_nothing_was_ever_read_may_stall(stream: Stream) -> None:
    stream.newest = 0
    async with stream.detecting() as detecting:
        with pytest.raises(ConnectionError, match=STALLED):
            await detecting


@pytest.mark.parametrize(
    ("number", "pauses_s"),
    [(None, [2 * FIRST_S] * 5), (9, [20.0, 40.0, *[LONGEST_PAUSE_S] * 3]), (10, [20.0, 40.0, *[LONGEST_PAUSE_S] * 3])],
    ids=["no answer", "older", "the same"],
)
async def test_pauses_between_probes_grow_while_there_is_nothing_newer(
    stream: Stream, number: int | None, pauses_s: list[float]
) -> None:
    """A probe without an answer takes as long as the pause before the first one."""
    stream.read(10)
    stream.newest = number
    async with stream.detecting():
        await eventually("it has probed six times", lambda: len(stream.probes_s) == 6, limit_s=600)
        pauses = [later - earlier for earlier, later in pairwise(stream.probes_s)]
        assert pauses == pytest.approx(pauses_s, abs=2 * CHECK_S)
        stream.read(11)
        before_s = asyncio.get_running_loop().time()
        await eventually("it probes again", lambda: len(stream.probes_s) == 7, limit_s=600)
        # A probe without an answer may be under way.
        assert stream.probes_s[-1] - before_s < 2 * FIRST_S + 2 * CHECK_S, "as soon as at first"
    assert stream.proofs == 0


async def test_unanswered_probe_keeps_the_previous_result(stream: Stream) -> None:
    stream.read(10)
    stream.newest = 11
    async with stream.detecting() as detecting:
        await eventually("something newer is there", lambda: stream.probes_s, limit_s=60)
        stream.newest = None
        await eventually("there is no answer", lambda: len(stream.probes_s) == 2, limit_s=60)
        stream.newest = 11
        with pytest.raises(ConnectionError, match=STALLED):
            await detecting
    assert len(stream.probes_s) == 3


async def test_probe_without_a_newer_message_clears_the_previous_result(stream: Stream) -> None:
    stream.read(10)
    stream.newest = 11
    async with stream.detecting() as detecting:
        await eventually("something newer is there", lambda: stream.probes_s, limit_s=60)
        stream.newest = 10
        await eventually("it is not", lambda: len(stream.probes_s) == 2, limit_s=60)
        stream.newest = 11
        with pytest.raises(ConnectionError, match=STALLED):
            await detecting
    assert len(stream.probes_s) == 4


async def test_delivery_between_two_probes_prevents_a_stall(stream: Stream) -> None:
    stream.read(10)
    stream.newest = 12
    async with stream.detecting() as detecting:
        for times in range(1, 4):
            await eventually("it probes", lambda: len(stream.probes_s) == times, limit_s=60)  # noqa: B023 - over by then
            stream.read(10 + times)
            stream.newest += 1
        assert not detecting.done()
    assert all(later - earlier > FIRST_S for earlier, later in pairwise(stream.probes_s))


async def test_delivery_during_a_probe_prevents_a_stall(stream: Stream) -> None:
    stream.read(10)
    stream.newest = 11
    async with stream.detecting() as detecting:
        await eventually("something newer is there", lambda: stream.probes_s, limit_s=60)
        stream.amqp.on("cancel tag-1", lambda: stream.read(11))
        await asyncio.sleep(2 * CHECK_S)
        assert len(stream.probes_s) == 2
        assert not detecting.done()


async def test_no_probe_starts_while_the_broker_may_not_deliver(stream: Stream) -> None:
    stream.may_deliver = False
    stream.newest = 1
    async with stream.detecting() as detecting:
        await asyncio.sleep(10 * FIRST_S)
        assert stream.probes_s == []
        stream.may_deliver = True
        with pytest.raises(ConnectionError, match=STALLED):
            await detecting


async def test_refused_probe_is_logged_once_and_the_session_continues(stream: Stream) -> None:
    stream.amqp.on(CONSUME, REFUSED)
    with capture_logs() as logged:
        async with stream.detecting() as detecting:
            await asyncio.sleep(10 * FIRST_S)
            assert not detecting.done()
    assert [(line["log_level"], line["error"]) for line in logged] == [("warning", "ACCESS_REFUSED - access refused")]


async def test_stream_that_is_gone_ends_it(stream: Stream) -> None:
    stream.amqp.on(CONSUME, aiormq.exceptions.ChannelNotFoundEntity("NOT_FOUND - no queue 'past' in vhost '/'"))
    async with stream.detecting() as detecting:
        with pytest.raises(aiormq.exceptions.ChannelNotFoundEntity):
            await detecting


# One probe


async def probe(stream: Stream) -> int | None:
    channel: Any = await stream.amqp.channel(publisher_confirms=False)
    return await newest(channel, "past", 1.0)


async def test_newest_returns_the_first_offset_and_cancels_its_consumer(stream: Stream) -> None:
    stream.newest = 41
    assert await probe(stream) == 41
    assert stream.amqp.requests == ["channel", "qos 1", CONSUME, "ack 41", "ack 42", "cancel tag-1"]
    assert stream.amqp.channels[0].arguments == [{"x-stream-offset": "last"}]


async def test_newest_is_none_if_nothing_arrives(stream: Stream, clock: VirtualTime) -> None:
    before_s = clock.now_s
    assert await probe(stream) is None
    assert clock.now_s - before_s == pytest.approx(1.0)
    assert stream.amqp.requests[-1] == "cancel tag-1"


@pytest.mark.parametrize("headers", [{}, {"x-stream-offset": "timestamp"}])
async def test_newest_is_none_if_the_offset_is_unreadable(stream: Stream, headers: FieldTable) -> None:
    stream.newest, stream.headers = 41, headers
    assert await probe(stream) is None
