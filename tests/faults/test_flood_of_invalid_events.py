"""Thousands of invalid events arrive.

The bridge acknowledges an invalid event only when the event is in the queue of rejected events.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import orjson
import pytest
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity

from bridge.amqp.wire.fast_channel import METHOD
from tests.support import figures
from tests.support.broker.find import Broker
from tests.support.clients import TEXT, close_all, collectors, get, server_frames
from tests.support.fake_amqp import payload_of, split_frames
from tests.support.killmail import killmail
from tests.support.proxy import proxy
from tests.support.publishing import bind, depth, pour, publish, take
from tests.support.running import BridgeProcess, bridge_process
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

COUNT = 10_000
MAX_MESSAGE_BYTES = 4096

INVALID_EVENTS: dict[str, Callable[[int], bytes]] = {
    "not-json": lambda number: b'{"killmailId": %d' % number,
    "unknown-type": lambda number: orjson.dumps({"type": "nonsense", "data": {"killmailId": number}}),
    "schema-violation": lambda number: orjson.dumps(killmail(number, systemId="Jita")),
    "too-large": lambda number: orjson.dumps(killmail(number, padding="x" * MAX_MESSAGE_BYTES)),
    "placeholder": lambda number: orjson.dumps({"killID": number, "killmail": None, "zkb": {}}),
}
"""For each reason for a rejection, a function that returns an invalid event with a given number."""

LINES_EACH = 14
"""The maximum number of log lines for each reason for a rejection: one for each power of two up to COUNT."""

LINES = 20
"""The maximum number of log lines that are not about rejected events."""


def invalid_events(count: int) -> dict[bytes, str]:
    """Returns invalid events of all kinds in turn, each with its reason."""
    kinds = tuple(INVALID_EVENTS.items())
    return {invalid(number): reason for number in range(count) for reason, invalid in [kinds[number % len(kinds)]]}


async def metrics(process: BridgeProcess) -> dict[str, float]:
    """Returns all metrics of a bridge, by name and labels."""
    _, body = await get(await process.port(), "/metrics")
    lines = (line.rsplit(" ", 1) for line in body.decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


async def waiting(process: BridgeProcess) -> float:
    return (await metrics(process))["bridge_rejects_waiting"]


async def all_of(amqp: AbstractConnection, queue: str) -> Counter[bytes]:
    """Takes all messages from a queue, and returns how often each body was in it."""
    count = await depth(amqp, queue)
    return Counter(message.body for message in (await take(amqp, queue, count) if count else []))


async def test_flood_of_invalid_events_is_rejected_once_each_among_valid_ones_in_order(
    broker: Broker, amqp: AbstractConnection, exchange: str, rejects: str
) -> None:
    """Equal numbers of valid and invalid events arrive at full speed.

    Each invalid event is in the queue of rejected events once, with its reason. Every update arrives in order. The
    log stays short, and the metrics count all events.
    """
    reasons = invalid_events(COUNT)
    variables = {
        "BRIDGE_EXCHANGES": f"{exchange}=killmail",
        "BRIDGE_REJECT_EXCHANGE": rejects,
        "BRIDGE_MAX_MESSAGE_BYTES": str(MAX_MESSAGE_BYTES),
    }
    events = [body for number, invalid in enumerate(reasons) for body in (invalid, orjson.dumps(killmail(number)))]
    async with bridge_process(broker.url, **variables) as process:
        await process.consuming()
        [client] = await collectors(await process.port(), 1)
        await asyncio.to_thread(pour, broker.url, exchange, events)

        async def has_all() -> bool:
            return await depth(amqp, rejects) >= COUNT and await waiting(process) == 0

        await eventually("all invalid events are rejected", has_all, limit_s=120)
        last = b'"killmailId":%d,' % (COUNT - 1)
        await eventually("the last update has arrived", lambda: last in client.received)
        frames = server_frames(bytes(client.received))
        assert [orjson.loads(payload)["data"]["killmailId"] for opcode, payload in frames if opcode == TEXT] == list(
            range(COUNT)
        )
        found = [(m.body, m.headers["x-reject-reason"]) for m in await take(amqp, rejects, COUNT, limit_s=60)]
        assert len(found) == COUNT
        assert dict(found) == reasons
        assert await depth(amqp, rejects) == 0
        counted = await metrics(process)
        assert counted["bridge_deliveries_total"] == 2 * COUNT
        assert counted["bridge_redeliveries_total"] == 0
        assert counted['bridge_updates_total{type="killmail"}'] == COUNT
        for reason in INVALID_EVENTS:
            assert counted[f'bridge_rejects_total{{reason="{reason}"}}'] == COUNT / len(INVALID_EVENTS)
        assert len(process.lines) <= LINES_EACH * len(INVALID_EVENTS) + LINES
        figures.record(
            f"{COUNT:,} invalid events among as many valid ones, at full speed",
            f"all are in `bridge.rejected` with their reasons; {len(process.lines)} lines in the log",
            f"0 of {2 * COUNT:,}",
        )
        close_all([client])
    assert process.texts == []


async def test_bridge_that_is_killed_in_a_flood_leaves_every_invalid_event_in_one_queue_or_the_other(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, rejects: str
) -> None:
    """The bridge is killed while it rejects thousands of events.

    Afterwards, each event is in the queue of rejected events, or still in the bridge's queue.
    """
    events = list(invalid_events(COUNT))
    await bind(amqp, exchange, queue)
    await asyncio.to_thread(pour, broker.url, exchange, events)
    variables = {
        "BRIDGE_EXCHANGES": f"{exchange}=killmail",
        "BRIDGE_QUEUE": queue,
        "BRIDGE_REJECT_EXCHANGE": rejects,
        "BRIDGE_MAX_MESSAGE_BYTES": str(MAX_MESSAGE_BYTES),
    }
    async with bridge_process(broker.url, **variables) as process:
        await process.consuming()

        async def amid() -> bool:
            # The bridge declares the queue of rejected events on a separate connection, so this queue may not exist
            # yet.
            with suppress(ChannelNotFoundEntity):
                return await depth(amqp, rejects) > COUNT // 10
            return False

        await eventually("many are rejected", amid)
        process.process.kill()
        await process.ended()
    await no_consumer(amqp, queue)
    left, rejected = await all_of(amqp, queue), await all_of(amqp, rejects)
    assert len(left) > 0
    assert len(rejected) > COUNT // 10
    assert set(events) - set(left) - set(rejected) == set()
    assert max(left.values()) == max(rejected.values()) == 1


async def no_consumer(amqp: AbstractConnection, queue: str) -> None:
    """Waits until a queue has no consumer.

    Without a consumer, all unacknowledged events are back in the queue.
    """

    async def alone() -> bool:
        channel = await amqp.channel()
        declared = await channel.declare_queue(queue, passive=True)
        await channel.close()
        return declared.declaration_result.consumer_count == 0

    await eventually("nobody consumes", alone)


CONFIRM = b"\x00\x3c\x00\x50"
"""The class and method ids of `basic.ack`, which a broker sends only to confirm a message."""


class Confirms:
    """Drops the broker's confirms if `losing` is True, and otherwise passes them on."""

    def __init__(self) -> None:
        self.losing = False
        self.lost = 0

    def of_a_connection(self) -> Callable[[bytes], bytes]:
        """Returns a function that alters what the broker sends on one connection."""
        rest = b""

        def alter(data: bytes) -> bytes:
            nonlocal rest
            if not self.losing:
                return data
            frames, rest = split_frames(rest + data)
            through = [each for each in frames if each[0] != METHOD or not payload_of(each).startswith(CONFIRM)]
            self.lost += len(frames) - len(through)
            return b"".join(through)

        return alter


async def test_invalid_event_is_not_acknowledged_before_its_reject_is_confirmed(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, rejects: str
) -> None:
    """When the bridge has ended, its queue contains exactly the rejected events that were not confirmed."""
    events = [b"invalid %d" % number for number in range(100)]
    confirms = Confirms()
    variables = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", "BRIDGE_QUEUE": queue, "BRIDGE_REJECT_EXCHANGE": rejects}
    async with proxy(broker.url) as tunnel:
        tunnel.alteration = confirms.of_a_connection
        await tunnel.open()
        async with bridge_process(tunnel.url, **variables) as process:
            await process.consuming()

            async def rejected(count: int) -> None:
                async def there() -> bool:
                    return await depth(amqp, rejects) == count

                await eventually("all rejects are in their queue", there)

            async def none_waits() -> bool:
                return await waiting(process) == 0

            await publish(amqp, exchange, b"one that is confirmed")
            await rejected(1)
            await eventually("the event is confirmed", none_waits)
            confirms.losing = True
            await publish(amqp, exchange, *events)
            await rejected(1 + len(events))
            await eventually("the broker has confirmed the rejects", lambda: confirms.lost)
            assert await waiting(process) == len(events)
            process.process.kill()
            await process.ended()
        await no_consumer(amqp, queue)
    assert await all_of(amqp, queue) == Counter(events)
