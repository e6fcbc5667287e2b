"""The queue or the exchange of the bridges is deleted or changed."""

from collections.abc import AsyncIterator

import aio_pika
import pytest
import pytest_asyncio
from aio_pika.abc import AbstractConnection
from pamqp import commands, frame

from tests.support.broker.find import Broker
from tests.support.fake_amqp import split_frames
from tests.support.proxy import Proxy, proxy
from tests.support.publishing import observer, remade
from tests.support.scene import NAMED, Fault, Scene, scene

# All tests in this module share one event loop, because the bridges run only while their event loop runs.
pytestmark = pytest.mark.asyncio(loop_scope="module")


def assert_lost_only_between(stage: Scene, fault: Fault) -> None:
    """Checks that the bridges lost connections only because the exchange was missing."""
    for bridge in stage.bridges.values():
        errors = [str(line["error"]) for line in fault.lines(bridge, "broker lost")]
        assert all(error.startswith("NOT_FOUND - no exchange") for error in errors), errors


class Canceller:
    """Inserts `basic.cancel` into the broker's data, as if the broker cancelled the consumer."""

    def __init__(self) -> None:
        self._cancellations: list[_Cancellation] = []

    def of_a_connection(self) -> "_Cancellation":
        """Returns a function that inserts `basic.cancel` into the data of one connection."""
        self._cancellations.append(_Cancellation())
        return self._cancellations[-1]

    def cancel_all(self) -> None:
        """Cancels each current consumer once."""
        for each in self._cancellations:
            each.is_due = each.has_consumer


class _Cancellation:
    def __init__(self) -> None:
        self.is_due = False
        """True if the consumer must be cancelled."""
        self._rest = b""
        self._consumer: tuple[int, str] | None = None

    @property
    def has_consumer(self) -> bool:
        """Whether there is a consumer on this connection."""
        return self._consumer is not None

    def __call__(self, data: bytes) -> bytes:
        frames, self._rest = split_frames(self._rest + data)
        sent = b""
        for each in frames:
            sent += each
            _, channel, value = frame.unmarshal(each)
            if isinstance(value, commands.Basic.ConsumeOk):
                self._consumer = channel, value.consumer_tag or ""
        if self._consumer and self.is_due:
            self.is_due = False
            (channel, tag), self._consumer = self._consumer, None
            # The frame must go between two messages, because the frames of one message must not be separated.
            sent += frame.marshal(commands.Basic.Cancel(tag, nowait=True), channel)
        return sent


CANCELLER = Canceller()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tunnel(broker: Broker) -> AsyncIterator[Proxy]:
    """The proxy between the bridges of the fixture `stage` and the broker."""
    async with proxy(broker.url) as tunnel:
        tunnel.alteration = CANCELLER.of_a_connection
        await tunnel.open()
        yield tunnel


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(broker: Broker, tunnel: Proxy) -> AsyncIterator[Scene]:
    """Starts bridges that all tests of this module share, because no fault in this module ends a bridge."""
    async with scene(broker.url, tunnel.url) as stage:
        yield stage


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def observing(broker: Broker) -> AsyncIterator[AbstractConnection]:
    """Yields an observer's connection in the event loop of the fixture `stage`."""
    async with observer(broker.url) as connection:
        yield connection


async def test_queue_that_is_deleted_is_declared_again(stage: Scene, observing: AbstractConnection) -> None:
    """Promise: the bridge logs that its queue is gone, and declares it again at once.

    The events in the deleted queue are lost.
    """
    fault = await stage.fault()
    channel = await observing.channel()
    await channel.queue_delete(stage.queue)
    await channel.close()
    await stage.verify(fault, "the queue is deleted", "declares it again at once", kept=False, noticed=(NAMED,))
    [lost] = fault.lines(stage.named, "broker lost")
    assert "its queue is gone" in str(lost["error"])
    [recovered] = fault.lines(stage.named, "broker recovered")
    assert recovered["gap_possible"] is True


async def test_consumer_that_the_broker_cancels_consumes_again(stage: Scene) -> None:
    """Promise: updates continue after the broker has cancelled the consumer without closing the connection."""
    fault = await stage.fault()
    CANCELLER.cancel_all()
    await stage.noticed(fault)
    await stage.verify(fault, "the broker cancels the consumer", "consumes again at once")
    for bridge in stage.bridges.values():
        [lost] = fault.lines(bridge, "broker lost")
        assert "cancelled the consumer" in str(lost["error"])


async def test_exchange_that_is_deleted_and_declared_again_is_bound_again(
    stage: Scene, observing: AbstractConnection
) -> None:
    """Promise: the bridge notices the missing binding within 1.5 s, although the broker does not report it.

    Events that are published while the binding is missing are lost. No program can detect this loss, because the broker
    does not list bindings.
    """
    fault = await stage.fault()
    await remade(observing, stage.exchange, aio_pika.ExchangeType.FANOUT)
    what, does = "the exchange is deleted and declared again at once", "binds its queue again within 1.5 s"
    await stage.verify(fault, what, does, kept=False, noticed=None)
    assert_lost_only_between(stage, fault)


async def test_exchange_that_is_deleted_is_declared_again(stage: Scene, observing: AbstractConnection) -> None:
    """Promise: the bridge notices a deleted exchange within 1.5 s, and declares it again."""
    fault = await stage.fault()
    channel = await observing.channel()
    await channel.exchange_delete(stage.exchange)
    await channel.close()
    # If one bridge has declared the exchange again, the other bridge finds the exchange, and binds its queue.
    await stage.verify(fault, "the exchange is deleted", "declares it again within 1.5 s", kept=False, noticed=None)


async def test_exchange_that_becomes_a_direct_exchange_is_refused_until_it_is_another(
    stage: Scene, observing: AbstractConnection
) -> None:
    """Promise: `/readyz` names an exchange that accepts the binding but never delivers an event to the queue."""
    fault = await stage.fault()
    await remade(observing, stage.exchange, aio_pika.ExchangeType.DIRECT)
    for bridge in stage.bridges.values():
        body = await bridge.not_ready(f"the exchange '{stage.exchange}' is a direct exchange")
        assert body["broker"]["state"] == "refused"
    await remade(observing, stage.exchange, aio_pika.ExchangeType.FANOUT)
    fault.over()
    what = "the exchange is declared again as a direct exchange, and then corrected"
    await stage.verify(fault, what, "reports it in `/readyz`, retries", kept=False)


async def test_exchange_that_becomes_a_topic_exchange_is_consumed_from(
    stage: Scene, observing: AbstractConnection
) -> None:
    """Promise: the bridge binds its queue to a new exchange of another type if this type delivers all events."""
    fault = await stage.fault()
    await remade(observing, stage.exchange, aio_pika.ExchangeType.TOPIC)
    what, does = "the exchange is declared again as a topic exchange", "binds its queue to it"
    await stage.verify(fault, what, does, kept=False)
    assert fault.lines(stage.named, "broker refuses; trying again") == []
    fault = await stage.fault()
    await remade(observing, stage.exchange, aio_pika.ExchangeType.TOPIC)
    what = "this topic exchange is deleted and declared again"
    await stage.verify(fault, what, "binds its queue again", kept=False, noticed=None)
    assert_lost_only_between(stage, fault)
