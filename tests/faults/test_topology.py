"""What the bridges consume from is taken away, or becomes something else."""

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

# No test here has a loop of its own: the stage would stand still meanwhile, with requests that time out.
pytestmark = pytest.mark.asyncio(loop_scope="module")


def assert_lost_only_between(stage: Scene, fault: Fault) -> None:
    """No bridge left its connection, unless its check came after the exchange was deleted and before it was back."""
    for bridge in stage.bridges.values():
        errors = [str(line["error"]) for line in fault.lines(bridge, "broker lost")]
        assert all(error.startswith("NOT_FOUND - no exchange") for error in errors), errors


class Canceller:
    """Puts the broker's own cancellation of a consumer behind what it sends, when it is told to."""

    def __init__(self) -> None:
        self._lines: list[_Line] = []

    def line(self) -> "_Line":
        """For one connection."""
        self._lines.append(_Line())
        return self._lines[-1]

    def cancel_all(self) -> None:
        """Cancels each consumer that there is now, once."""
        for line in self._lines:
            line.is_due = line.has_consumer


class _Line:
    def __init__(self) -> None:
        self.is_due = False
        """Whether its consumer is to be cancelled."""
        self._rest = b""
        self._consumer: tuple[int, str] | None = None

    @property
    def has_consumer(self) -> bool:
        """Whether something consumes through it."""
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
            # Between two messages: a frame may not come between the parts of one.
            sent += frame.marshal(commands.Basic.Cancel(tag, nowait=True), channel)
        return sent


CANCELLER = Canceller()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def line(broker: Broker) -> AsyncIterator[Proxy]:
    """The way that the bridges on the stage take to the broker."""
    async with proxy(broker.url) as line:
        line.alteration = CANCELLER.line
        await line.open()
        yield line


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(broker: Broker, line: Proxy) -> AsyncIterator[Scene]:
    """No fault here ends a bridge, so all tests share two bridges."""
    async with scene(broker.url, line.url) as stage:
        yield stage


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def observing(broker: Broker) -> AsyncIterator[AbstractConnection]:
    """An observer's connection, in the loop of the stage."""
    async with observer(broker.url) as connection:
        yield connection


async def test_queue_that_is_deleted_is_made_again(stage: Scene, observing: AbstractConnection) -> None:
    """Promise: a queue that is gone is said, and made again at once; what was in it is gone with it."""
    fault = await stage.fault()
    channel = await observing.channel()
    await channel.queue_delete(stage.queue)
    await channel.close()
    await stage.verify(fault, "the queue is deleted", "makes it again at once", kept=False, noticed=(NAMED,))
    [lost] = fault.lines(stage.named, "broker lost")
    assert "its queue is gone" in str(lost["error"])
    [recovered] = fault.lines(stage.named, "broker recovered")
    assert recovered["gap_possible"] is True


async def test_consumer_that_the_broker_cancels_consumes_again(stage: Scene) -> None:
    """Promise: a cancelled consumer is no silence for ever, though the connection lives."""
    fault = await stage.fault()
    CANCELLER.cancel_all()
    await stage.noticed(fault)
    await stage.verify(fault, "the broker cancels the consumer", "consumes again at once")
    for bridge in stage.bridges.values():
        [said] = fault.lines(bridge, "broker lost")
        assert "cancelled the consumer" in str(said["error"])


async def test_exchange_that_is_deleted_and_made_again_is_bound_again(
    stage: Scene, observing: AbstractConnection
) -> None:
    """Promise: an exchange that takes its bindings with it, without a word to anybody, is found within 1.5 s.

    What was published by then is in no queue, and nobody can know of it: the broker tells no one what is bound.
    """
    fault = await stage.fault()
    await remade(observing, stage.exchange, aio_pika.ExchangeType.FANOUT)
    what, does = "the exchange is deleted and made again at once", "binds its queue again within 1.5 s"
    await stage.verify(fault, what, does, kept=False, noticed=None)
    assert_lost_only_between(stage, fault)


async def test_exchange_that_is_deleted_is_made_again(stage: Scene, observing: AbstractConnection) -> None:
    """Promise: an exchange that is gone is missed within 1.5 s, and made as at the start."""
    fault = await stage.fault()
    channel = await observing.channel()
    await channel.exchange_delete(stage.exchange)
    await channel.close()
    # Where one bridge has made it again, the other finds it there, and binds its queue.
    await stage.verify(fault, "the exchange is deleted", "makes it again within 1.5 s", kept=False, noticed=None)


async def test_exchange_that_becomes_a_direct_exchange_is_refused_until_it_is_another(
    stage: Scene, observing: AbstractConnection
) -> None:
    """Promise: an exchange that takes the binding and would never deliver is no silence: `/readyz` names it."""
    fault = await stage.fault()
    await remade(observing, stage.exchange, aio_pika.ExchangeType.DIRECT)
    for bridge in stage.bridges.values():
        body = await bridge.not_ready(f"the exchange '{stage.exchange}' is a direct exchange")
        assert body["broker"]["state"] == "refused"
    await remade(observing, stage.exchange, aio_pika.ExchangeType.FANOUT)
    fault.over()
    what = "the exchange is made again as a direct exchange, then mended"
    await stage.verify(fault, what, "names it in `/readyz`, tries again", kept=False)


async def test_exchange_that_becomes_a_topic_exchange_is_consumed_from(
    stage: Scene, observing: AbstractConnection
) -> None:
    """Promise: another kind of exchange that delivers everything is as good, and bound again as any other."""
    fault = await stage.fault()
    await remade(observing, stage.exchange, aio_pika.ExchangeType.TOPIC)
    what, does = "the exchange is made again as a topic exchange", "binds its queue to that"
    await stage.verify(fault, what, does, kept=False)
    assert fault.lines(stage.named, "broker refuses; trying again") == []
    fault = await stage.fault()
    await remade(observing, stage.exchange, aio_pika.ExchangeType.TOPIC)
    await stage.verify(fault, "and that is deleted and made again", "binds it again", kept=False, noticed=None)
    assert_lost_only_between(stage, fault)
