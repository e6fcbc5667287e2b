"""Tests of a confirm channel, and of attempts to publish that are confirmed, not confirmed or cancelled."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import aiormq
import pytest
from pamqp import commands

from bridge.amqp.nodes import Node, NodeRotation
from bridge.amqp.publish import confirm_channel as module
from bridge.amqp.publish.confirm_channel import LARGEST_FRAME, ConfirmChannel, Unconfirmed, Unrouted
from bridge.amqp.status import State, Status
from bridge.timing import DEFAULT
from tests.support.fake_amqp import HANGS, NACK, FakeAmqp, FakeBroker, returned
from tests.support.virtual_time import VirtualTime
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from bridge.amqp.connection import Channel, Connection

PUBLISH = "publish to rejects"


class RunningChannel:
    """A confirm channel with its owner and its sessions, which run one after another."""

    def __init__(self, broker: FakeBroker) -> None:
        self.broker = broker
        self.error: Exception | None = None
        """The error that the setup of the channel raises."""
        self.hangs = False
        """True if the setup of the channel never ends."""
        self.opened = 0
        self.blocked: list[str | None] = []
        self.frame_max = 0
        """The frame size limit that the channel passed when it last asked for a message's properties."""
        self.stopping = asyncio.Event()
        self.channel = ConfirmChannel((), "a bridge", self, Status(), self.stopping)
        self.tasks: list[asyncio.Task[str]] = []
        self.published: list[commands.Basic.Properties] = []
        """The properties of the messages that the channel has reported as published."""

    async def set_up(self, amqp: Connection, channel: Channel) -> None:
        assert not self.channel.is_open, "the channel opens after the setup"
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error

    def on_open(self) -> None:
        assert self.channel.is_open
        self.opened += 1

    def on_blocked(self, reason: str | None) -> None:
        self.blocked.append(reason)

    def on_lost(self, state: State, reason: str) -> None:
        raise AssertionError("only the supervisor calls it")

    def run_session(self) -> asyncio.Task[str]:
        """Starts the next session of the channel."""
        self.tasks.append(asyncio.create_task(self.channel.run_session()))
        return self.tasks[-1]

    async def open(self, amqp: FakeAmqp) -> asyncio.Task[str]:
        """Starts the next session, and waits until its channel is open."""
        self.broker.connections.append(amqp)
        opened = self.opened
        task = self.run_session()
        await eventually("the channel is open", lambda: self.opened > opened)
        return task

    def _properties(self, message_id: str | None) -> Callable[[int], commands.Basic.Properties]:
        def make(frame_max: int) -> commands.Basic.Properties:
            self.frame_max = frame_max
            return commands.Basic.Properties(message_id=message_id)

        return make

    async def publish(self, message_id: str | None = None) -> None:
        await self.channel.publish(
            b"body", "rejects", "", self._properties(message_id), message_id, self.published.append
        )


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    return VirtualTime(monkeypatch)


@pytest.fixture
async def running(clock: VirtualTime, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningChannel]:
    broker = FakeBroker()
    monkeypatch.setattr(module, "open_connection", broker.open_connection)
    running = RunningChannel(broker)
    yield running
    for task in running.tasks:
        task.cancel()
    await asyncio.gather(*running.tasks, return_exceptions=True)


# A session


async def test_session_ends_with_the_brokers_reason_and_leaves_no_channel(running: RunningChannel) -> None:
    session = await running.open(amqp := FakeAmqp())
    assert amqp.requests == ["channel with confirms"]
    amqp.lose()
    assert await session == "CONNECTION_FORCED - shutdown"
    assert not running.channel.is_open
    assert running.broker.closed == 1


async def test_opened_and_closed_channel_is_logged_at_debug(
    running: RunningChannel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "bridge.amqp")
    session = await running.open(amqp := FakeAmqp())
    amqp.lose()
    await session
    opened, closed = caplog.records
    assert [opened.getMessage(), closed.getMessage()] == ["channel opened", "channel closed"]
    assert closed.__dict__["reason"] == "CONNECTION_FORCED - shutdown"
    assert opened.__dict__["channel"] == closed.__dict__["channel"] == amqp.channels[0].number


async def test_session_ends_with_the_stop(running: RunningChannel) -> None:
    session = await running.open(FakeAmqp())
    running.stopping.set()
    assert await session == "stopped"
    assert not running.channel.is_open


async def test_session_with_a_failed_setup_does_not_open(running: RunningChannel) -> None:
    running.error = aiormq.exceptions.ChannelNotFoundEntity("NOT_FOUND")
    running.broker.connections.append(FakeAmqp())
    with pytest.raises(aiormq.exceptions.ChannelNotFoundEntity):
        await running.run_session()
    assert (running.opened, running.channel.is_open, running.broker.closed) == (0, False, 1)


async def test_broker_that_does_not_answer_during_the_setup_is_given_up(
    running: RunningChannel, clock: VirtualTime
) -> None:
    running.hangs = True
    running.broker.connections.append(FakeAmqp())
    before_s = clock.now_s
    with pytest.raises(ConnectionError, match=f"does not answer within {DEFAULT.setup_timeout_s:g} s"):
        await running.run_session()
    assert clock.now_s - before_s == pytest.approx(DEFAULT.setup_timeout_s, abs=0.01)


async def test_owner_is_notified_of_a_blocked_connection_until_it_is_unblocked_or_lost(running: RunningChannel) -> None:
    session = await running.open(amqp := FakeAmqp())
    await amqp.block("low on memory")
    await amqp.unblock()
    await amqp.block("low on disk")
    assert running.blocked == ["low on memory", None, "low on disk"]
    amqp.lose()
    await session
    await running.open(FakeAmqp())
    assert running.channel.blocked is None, "the next connection may be to another node"


# An attempt


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (returned(), Unrouted, "no queue is bound to the exchange"),
        (NACK, Unconfirmed, r"the broker does not accept the message \(nack\)"),
        (aiormq.exceptions.ChannelInvalidStateError("<Channel> closed"), Unconfirmed, "^the connection was lost$"),
        (asyncio.CancelledError(), Unconfirmed, "^the connection was lost$"),
        (aiormq.exceptions.ConnectionClosed(320, "CONNECTION_FORCED"), Unconfirmed, "^CONNECTION_FORCED$"),
        (Exception(), Unconfirmed, "^Exception$"),
    ],
    ids=["returned", "nack", "closed", "stray cancellation", "lost", "bare exception"],
)
async def test_unconfirmed_attempt_has_the_reason_and_the_channel(
    running: RunningChannel, answer: BaseException, kind: type[Unconfirmed], words: str
) -> None:
    await running.open(amqp := FakeAmqp().on(PUBLISH, answer))
    with pytest.raises(Unconfirmed, match=words) as unconfirmed:
        await running.publish()
    assert type(unconfirmed.value) is kind
    assert unconfirmed.value.channel is amqp.channels[0]  # type: ignore[comparison-overlap]  # the fake stands for it


async def test_message_is_reported_as_published_before_its_confirm(running: RunningChannel) -> None:
    await running.open(amqp := FakeAmqp().on(PUBLISH, HANGS))
    attempt = asyncio.create_task(running.publish("an id"))
    await eventually("the message is published", lambda: running.published)
    assert (amqp.requests.count(PUBLISH), attempt.done()) == (1, False)
    assert [each.message_id for each in running.published] == ["an id"]
    attempt.cancel()
    await asyncio.wait([attempt])


async def test_message_that_the_library_refuses_is_not_reported_as_published(running: RunningChannel) -> None:
    await running.open(FakeAmqp().on(PUBLISH, aiormq.exceptions.ChannelInvalidStateError("closed")))
    with pytest.raises(Unconfirmed):
        await running.publish()
    assert running.published == []


async def test_cancelled_attempt_is_no_loss(running: RunningChannel) -> None:
    await running.open(amqp := FakeAmqp().on(PUBLISH, HANGS))
    attempt = asyncio.create_task(running.publish())
    await eventually("the message is published", lambda: PUBLISH in amqp.requests)
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt


async def test_attempts_wait_for_a_channel_and_keep_their_order(running: RunningChannel) -> None:
    order: list[int] = []

    async def publish(number: int) -> None:
        await running.publish()
        order.append(number)

    waiting = [asyncio.create_task(publish(number)) for number in range(3)]
    await asyncio.sleep(0.1)
    waiting[0].cancel()
    await asyncio.sleep(0.1)
    await running.open(amqp := FakeAmqp())
    waiting.append(asyncio.create_task(publish(3)))
    await asyncio.wait(waiting)
    assert order == [1, 2, 3]
    assert amqp.requests.count(PUBLISH) == 3


@pytest.mark.parametrize(("ids", "at_once"), [(("a", "a"), 1), (("a", "b"), 2), ((None, None), 2)])
async def test_two_messages_of_the_same_id_are_published_one_by_one(
    running: RunningChannel, ids: tuple[str | None, ...], at_once: int
) -> None:
    """aiormq finds a returned message only by its id, so it would confuse two messages with the same id."""
    await running.open(amqp := FakeAmqp().on(PUBLISH, HANGS))
    attempts = [asyncio.create_task(running.publish(each)) for each in ids]
    await asyncio.sleep(0.1)
    assert amqp.requests.count(PUBLISH) == at_once
    attempts[0].cancel()
    await asyncio.sleep(0.1)
    assert amqp.requests.count(PUBLISH) == 2
    attempts[1].cancel()
    await asyncio.gather(*attempts, return_exceptions=True)


# The channel


async def test_reset_ends_the_session_with_its_reason(running: RunningChannel) -> None:
    session = await running.open(amqp := FakeAmqp())
    [channel] = amqp.channels
    running.channel.reset(channel, "the queue is gone")  # type: ignore[arg-type]  # the fake stands for it
    assert not running.channel.is_open, "new attempts wait for the next channel"
    assert await session == "the queue is gone"


async def test_channel_that_is_closed_ends_no_other_session(running: RunningChannel) -> None:
    """For each message that the broker returns, a reset of the channel is requested, even after the channel's end."""
    session = await running.open(first := FakeAmqp())
    first.lose()
    await session
    second = await running.open(FakeAmqp())
    running.channel.reset(first.channels[0], "the queue is gone")  # type: ignore[arg-type]  # the fake stands for it
    await asyncio.sleep(0.1)
    assert running.channel.is_open
    assert not second.done()


async def test_reset_of_a_channel_that_ends_at_the_same_time_does_nothing(running: RunningChannel) -> None:
    session = await running.open(amqp := FakeAmqp())
    amqp.lose()
    await asyncio.sleep(0)
    running.channel.reset(amqp.channels[0], "the queue is gone")  # type: ignore[arg-type]  # the fake stands for it
    assert await session == "CONNECTION_FORCED - shutdown"


async def test_fail_raises_in_waiting_and_later_attempts(running: RunningChannel) -> None:
    waiting = [asyncio.create_task(running.publish()) for _ in range(2)]
    await asyncio.sleep(0.1)
    running.channel.fail(ValueError("never"))
    waiting.append(asyncio.create_task(running.publish()))
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(result) for result in results] == ["never"] * 3


async def test_fail_does_not_affect_an_open_channel(running: RunningChannel) -> None:
    await running.open(FakeAmqp())
    running.channel.fail(ValueError("never"))
    await running.publish()


@pytest.mark.parametrize(("agreed", "used"), [(8192, 8192), (0, LARGEST_FRAME)], ids=["small", "without a limit"])
async def test_properties_are_created_for_the_connection_that_publishes_them(
    running: RunningChannel, agreed: int, used: int
) -> None:
    amqp = FakeAmqp()
    amqp.connection_tune.frame_max = agreed
    await running.open(amqp)
    await running.publish()
    assert running.frame_max == used


async def test_node_with_a_failed_setup_is_tried_last(running: RunningChannel) -> None:
    """A cluster node without a majority accepts the connection, and answers no further requests."""
    nodes = tuple(Node(f"amqp://{name}/") for name in ("one", "two", "three"))
    running.channel._nodes = NodeRotation(nodes)
    running.hangs = True
    running.broker.connections.append(FakeAmqp())
    with pytest.raises(ConnectionError):
        await running.run_session()
    assert running.broker.nodes == nodes
    running.hangs = False
    await running.open(FakeAmqp())
    assert running.broker.nodes == (*nodes[1:], nodes[0])
