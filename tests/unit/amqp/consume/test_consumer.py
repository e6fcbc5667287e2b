"""Tests of a consumer's sessions: their logs and metrics, what the broker can refuse, and how they stop."""

from __future__ import annotations

import asyncio
import logging
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import aiormq
import pytest
from pamqp import commands
from structlog.testing import capture_logs

from bridge.amqp import status, supervisor
from bridge.amqp.close_cause import SessionEndedError
from bridge.amqp.consume import consumed_queue, gaps, topology_check
from bridge.amqp.consume import consumer as module
from bridge.amqp.consume.consumer import Consumer, ConsumerConfig
from bridge.amqp.consume.flow_control import FlowControl
from bridge.amqp.consume.repeated_failures import CLOSED_EARLY, LOST_EARLY
from bridge.amqp.consume.stall_detector import LONGEST_PAUSE_S, STALLED
from bridge.amqp.consume.stream_position import Verdict
from bridge.amqp.consume.stream_reader import StreamConfig
from bridge.amqp.consume.stream_session import POSSIBLE_GAP
from bridge.amqp.consume.topology_check import UNVERIFIED_BINDING
from bridge.amqp.nodes import Node
from bridge.amqp.status import State
from bridge.errors import BrokerRefusal
from bridge.metrics import Metrics
from bridge.source import register_source_metrics
from bridge.timing import DEFAULT
from tests.support.delivery_handler import Recorder
from tests.support.fake_amqp import (
    HANGS,
    NO_EXCHANGE,
    NO_QUEUE,
    REFUSED,
    FakeAmqp,
    FakeBroker,
    FakeTransport,
    delivery,
    header,
    method,
    part,
)
from tests.support.virtual_time import VirtualTime
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from structlog.typing import EventDict

NODES = (Node("amqp://localhost/"),)
LOOK = "queue kept passive"


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    return VirtualTime(monkeypatch, module, supervisor, status, gaps, consumed_queue, topology_check)


class RunningConsumer:
    """A consumer, with a fake broker for its sessions."""

    def __init__(
        self, broker: FakeBroker, queue: str | None = "kept", *, wait: bool = False, nodes: tuple[str, ...] = ()
    ) -> None:
        self.broker = broker
        self.recorder = Recorder()
        self.metrics = Metrics()
        addresses = tuple(Node(f"amqp://{node}/") for node in nodes) or NODES
        config = ConsumerConfig(addresses, ("killmails",), queue, "a bridge")
        self.flow_control = FlowControl(20)
        self.consumer = Consumer(config, self.recorder, self.flow_control, self.metrics, wait)
        register_source_metrics(self.metrics, self.consumer)
        self.states: list[State] = []
        self.running: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self.running = asyncio.create_task(self.consumer.run())

    async def works(self) -> None:
        await eventually("the consumer consumes", lambda: self.consumer.status.state is State.WORKING)

    async def is_lost(self) -> None:
        await eventually("the broker is lost", lambda: self.consumer.status.state is State.LOST, limit_s=60)

    async def stop(self) -> None:
        self.consumer.stop()
        assert self.running is not None
        async with asyncio.timeout(60):
            await self.running

    def count(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(name)

    def feed(self, *tags: int) -> None:
        """Delivers events on the consumer's channel."""
        fast_channel = self.broker.fast_channel
        assert fast_channel is not None
        assert fast_channel.feed(b"".join(delivery(b"body", tag=tag) for tag in tags)) == b""


@pytest.fixture
def broker(clock: VirtualTime, monkeypatch: pytest.MonkeyPatch) -> FakeBroker:
    broker = FakeBroker()
    monkeypatch.setattr(module, "open_connection", broker.open_connection)
    return broker


@pytest.fixture
async def running(broker: FakeBroker) -> AsyncIterator[RunningConsumer]:
    """A consumer of a named queue."""
    running = RunningConsumer(broker)
    yield running
    await end(running)


@pytest.fixture
async def exclusive(broker: FakeBroker) -> AsyncIterator[RunningConsumer]:
    """A consumer of an exclusive queue."""
    running = RunningConsumer(broker, None)
    yield running
    await end(running)


async def end(running: RunningConsumer) -> None:
    if running.running is not None:
        running.running.cancel()
        await asyncio.wait([running.running])


def events(logged: list[EventDict]) -> list[tuple[str, str]]:
    return [(line["log_level"], line["event"]) for line in logged]


# Set up


async def test_session_sets_everything_up_before_it_consumes(running: RunningConsumer) -> None:
    running.broker.connections.append(amqp := FakeAmqp())
    with capture_logs() as logged:
        running.begin()
        await running.works()
    assert (running.broker.nodes, running.broker.name) == (NODES, "a bridge")
    assert [request for request in amqp.requests if not request.startswith(("channel", "close"))] == [
        "exchange killmails passive",
        "exchange killmails fanout durable",
        "queue kept passive",
        "bind kept to killmails #",
        "qos 20",
        "consume kept",
    ]
    assert events(logged) == [("info", "consuming")]
    assert running.count("bridge_consuming") == 1
    assert running.count("bridge_broker_connection_attempts_total") == 1
    assert running.consumer.status.failed_connects == 0
    assert running.consumer.is_live


async def test_channel_is_logged_at_debug_when_it_consumes_and_when_it_is_closed(
    running: RunningConsumer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "bridge.amqp")
    running.broker.connections += [amqp := FakeAmqp(), FakeAmqp()]
    running.begin()
    await running.works()
    amqp.lose()
    await eventually(
        "the loss is noticed", lambda: any(line.getMessage() == "channel closed" for line in caplog.records)
    )
    opened, closed = [line for line in caplog.records if line.getMessage().startswith("channel")][:2]
    assert (opened.getMessage(), closed.getMessage()) == ("channel opened", "channel closed")
    assert opened.__dict__["connection"] == closed.__dict__["connection"] == "a bridge"
    assert opened.__dict__["channel"] == closed.__dict__["channel"]
    assert closed.__dict__["reason"] == "CONNECTION_FORCED - shutdown"


async def test_exclusive_queue_has_no_priority(exclusive: RunningConsumer) -> None:
    exclusive.broker.connections.append(amqp := FakeAmqp())
    exclusive.begin()
    await exclusive.works()
    assert "queue (unnamed) exclusive" in amqp.requests
    assert "consume amq.gen-1" in amqp.requests
    assert amqp.channels[0].arguments[-1] is None


async def test_deliveries_may_arrive_before_consume_ok(
    running: RunningConsumer,
) -> None:
    running.broker.connections.append(FakeAmqp().on("consume kept", lambda: running.feed(1)))
    running.begin()
    await running.works()
    running.feed(2)
    assert running.recorder.bodies == [b"body", b"body"]


async def test_newest_connection_has_the_highest_priority_whatever_the_clock_shows(
    running: RunningConsumer, clock: VirtualTime
) -> None:
    """A broker may not notice at once that an old connection has ended.

    The broker must not send half of the events to the old connection.
    """
    connections = [FakeAmqp() for _ in range(3)]
    running.broker.connections += connections
    running.begin()
    await running.works()
    for amqp in connections[:2]:
        clock.time_ns = lambda: 1_000_000  # type: ignore[method-assign]  # the machine's clock was set back
        amqp.lose()
        await running.is_lost()
        await running.works()
    arguments: list[Any] = [each.channels[0].arguments[-1] for each in connections]
    first, second, third = (each["x-priority"] for each in arguments)
    assert first > 1_000_000
    assert (second, third) == (first + 1, first + 2)


async def test_broker_that_does_not_answer_during_the_setup_is_given_up(
    running: RunningConsumer, clock: VirtualTime
) -> None:
    running.broker.connections.append(FakeAmqp().on("qos 20", HANGS))
    before_s = clock.now_s
    running.begin()
    await running.is_lost()
    assert running.consumer.status.error == f"the broker does not answer within {DEFAULT.setup_timeout_s:g} s"
    assert clock.now_s - before_s == pytest.approx(DEFAULT.setup_timeout_s + DEFAULT.give_up_s, abs=0.1)
    assert running.broker.closed == 1


# Refusals


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (REFUSED, "the user of BRIDGE_AMQP_URL lacks a permission: .*; grant read on the queue 'kept'; see docker/"),
        (
            aiormq.exceptions.ChannelPreconditionFailed("PRECONDITION_FAILED - invalid arg 'x-priority' for queue"),
            "the queue 'kept' is a stream, .* set BRIDGE_HISTORY=stream and BRIDGE_HISTORY_STREAM=kept instead of",
        ),
    ],
    ids=["permission", "stream"],
)
async def test_refusal_to_consume_ends_the_bridge(running: RunningConsumer, error: Exception, words: str) -> None:
    running.broker.connections.append(FakeAmqp().on("consume kept", error))
    with pytest.raises(BrokerRefusal, match=words):
        await running.consumer.run()
    assert running.broker.attempts == 1


@pytest.mark.parametrize(
    "error",
    [
        aiormq.exceptions.ChannelAccessRefused("ACCESS_REFUSED - queue 'kept' in vhost '/' in exclusive use"),
        aiormq.exceptions.ChannelPreconditionFailed("PRECONDITION_FAILED - something else"),
    ],
    ids=["exclusive use", "another argument"],
)
async def test_temporary_error_is_no_refusal_and_is_retried(running: RunningConsumer, error: Exception) -> None:
    running.broker.connections += [FakeAmqp().on("consume kept", error), FakeAmqp()]
    running.begin()
    await running.works()
    assert running.broker.attempts == 2
    assert running.consumer.status.error == str(error.args[-1])


async def test_refusal_with_wait_is_retried_and_logged_once(broker: FakeBroker) -> None:
    broker.connections += [FakeAmqp().on("consume kept", REFUSED) for _ in range(3)]
    broker.connections.append(FakeAmqp())
    running = RunningConsumer(broker, wait=True)
    with capture_logs() as logged:
        running.begin()
        await running.works()
    assert events(logged) == [("warning", "broker refuses; trying again"), ("info", "consuming")]
    assert running.count("bridge_broker_losses_total") == 0
    await end(running)


# Losses


async def test_broker_that_is_away_is_logged_once_and_counted_as_attempts(running: RunningConsumer) -> None:
    running.broker.connections += [*[ConnectionError("connection refused")] * 3, FakeAmqp()]
    with capture_logs() as logged:
        running.begin()
        await running.works()
    assert events(logged) == [("warning", "broker not available; trying again"), ("info", "consuming")]
    assert logged[0]["error"] == "connection refused"
    assert logged[1]["attempts"] == 4
    assert running.count("bridge_broker_connection_attempts_total") == 4
    assert running.count("bridge_broker_losses_total") == 0


async def test_attempts_without_a_connection_are_counted(running: RunningConsumer) -> None:
    running.broker.connections += [ConnectionError("refused"), ConnectionError("refused")]
    running.begin()
    await eventually("there is another attempt", lambda: running.broker.attempts == 3)
    assert running.consumer.status.failed_connects == 3


async def test_attempt_with_a_connection_does_not_count_as_failed_connect(
    running: RunningConsumer,
) -> None:
    running.broker.connections += [FakeAmqp().on("qos 20", ConnectionError("gone"))] * 2
    running.begin()
    await eventually("there is another attempt", lambda: running.broker.attempts == 3)
    assert running.consumer.status.failed_connects == 1


async def test_loss_and_recovery_are_logged_as_a_pair_and_the_loss_is_counted(running: RunningConsumer) -> None:
    """A named queue that still exists after the outage has kept all events."""
    first = FakeAmqp()
    running.broker.connections += [first, ConnectionError("refused"), FakeAmqp()]
    running.begin()
    await running.works()
    with capture_logs() as logged:
        first.lose()
        await running.is_lost()
        assert running.count("bridge_consuming") == 0
        assert not running.consumer.is_live
        await running.works()
    assert events(logged) == [("warning", "broker lost"), ("info", "broker recovered")]
    assert logged[0]["error"] == "CONNECTION_FORCED - shutdown"
    assert (logged[1]["gap_possible"], logged[1]["attempts"]) == (False, 2)
    assert logged[1]["after_s"] > 0
    assert running.count("bridge_broker_losses_total") == 1
    assert running.recorder.gaps == []


async def test_queue_that_was_declared_again_is_a_gap_since_the_last_answer(
    exclusive: RunningConsumer, clock: VirtualTime
) -> None:
    first = FakeAmqp()
    exclusive.broker.connections += [first, FakeAmqp()]
    exclusive.begin()
    await exclusive.works()
    assert exclusive.recorder.gaps == [], "nothing is missed before the first session"
    answered_s = clock.time()
    await asyncio.sleep(1.0)
    with capture_logs() as logged:
        first.lose()
        await exclusive.is_lost()
        await exclusive.works()
    [gap] = exclusive.recorder.gaps
    assert gap.reason == "CONNECTION_FORCED - shutdown"
    assert gap.since_s == pytest.approx(answered_s, abs=0.1)
    assert gap.until_s == pytest.approx(clock.time(), abs=0.1)
    assert logged[-1]["gap_possible"] is True
    assert exclusive.consumer.gaps.last == gap
    assert exclusive.count("bridge_gaps_total") == 1


async def test_gap_begins_when_the_queue_was_last_empty(exclusive: RunningConsumer, clock: VirtualTime) -> None:
    """When an exclusive queue is lost, so are the events in it, no matter how recently the broker answered."""
    first = FakeAmqp()
    look = "queue amq.gen-1 passive"
    first.on(look, None, commands.Queue.DeclareOk("amq.gen-1", 3, 1))
    exclusive.broker.connections += [first, FakeAmqp()]
    exclusive.begin()
    await exclusive.works()
    await eventually("the queue is empty", lambda: look in first.requests, limit_s=60)
    empty_s = clock.time()
    await asyncio.sleep(20)
    first.lose()
    await exclusive.is_lost()
    await exclusive.works()
    [gap] = exclusive.recorder.gaps
    assert gap.since_s == pytest.approx(empty_s, abs=0.1)


@pytest.mark.parametrize(
    ("ends", "broker_may_have_restarted"),
    [
        ([aiormq.exceptions.ConnectionClosed(320, "CONNECTION_FORCED - Closed via management plugin")], False),
        ([aiormq.exceptions.AMQPConnectionError("Server connection unexpectedly closed")], True),
        (
            [
                aiormq.exceptions.AMQPConnectionError("Server connection unexpectedly closed"),
                aiormq.exceptions.ConnectionClosed(320, "CONNECTION_FORCED - Closed via management plugin"),
            ],
            True,
        ),
    ],
    ids=["with a reason", "without a reason", "without a reason, then with one"],
)
async def test_loss_without_a_reason_is_recorded_until_the_broker_works_again(
    running: RunningConsumer, ends: list[Exception], *, broker_may_have_restarted: bool
) -> None:
    first, *others = ends
    running.broker.connections.append(working := FakeAmqp())
    running.broker.connections += [FakeAmqp().on("qos 20", error) for error in others]
    running.begin()
    await running.works()
    working.lose(first)
    await eventually("there are more attempts", lambda: running.broker.attempts == len(ends) + 1)
    assert running.consumer.status.broker_may_have_restarted is broker_may_have_restarted
    running.broker.connections.append(FakeAmqp())
    assert running.running is not None
    running.running.cancel()
    await asyncio.wait([running.running])
    running.begin()
    await running.works()
    assert not running.consumer.status.broker_may_have_restarted


INTERNAL_ERROR = aiormq.exceptions.ConnectionInternalError("INTERNAL_ERROR")


async def lost_at_once(running: RunningConsumer, error: Exception, times: int) -> list[float]:
    """Breaks `times` connections one after another, each as soon as it consumes.

    Returns the pauses (s) between the connections.
    """
    connections = [FakeAmqp() for _ in range(times)]
    for amqp in connections:
        amqp.on("consume kept", lambda amqp=amqp: asyncio.get_running_loop().call_soon(amqp.lose, error) and None)
    running.broker.connections += [*connections, FakeAmqp()]
    begun_s = []
    running.begin()
    for attempt in range(times + 1):
        await eventually("there is another attempt", lambda: running.broker.attempts > attempt, limit_s=100)  # noqa: B023 - the wait ends within this iteration
        begun_s.append(asyncio.get_running_loop().time())
    return [later - earlier for earlier, later in pairwise(begun_s)]


async def test_connection_that_ends_at_each_delivery_is_retried_later_and_reported(running: RunningConsumer) -> None:
    with capture_logs() as logged:
        pauses_s = await lost_at_once(running, INTERNAL_ERROR, 9)
        assert pauses_s[0] < 1.5, "a single loss is not reported"
        assert 15 <= pauses_s[-1] < 30 + 2.5
        assert running.consumer.warnings == [CLOSED_EARLY]
        await running.works()
        await asyncio.sleep(DEFAULT.check_interval_s + 0.1)
    reported = [line for line in logged if line["event"] == CLOSED_EARLY]
    assert [(line["log_level"], line["times"], line["error"]) for line in reported] == [
        ("error", times, "INTERNAL_ERROR") for times in (2, 4, 8)
    ]


async def test_connection_that_is_repeatedly_lost_at_once_is_not_blamed_on_a_message(
    running: RunningConsumer,
) -> None:
    await lost_at_once(running, aiormq.exceptions.AMQPConnectionError("reset"), 2)
    assert running.consumer.warnings == [LOST_EARLY]


async def test_connection_with_an_answer_of_the_broker_was_not_lost_early(running: RunningConsumer) -> None:
    connections = [FakeAmqp(), FakeAmqp(), FakeAmqp()]
    running.broker.connections += connections
    running.begin()
    for amqp in connections[:2]:
        await running.works()
        await asyncio.sleep(DEFAULT.check_interval_s + 0.1)
        amqp.lose(INTERNAL_ERROR)
        await running.is_lost()
    await running.works()
    assert running.consumer.warnings == []


async def test_bridge_that_stops_does_not_wait_for_the_next_session(running: RunningConsumer) -> None:
    await lost_at_once(running, INTERNAL_ERROR, 6)
    attempts = running.broker.attempts
    await running.stop()
    assert running.broker.attempts == attempts


async def test_prefetch_is_restored_on_the_same_channel_when_there_is_room(running: RunningConsumer) -> None:
    running.broker.connections += [first := FakeAmqp(), second := FakeAmqp()]
    running.recorder.holds = True
    running.begin()
    await running.works()
    running.feed(1, 2, 3)
    running.flow_control.set_full(True)
    first.lose()
    await running.is_lost()
    await running.works()
    assert "qos 3" in second.requests
    running.flow_control.set_full(True)
    running.flow_control.set_full(False)
    await eventually("there is a second consumer", lambda: second.requests.count("consume kept") == 2)
    of_the_channel = [each for each in second.requests if each.startswith(("qos", "consume", "cancel"))]
    assert of_the_channel == ["qos 3", "consume kept", "cancel tag-1", "qos 20", "consume kept"]
    running.feed(1)
    assert running.consumer.status.state is State.WORKING


@pytest.mark.parametrize("how", ["stopped", "its exchange is gone"])
async def test_exclusive_queue_is_unbound_before_its_connection_is_closed(exclusive: RunningConsumer, how: str) -> None:
    amqp = FakeAmqp()
    if how != "stopped":
        amqp.on("exchange killmails passive", None, NO_EXCHANGE)
    exclusive.broker.connections.append(amqp)
    exclusive.begin()
    await exclusive.works()
    if how == "stopped":
        await exclusive.stop()
    await eventually("the connection is closed", lambda: exclusive.broker.closed, limit_s=60)
    assert amqp.requests[-1] == "unbind amq.gen-1 from killmails #"


async def test_gap_is_reported_before_the_first_delivery_after_it(exclusive: RunningConsumer) -> None:
    first = FakeAmqp()
    exclusive.broker.connections += [first, FakeAmqp().on("consume amq.gen-1", lambda: exclusive.feed(1))]
    exclusive.begin()
    await exclusive.works()
    first.lose()
    await eventually("there is a delivery", lambda: exclusive.recorder.bodies)
    [gap, came] = exclusive.recorder.log
    assert gap == exclusive.consumer.gaps.last
    assert came != gap


async def test_exchange_that_a_failed_attempt_declared_is_a_gap_of_the_next_session(
    running: RunningConsumer,
) -> None:
    """Events that were published before the exchange was declared never reached a queue.

    It does not matter which attempt declared the exchange.
    """
    first = FakeAmqp()
    failing = FakeAmqp().on(LOOK, ConnectionError("gone again"))
    failing.on("exchange killmails passive", NO_EXCHANGE)
    third = FakeAmqp()
    running.broker.connections += [first, failing, third]
    running.begin()
    await running.works()
    first.lose()
    await running.is_lost()
    await running.works()
    assert [gap.reason for gap in running.recorder.gaps] == ["gone again"]
    third.lose()
    running.broker.connections.append(FakeAmqp())
    await running.is_lost()
    await running.works()
    assert len(running.recorder.gaps) == 1, "the gap was reported"


async def test_missing_exchange_is_declared_as_it_was(running: RunningConsumer) -> None:
    mismatch = aiormq.exceptions.ChannelPreconditionFailed(
        "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'killmails' in vhost '/': received 'fanout' but "
        "current is 'topic'"
    )
    first = FakeAmqp().on("exchange killmails fanout durable", mismatch)
    second = FakeAmqp().on("exchange killmails passive", NO_EXCHANGE)
    running.broker.connections += [first, second]
    running.begin()
    await running.works()
    first.lose()
    await running.is_lost()
    await running.works()
    declared = [request for request in second.requests if request.startswith("exchange killmails")]
    assert declared[:2] == ["exchange killmails passive", "exchange killmails topic durable"]


@pytest.mark.parametrize("which", ["connection", "channel", "consumer"])
async def test_loss_of_any_part_ends_the_session_with_its_reason(running: RunningConsumer, which: str) -> None:
    first = FakeAmqp()
    running.broker.connections += [first, FakeAmqp()]
    running.recorder.holds = True
    running.begin()
    await running.works()
    running.feed(1)
    channel = first.channels[0]
    if which == "connection":
        first.lose(aiormq.exceptions.ConnectionClosed(320, "CONNECTION_FORCED"))
    elif which == "channel":
        channel.closing.set_exception(aiormq.exceptions.ChannelClosed(406, "PRECONDITION_FAILED - delivery timed out"))
    else:
        [cancelled] = channel.on_consumer_cancel_callbacks
        cancelled(object())
    await running.is_lost()
    words = {"connection": "CONNECTION_FORCED", "channel": "delivery timed out", "consumer": "cancelled the consumer"}
    assert words[which] in str(running.consumer.status.error)
    assert running.recorder.settleable_at_session_end == [[False]], "unsettled deliveries belong to the broker again"
    await running.works()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "the broker cancelled the consumer"),
        (NO_QUEUE, "the broker cancelled the consumer: its queue is gone"),
        (
            aiormq.exceptions.ChannelNotFoundEntity("NOT_FOUND - queue 'kept' is down or inaccessible"),
            "the broker cancelled the consumer: NOT_FOUND - queue 'kept' is down or inaccessible",
        ),
        (HANGS, f"the broker cancelled the consumer: the broker does not answer within {DEFAULT.cancel_timeout_s:g} s"),
    ],
    ids=["there", "gone", "down", "silent"],
)
async def test_queue_is_reported_as_gone_only_if_it_is_absent(
    running: RunningConsumer, answer: object, words: str
) -> None:
    first = FakeAmqp().on(LOOK, None, answer)
    running.broker.connections += [first, FakeAmqp()]
    running.begin()
    await running.works()
    [cancelled] = first.channels[0].on_consumer_cancel_callbacks
    cancelled(object())
    await running.is_lost()
    assert running.consumer.status.error == words


async def test_node_that_does_not_answer_a_request_is_tried_last(broker: FakeBroker) -> None:
    running = RunningConsumer(broker, nodes=("one", "two", "three"))
    broker.connections += [FakeAmqp().on("qos 20", HANGS), FakeAmqp()]
    running.begin()
    await running.is_lost()
    await running.works()
    assert [node.url for node in broker.nodes] == ["amqp://two/", "amqp://three/", "amqp://one/"]
    await end(running)


# The check of the topology


async def test_topology_check_proves_that_the_connection_works(running: RunningConsumer, clock: VirtualTime) -> None:
    running.broker.connections.append(amqp := FakeAmqp())
    running.begin()
    await running.works()
    amqp.requests.clear()
    before_s = clock.now_s
    await asyncio.sleep(DEFAULT.check_interval_s + 0.1)
    last_answered_s = running.consumer.status.last_answered_s
    assert last_answered_s is not None
    assert last_answered_s == pytest.approx(before_s + DEFAULT.check_interval_s, abs=0.1)
    assert {*amqp.requests} == {
        "channel",
        "exchange killmails passive",
        "exchange killmails fanout durable",
        LOOK,
        "bind kept to killmails #",
    }
    assert amqp.channels[0].published == []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (NO_QUEUE, "NOT_FOUND - no queue 'kept' in vhost '/'"),
        (asyncio.CancelledError(), "the channel was closed"),
    ],
    ids=["gone", "cancelled"],
)
async def test_changed_topology_ends_the_session(running: RunningConsumer, answer: object, reason: str) -> None:
    running.broker.connections += [FakeAmqp().on(LOOK, None, None, answer), FakeAmqp()]
    running.begin()
    await running.works()
    await running.is_lost()
    assert running.consumer.status.error == reason
    await running.works()


async def test_broker_that_stops_answering_ends_the_session(running: RunningConsumer) -> None:
    first = FakeAmqp().on(LOOK, None, HANGS)
    first.on("exchange killmails passive", None, HANGS).on("bind kept to killmails #", None, HANGS)
    running.broker.connections += [first, FakeAmqp()]
    running.begin()
    await running.works()
    await running.is_lost()
    assert running.consumer.status.error == f"the broker does not answer within {DEFAULT.check_timeout_s:g} s"
    assert running.consumer.warnings == []
    await running.works()


def consumers(count: int) -> commands.Queue.DeclareOk:
    return commands.Queue.DeclareOk("kept", 0, count)


async def test_other_consumers_of_the_queue_are_logged_once_and_so_is_their_end(running: RunningConsumer) -> None:
    running.broker.connections.append(FakeAmqp().on(LOOK, None, *map(consumers, (1, 3, 2, 0, 1, 2))))
    running.begin()
    await running.works()
    seen = []
    with capture_logs() as logged:
        for _ in range(6):
            await asyncio.sleep(DEFAULT.check_interval_s + 0.01)
            seen.append((running.consumer.other_consumers, len(logged)))
    assert seen == [(0, 0), (2, 1), (1, 1), (0, 2), (0, 2), (1, 3)]
    assert [line["log_level"] for line in logged] == ["error", "info", "error"]
    assert (logged[0]["queue"], logged[0]["others"]) == ("kept", 2)
    assert running.count("bridge_queue_other_consumers") == 1


async def test_exclusive_queue_has_no_other_consumers(exclusive: RunningConsumer) -> None:
    exclusive.broker.connections.append(FakeAmqp().on("queue amq.gen-1 passive", consumers(5)))
    exclusive.begin()
    await exclusive.works()
    with capture_logs() as logged:
        await asyncio.sleep(3 * DEFAULT.check_interval_s)
    assert (logged, exclusive.consumer.other_consumers) == ([], 0)


async def test_other_consumers_are_forgotten_with_the_connection(running: RunningConsumer) -> None:
    first = FakeAmqp().on(LOOK, None, consumers(2))
    running.broker.connections += [first, ConnectionError("refused")]
    running.begin()
    await running.works()
    await eventually("other consumers are reported", lambda: running.consumer.other_consumers)
    first.lose()
    await running.is_lost()
    assert running.consumer.other_consumers == 0


async def test_unverified_binding_is_logged_for_each_connection_and_not_retried(
    running: RunningConsumer,
) -> None:
    def guarded() -> FakeAmqp:
        return FakeAmqp().on("bind kept to killmails #", REFUSED).on("queue kept declare durable", REFUSED)

    first = guarded()
    running.broker.connections += [first, guarded(), FakeAmqp()]
    with capture_logs() as logged:
        running.begin()
        await running.works()
        [doubt] = running.consumer.warnings
        assert "may not bind the queue to killmails" in doubt
        await asyncio.sleep(3 * DEFAULT.check_interval_s)
        first.lose()
        await running.is_lost()
        await running.works()
    reported = [line for line in logged if line["event"] == UNVERIFIED_BINDING]
    assert [(line["queue"], line["exchanges"]) for line in reported] == [("kept", ("killmails",))] * 2
    assert first.requests.count("bind kept to killmails #") == 1


# Stop


async def test_stop_cancels_the_consumer_waits_for_settlement_and_closes(running: RunningConsumer) -> None:
    running.broker.connections.append(amqp := FakeAmqp())
    running.recorder.holds = True
    running.begin()
    await running.works()
    fast_channel = running.broker.fast_channel
    assert fast_channel is not None
    fast_channel.attach(transport := FakeTransport())
    running.feed(1, 2)
    with capture_logs() as logged:
        running.consumer.stop()
        await eventually("the consumer is cancelled", lambda: amqp.requests[-1] == "cancel tag-1")
        assert running.broker.closed == 0
        for each in running.recorder.deliveries:
            each.settle()
        assert running.running is not None
        await running.running
    assert len(transport.written) == 1
    assert running.broker.closed == 1
    assert running.consumer.status.state is State.STOPPED
    assert (logged, running.count("bridge_broker_losses_total")) == ([], 0)


async def test_delivery_that_is_settled_at_the_last_moment_is_acknowledged(running: RunningConsumer) -> None:
    """If the bridge stopped without acknowledging the event, the next bridge that starts would get the event again."""

    def settle() -> None:
        running.recorder.deliveries[0].settle()

    running.recorder.holds = True
    running.broker.connections.append(FakeAmqp().on("cancel tag-1", settle))
    running.begin()
    await running.works()
    fast_channel = running.broker.fast_channel
    assert fast_channel is not None
    fast_channel.attach(transport := FakeTransport())
    running.feed(1)
    await running.stop()
    assert len(transport.written) == 1


@pytest.mark.parametrize(("queue", "kept"), [("kept", True), (None, False)])
async def test_deliveries_not_settled_in_time_are_logged_with_whether_the_broker_keeps_them(
    broker: FakeBroker, clock: VirtualTime, queue: str | None, *, kept: bool
) -> None:
    broker.connections.append(FakeAmqp())
    running = RunningConsumer(broker, queue)
    running.recorder.holds = True
    running.begin()
    await running.works()
    running.feed(1, 2)
    before_s = clock.now_s
    with capture_logs() as logged:
        await running.stop()
    assert clock.now_s - before_s == pytest.approx(DEFAULT.settle_timeout_s, abs=0.01)
    [line] = logged
    assert (line["event"], line["log_level"]) == ("stopped with unsettled deliveries", "warning")
    assert (line["deliveries"], line["kept_by_the_broker"]) == (2, kept)


@pytest.mark.parametrize(
    "answer",
    [HANGS, aiormq.exceptions.ConnectionClosed(320, "gone"), OSError("reset"), RuntimeError("closed")],
    ids=["silent", "lost", "reset", "closed"],
)
async def test_cancel_that_the_broker_does_not_confirm_is_logged_and_the_stop_continues(
    running: RunningConsumer, clock: VirtualTime, answer: object
) -> None:
    running.broker.connections.append(FakeAmqp().on("cancel tag-1", answer))
    running.recorder.holds = True
    running.begin()
    await running.works()
    running.feed(1)
    before_s = clock.now_s
    with capture_logs() as logged:
        await running.stop()
    assert events(logged) == [("warning", "the broker did not confirm that the consumer is cancelled")]
    assert clock.now_s - before_s <= DEFAULT.cancel_timeout_s + 0.01


async def test_delivery_that_bypasses_the_fast_channel_is_a_fault_of_the_bridge(running: RunningConsumer) -> None:
    running.broker.connections.append(amqp := FakeAmqp())
    running.begin()
    await running.works()
    callback: Any = amqp.channels[0].consumer
    with pytest.raises(AssertionError, match="bypassed the fast channel"):
        await callback(object())


# A stream


async def test_stream_is_consumed_from_the_offset_of_its_reader(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.connections.append(amqp := FakeAmqp())
    config = ConsumerConfig(NODES, ("killmails",), None, "a bridge", StreamConfig("past", 3600.0, 2**20, window=100))
    consumer = Consumer(config, Recorder(), FlowControl(20), Metrics(), wait=False)
    reader = consumer.stream_reader
    assert reader is not None
    begun: list[bool] = []

    async def begin_session(created: bool) -> None:
        begun.append(created)
        reader.start_offset = 4711

    monkeypatch.setattr(reader, "begin_session", begin_session)
    with capture_logs() as logged:
        running = asyncio.create_task(consumer.run())
        await eventually("the consumer consumes", lambda: consumer.status.state is State.WORKING)
    assert begun == [False]
    assert {"x-stream-offset": 4711} in amqp.channels[0].arguments
    assert [line["event"] for line in logged] == ["consuming", "reading the history"]
    assert (logged[-1]["stream"], logged[-1]["first"]) == ("past", 4711)
    running.cancel()
    await asyncio.wait([running])


class FakeStallDetector:
    """A fake of `StallDetector` that records its arguments, and reports a stall when a test demands it."""

    instances: list[FakeStallDetector]

    def __init__(self, _amqp: object, *given: object) -> None:
        self.given = given
        self.stalled = asyncio.Event()
        FakeStallDetector.instances.append(self)

    async def run(self, may_deliver: Callable[[], bool]) -> None:
        self.may_deliver = may_deliver
        await self.stalled.wait()
        raise SessionEndedError(STALLED)


@pytest.fixture
async def reading(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningConsumer]:
    """A consumer of a stream, with room for two deliveries."""
    FakeStallDetector.instances = []
    monkeypatch.setattr(module, "StallDetector", FakeStallDetector)
    reading = RunningConsumer(broker, None)
    stream = StreamConfig("past", 3600.0, 2**20, window=100)
    config = ConsumerConfig(NODES, ("killmails",), None, "a bridge", stream)
    reading.metrics = Metrics()
    reading.consumer = Consumer(config, reading.recorder, FlowControl(2), reading.metrics, wait=False)
    reader = reading.consumer.stream_reader
    assert reader is not None

    async def begin_session(created: bool) -> None:
        reader.start_offset = 0

    monkeypatch.setattr(reader, "begin_session", begin_session)
    yield reading
    await end(reading)


async def test_stalled_stream_is_reread(reading: RunningConsumer) -> None:
    reading.broker.connections += [FakeAmqp(), FakeAmqp()]
    with capture_logs() as logged:
        reading.begin()
        await reading.works()
        FakeStallDetector.instances[0].stalled.set()
        await eventually("there is another session", lambda: len(FakeStallDetector.instances) == 2)
    assert events(logged).count(("warning", "broker lost")) == 0, "the reread is not logged as a loss"
    assert reading.count("bridge_broker_losses_total") == 0
    [line] = [line for line in logged if "rereading" in line["event"]]
    assert (line["log_level"], line["reason"]) == ("warning", STALLED)


async def test_no_stall_is_detected_at_the_prefetch_limit(reading: RunningConsumer) -> None:
    """If the session ended when the prefetch is used up, rejected events that can't be published would be lost."""
    reading.broker.connections.append(FakeAmqp())
    reading.recorder.holds = True
    reading.begin()
    await reading.works()
    fast_channel, [detector] = reading.broker.fast_channel, FakeStallDetector.instances
    assert fast_channel is not None
    may_deliver = [detector.may_deliver()]
    for tag in (1, 2):
        # The offset is so large that it is encoded in 64 bits, like the offsets that a broker sends.
        properties = commands.Basic.Properties(headers={"x-stream-offset": 2**40 + tag})
        assert fast_channel.feed(method(tag) + header(5, properties) + part(b"event")) == b""
        may_deliver.append(detector.may_deliver())
    reading.recorder.deliveries[0].settle()
    may_deliver.append(detector.may_deliver())
    assert may_deliver == [True, True, False, True]
    reader, status_ = reading.consumer.stream_reader, reading.consumer.status
    assert reader is not None
    assert detector.given == (reader, status_.touch, DEFAULT)


async def test_queue_is_never_probed_for_a_stall(running: RunningConsumer) -> None:
    running.broker.connections.append(amqp := FakeAmqp())
    running.begin()
    await running.works()
    await asyncio.sleep(DEFAULT.check_interval_s + 0.1)
    channels = len(amqp.channels)
    await asyncio.sleep(2 * DEFAULT.stall_check_s)
    assert len(amqp.channels) == channels


async def test_sessions_that_stall_at_the_same_event_are_losses_and_rare(
    reading: RunningConsumer, monkeypatch: pytest.MonkeyPatch, clock: VirtualTime
) -> None:
    """Without pauses, stalled sessions would follow each other quickly, and each would publish a marker."""
    reader = reading.consumer.stream_reader
    assert reader is not None
    began_s: list[float] = []

    async def session_() -> str:
        began_s.append(clock.now_s)
        reading.consumer.status.enter(State.WORKING)
        if len(began_s) == 2:
            assert reader.position.observe(7, 1) is Verdict.NEW
        await asyncio.sleep(12)
        return STALLED

    monkeypatch.setattr(reading.consumer, "_run_session", session_)
    reading.begin()
    await eventually("there are twelve sessions", lambda: len(began_s) == 12, limit_s=1000)
    pauses_s = [later - earlier - 12 for earlier, later in pairwise(began_s)]
    assert pauses_s[:2] == pytest.approx([0.0, 0.0], abs=0.1), "an event was read between the first two sessions"
    assert all(LONGEST_PAUSE_S / 2 - 0.1 <= pause_s <= LONGEST_PAUSE_S + 2 for pause_s in pauses_s[-3:])
    assert reading.count("bridge_broker_losses_total") == 9


@pytest.mark.parametrize("stops", [False, True])
async def test_reread_after_a_possible_gap_is_no_loss(
    running: RunningConsumer, monkeypatch: pytest.MonkeyPatch, *, stops: bool
) -> None:
    reasons = iter([POSSIBLE_GAP, POSSIBLE_GAP, "gone"])

    async def session_() -> str:
        if stops:
            running.consumer.stop()
        return next(reasons)

    monkeypatch.setattr(running.consumer, "_run_session", session_)
    with capture_logs() as logged:
        assert await running.consumer._consume() == (POSSIBLE_GAP if stops else "gone")
    assert [(line["log_level"], line["reason"]) for line in logged] == ([] if stops else [("info", POSSIBLE_GAP)] * 2)
