"""Looks for something newer than what a stream's consumer was delivered: when, and what they say."""

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

from bridge.broker import standstill as module
from bridge.broker.course import Course, Verdict
from bridge.broker.standstill import LONGEST_PAUSE_S, STILL, Standstill, newest
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
        self.looks_s: list[float] = []
        self.proofs = 0
        self.may_come = True
        self.amqp = FakeAmqp().on(CONSUME, self._deliver)
        self._tasks: list[asyncio.Task[None]] = []

    def read(self, number: int) -> None:
        """The consumer is delivered a message."""
        assert self.course.judge(number, 1) is Verdict.NEW

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[asyncio.Task[None]]:
        standstill = Standstill(self.amqp.amqp, "past", self.course, self._prove)
        following = asyncio.create_task(standstill.run(lambda: self.may_come))
        yield following
        following.cancel()
        await asyncio.wait([following, *self._tasks])

    def _prove(self) -> None:
        self.proofs += 1

    def _deliver(self) -> None:
        self.looks_s.append(asyncio.get_running_loop().time())
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


async def test_stream_stands_still_if_something_newer_is_there_twice(stream: Stream, clock: VirtualTime) -> None:
    stream.read(10)
    stream.newest = 11
    before_s = clock.now_s
    async with stream.followed() as following:
        with pytest.raises(ConnectionError, match=STILL):
            await following
    assert clock.now_s - before_s == pytest.approx(FIRST_S + CHECK_S, abs=CHECK_S)
    assert len(stream.looks_s) == 2
    assert stream.proofs == 1, "the broker is there, and the next life does not tell of one that was away"


async def test_stream_of_which_nothing_was_ever_read_may_stand_still(stream: Stream) -> None:
    stream.newest = 0
    async with stream.followed() as following:
        with pytest.raises(ConnectionError, match=STILL):
            await following


@pytest.mark.parametrize(
    ("number", "pauses_s"),
    [(None, [2 * FIRST_S] * 5), (9, [20.0, 40.0, *[LONGEST_PAUSE_S] * 3]), (10, [20.0, 40.0, *[LONGEST_PAUSE_S] * 3])],
    ids=["no answer", "older", "the same"],
)
async def test_looks_are_rare_while_all_that_is_there_was_delivered(
    stream: Stream, number: int | None, pauses_s: list[float]
) -> None:
    """A look that gets no answer takes as long as the pause before the first."""
    stream.read(10)
    stream.newest = number
    async with stream.followed():
        await eventually("it has looked six times", lambda: len(stream.looks_s) == 6, limit_s=600)
        pauses = [later - earlier for earlier, later in pairwise(stream.looks_s)]
        assert pauses == pytest.approx(pauses_s, abs=2 * CHECK_S)
        stream.read(11)
        before_s = asyncio.get_running_loop().time()
        await eventually("it looks again", lambda: len(stream.looks_s) == 7, limit_s=600)
        # A look without an answer may be under way.
        assert stream.looks_s[-1] - before_s < 2 * FIRST_S + 2 * CHECK_S, "as soon as at first"
    assert stream.proofs == 0


async def test_look_without_an_answer_takes_nothing_back(stream: Stream) -> None:
    stream.read(10)
    stream.newest = 11
    async with stream.followed() as following:
        await eventually("something newer is there", lambda: stream.looks_s, limit_s=60)
        stream.newest = None
        await eventually("there is no answer", lambda: len(stream.looks_s) == 2, limit_s=60)
        stream.newest = 11
        with pytest.raises(ConnectionError, match=STILL):
            await following
    assert len(stream.looks_s) == 3


async def test_look_that_finds_nothing_newer_takes_back_what_the_one_before_found(stream: Stream) -> None:
    stream.read(10)
    stream.newest = 11
    async with stream.followed() as following:
        await eventually("something newer is there", lambda: stream.looks_s, limit_s=60)
        stream.newest = 10
        await eventually("it is not", lambda: len(stream.looks_s) == 2, limit_s=60)
        stream.newest = 11
        with pytest.raises(ConnectionError, match=STILL):
            await following
    assert len(stream.looks_s) == 4


async def test_delivery_between_two_looks_proves_that_the_broker_delivers(stream: Stream) -> None:
    stream.read(10)
    stream.newest = 12
    async with stream.followed() as following:
        for times in range(1, 4):
            await eventually("it looks", lambda: len(stream.looks_s) == times, limit_s=60)  # noqa: B023 - over by then
            stream.read(10 + times)
            stream.newest += 1
        assert not following.done()
    assert all(later - earlier > FIRST_S for earlier, later in pairwise(stream.looks_s))


async def test_delivery_during_a_look_proves_it_too(stream: Stream) -> None:
    stream.read(10)
    stream.newest = 11
    async with stream.followed() as following:
        await eventually("something newer is there", lambda: stream.looks_s, limit_s=60)
        stream.amqp.on("cancel tag-1", lambda: stream.read(11))
        await asyncio.sleep(2 * CHECK_S)
        assert len(stream.looks_s) == 2
        assert not following.done()


async def test_nothing_is_looked_for_while_nothing_may_come(stream: Stream) -> None:
    stream.may_come = False
    stream.newest = 1
    async with stream.followed() as following:
        await asyncio.sleep(10 * FIRST_S)
        assert stream.looks_s == []
        stream.may_come = True
        with pytest.raises(ConnectionError, match=STILL):
            await following


async def test_refusal_to_look_is_said_once_and_ends_nothing(stream: Stream) -> None:
    stream.amqp.on(CONSUME, REFUSED)
    with capture_logs() as logged:
        async with stream.followed() as following:
            await asyncio.sleep(10 * FIRST_S)
            assert not following.done()
    assert [(line["log_level"], line["error"]) for line in logged] == [("warning", "ACCESS_REFUSED - access refused")]


async def test_stream_that_is_gone_ends_it(stream: Stream) -> None:
    stream.amqp.on(CONSUME, aiormq.exceptions.ChannelNotFoundEntity("NOT_FOUND - no queue 'past' in vhost '/'"))
    async with stream.followed() as following:
        with pytest.raises(aiormq.exceptions.ChannelNotFoundEntity):
            await following


# One look


async def look(stream: Stream) -> int | None:
    channel: Any = await stream.amqp.channel(publisher_confirms=False)
    return await newest(channel, "past", 1.0)


async def test_newest_is_what_another_consumer_is_given_first_and_that_is_cancelled_then(stream: Stream) -> None:
    stream.newest = 41
    assert await look(stream) == 41
    assert stream.amqp.requests == ["channel", "qos 1", CONSUME, "ack 41", "ack 42", "cancel tag-1"]
    assert stream.amqp.channels[0].arguments == [{"x-stream-offset": "last"}]


async def test_newest_that_does_not_come_is_none(stream: Stream, clock: VirtualTime) -> None:
    before_s = clock.now_s
    assert await look(stream) is None
    assert clock.now_s - before_s == pytest.approx(1.0)
    assert stream.amqp.requests[-1] == "cancel tag-1"


@pytest.mark.parametrize("headers", [{}, {"x-stream-offset": "timestamp"}])
async def test_newest_whose_offset_can_not_be_read_is_none(stream: Stream, headers: FieldTable) -> None:
    stream.newest, stream.headers = 41, headers
    assert await look(stream) is None
