"""When a bridge starts or stops, the confirms of other publishers must not fail."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import DeliveryError

from bridge.amqp.consume.consumer import Consumer, ConsumerConfig
from bridge.amqp.consume.flow_control import FlowControl
from bridge.amqp.nodes import Node
from bridge.amqp.status import State
from bridge.metrics import Metrics
from tests.support.broker.find import Broker
from tests.support.delivery_handler import Recorder
from tests.support.publishing import observer
from tests.support.waiting import eventually

BRIDGES, TOGETHER = 25, 5

IN_FLIGHT = 20
"""The number of events that may be unconfirmed at the same time."""


@asynccontextmanager
async def publishing(url: str, exchange: str) -> AsyncIterator[Counter[str]]:
    """Runs a fetcher that publishes continuously.

    Yields a counter of the broker's answers to the fetcher: `ack` or `nack`.
    """
    outcomes = Counter[str]()
    async with observer(url) as amqp:
        channel = await amqp.channel(publisher_confirms=True)
        target = await channel.get_exchange(exchange, ensure=False)

        async def publish() -> None:
            while True:
                try:
                    await target.publish(aio_pika.Message(b"event"), "", mandatory=False)
                    outcomes["ack"] += 1
                except DeliveryError:
                    outcomes["nack"] += 1

        publishers = [asyncio.create_task(publish()) for _ in range(IN_FLIGHT)]
        try:
            yield outcomes
        finally:
            for publisher in publishers:
                publisher.cancel()
            await asyncio.gather(*publishers, return_exceptions=True)


async def start_and_stop(url: str, exchange: str, outcomes: Counter[str]) -> None:
    """Runs a bridge's consumer with an exclusive queue until it has consumed some events."""
    recorder = Recorder()
    config = ConsumerConfig((Node(url),), (exchange,), None, "a bridge")
    consumer = Consumer(config, recorder, FlowControl(200), Metrics(), wait=False)
    running = asyncio.create_task(consumer.run())
    await eventually("the consumer consumes", lambda: consumer.status.state is State.WORKING and recorder.deliveries)
    confirmed = outcomes["ack"]
    await eventually("others publish", lambda: outcomes["ack"] > confirmed + IN_FLIGHT)
    consumer.stop()
    await running


async def test_bridges_that_start_and_stop_do_not_affect_the_confirms_of_others(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """If an exclusive queue is deleted while it is bound, RabbitMQ 4.3 answers other publishers with nacks."""
    channel = await amqp.channel()
    await channel.declare_exchange(exchange, "fanout", durable=True)
    async with publishing(broker.url, exchange) as outcomes:
        for _ in range(BRIDGES // TOGETHER):
            await asyncio.gather(*(start_and_stop(broker.url, exchange, outcomes) for _ in range(TOGETHER)))
    assert outcomes["ack"] > BRIDGES * IN_FLIGHT
    assert outcomes["nack"] == 0
    await channel.close()
