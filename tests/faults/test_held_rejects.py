"""If rejected events can't be published, the bridge holds and reports them.

When the fault is over, the bridge publishes these events.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import aio_pika
import orjson
import pytest
from aio_pika.abc import AbstractConnection

from bridge.amqp.publish.confirm_channel import ConfirmChannel
from bridge.app import Bridge
from tests.support.broker.find import Broker
from tests.support.clients import get
from tests.support.publishing import depth, publish, take
from tests.support.running import port_of, running, sample
from tests.support.waiting import eventually

PREFETCH, BEHIND = 50, 5
"""The number of events that the bridge holds, and the number of events that wait behind them in the queue."""

LEAVE_LIMIT_S = 15.0
"""Within this time after a fault, the bridge must have published all held events, even on a busy machine."""

LASTING_S = 3.0
"""When a fault has lasted this long, the pauses between attempts have their maximum length."""

ATTEMPTS = 20
"""The maximum number of further attempts to publish in LASTING_S, however many events are held.

The first attempt for each held event is not included.
"""

KEY = "somewhere"
"""The routing key of the events, which a fanout exchange ignores."""

HELD = "rejected events can't be published, and are held"

Trouble = Callable[[AbstractConnection, str], Awaitable[None]]


async def declare(amqp: AbstractConnection, exchange: str, kind: str = "fanout", *, internal: bool = False) -> None:
    channel = await amqp.channel()
    await channel.declare_exchange(exchange, kind, durable=True, internal=internal)
    await channel.close()


async def delete_exchange(amqp: AbstractConnection, exchange: str) -> None:
    channel = await amqp.channel()
    await channel.exchange_delete(exchange)
    await channel.close()


async def delete_queue(amqp: AbstractConnection, queue: str) -> None:
    channel = await amqp.channel()
    await channel.queue_delete(queue)
    await channel.close()


async def unbind(amqp: AbstractConnection, name: str) -> None:
    channel = await amqp.channel()
    await (await channel.get_queue(name)).unbind(name, "#")
    await channel.close()


async def bind_with_key(amqp: AbstractConnection, name: str) -> None:
    channel = await amqp.channel()
    await (await channel.get_queue(name)).bind(name, KEY)
    await channel.close()


async def fill(amqp: AbstractConnection, name: str) -> None:
    """Fills a bounded queue, which then refuses all further messages."""
    size = PREFETCH + BEHIND
    channel = await amqp.channel()
    exchange = await channel.declare_exchange(name, "fanout", durable=True)
    queue = await channel.declare_queue(
        name, durable=True, arguments={"x-max-length": size, "x-overflow": "reject-publish"}
    )
    await queue.bind(exchange)
    await channel.close()
    await publish(amqp, name, *([b"old"] * size))


async def purge(amqp: AbstractConnection, name: str) -> None:
    channel = await amqp.channel()
    await (await channel.get_queue(name)).purge()
    await channel.close()


async def direct(amqp: AbstractConnection, name: str) -> None:
    await declare(amqp, name, "direct")


async def internal(amqp: AbstractConnection, name: str) -> None:
    await declare(amqp, name, internal=True)


async def publish_all(amqp: AbstractConnection, exchange: str, events: list[bytes]) -> None:
    channel = await amqp.channel(publisher_confirms=True)
    target = await channel.get_exchange(exchange, ensure=False)
    await asyncio.gather(*(target.publish(aio_pika.Message(event), routing_key=KEY) for event in events))
    await channel.close()


async def readyz(bridge: Bridge) -> tuple[int, dict[str, Any]]:
    status, body = await get(port_of(bridge), "/readyz")
    return status, orjson.loads(body)


async def assert_all_have_left(
    amqp: AbstractConnection, bridge: Bridge, queue: str, rejects: str, events: list[bytes], since_s: float
) -> None:
    """Checks that soon after `since_s`, the bridge is ready and the queue of rejected events has each event once."""

    async def left() -> bool:
        return sample(bridge, "bridge_rejects_waiting") == 0 and await depth(amqp, queue) == 0

    await eventually("no event is held any more", left)
    took_s = time.monotonic() - since_s
    assert took_s <= LEAVE_LIMIT_S, f"{took_s:.1f} s"
    assert (await readyz(bridge))[0] == 200
    assert Counter(m.body for m in await take(amqp, rejects, len(events))) == Counter(events)
    assert await depth(amqp, rejects) == 0


@pytest.mark.parametrize(
    ("begin", "end", "words"),
    [
        pytest.param(fill, purge, "a queue may be full", id="queue-that-refuses"),
        pytest.param(direct, bind_with_key, "no queue is bound to the exchange", id="no-queue-for-the-routing-key"),
        pytest.param(internal, delete_exchange, "cannot publish to internal exchange", id="exchange-that-refuses"),
    ],
)
async def test_rejected_events_that_can_not_be_published_are_held_until_they_can(
    begin: Trouble,
    end: Trouble,
    words: str,
    broker: Broker,
    amqp: AbstractConnection,
    exchange: str,
    queue: str,
    rejects: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A rejected event that can't be published stays unacknowledged. `/readyz` has status 503 and the reason.

    Until the cause is fixed, the bridge retries only rarely. When the cause is fixed, the bridge publishes the event
    within 2 s.
    """
    attempts = 0
    publish_once = ConfirmChannel.publish

    async def counted(self: ConfirmChannel, *arguments: Any) -> None:
        nonlocal attempts
        attempts += 1
        await publish_once(self, *arguments)

    monkeypatch.setattr(ConfirmChannel, "publish", counted)
    await begin(amqp, rejects)
    events = [b"invalid %d" % number for number in range(PREFETCH + BEHIND)]
    flags = {"exchanges": f"{exchange}=killmail", "queue": queue, "prefetch": PREFETCH, "reject_exchange": rejects}
    async with running(broker.url, **flags) as bridge:
        await publish_all(amqp, exchange, events)
        await eventually("many are held", lambda: sample(bridge, "bridge_rejects_waiting") == PREFETCH)
        await eventually("the fault has lasted", lambda: bridge.readiness.report()[1]["rejects"]["for_s"] >= LASTING_S)  # type: ignore[index]  # JSON: an object
        status, body = await readyz(bridge)
        assert (status, body["missing"]) == (503, [HELD])
        assert words in body["rejects"]["last_error"]
        assert body["rejects"]["waiting"] == PREFETCH
        assert sample(bridge, "bridge_rejects_waiting") == PREFETCH
        # If the bridge had acknowledged an event, the broker would have sent another event to the bridge.
        assert await depth(amqp, queue) == BEHIND
        assert words in capsys.readouterr().out
        assert PREFETCH < attempts <= PREFETCH + ATTEMPTS
        since_s = time.monotonic()
        await end(amqp, rejects)
        await assert_all_have_left(amqp, bridge, queue, rejects, events, since_s)


@pytest.mark.parametrize(
    ("begin", "words"),
    [
        pytest.param(delete_exchange, "no exchange", id="exchange-that-is-deleted"),
        pytest.param(delete_queue, "no queue is bound to the exchange", id="queue-that-is-deleted"),
        pytest.param(unbind, "no queue is bound to the exchange", id="queue-that-is-unbound"),
    ],
)
async def test_deleted_parts_are_declared_again_and_no_rejected_event_is_lost(
    begin: Trouble,
    words: str,
    broker: Broker,
    amqp: AbstractConnection,
    exchange: str,
    queue: str,
    rejects: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """If the exchange, queue or binding for rejected events is missing, the bridge holds the events.

    `/readyz` has the reason.

    The bridge declares the missing part again, and publishes the events within 2 s.
    """
    events = [b"invalid %d" % number for number in range(PREFETCH + BEHIND)]
    flags = {"exchanges": f"{exchange}=killmail", "queue": queue, "prefetch": PREFETCH, "reject_exchange": rejects}
    async with running(broker.url, **flags) as bridge:
        await begin(amqp, rejects)
        since_s = time.monotonic()

        async def held() -> tuple[dict[str, Any], float]:
            # The test reads the report behind `/readyz` directly, because the fault may be over before a request is
            # answered.
            await eventually("the held event is reported", lambda: bridge.readiness.report()[1]["missing"] == [HELD])
            return bridge.readiness.report()[1], sample(bridge, "bridge_rejects_waiting")

        # This task starts before the events are published: on a busy machine, the bridge may repair the fault before
        # all are published.
        noticing = asyncio.create_task(held())
        await publish_all(amqp, exchange, events)
        body, waiting = await noticing
        assert words in body["rejects"]["last_error"]
        assert words in capsys.readouterr().out
        assert body["rejects"]["waiting"] == waiting > 0
        await assert_all_have_left(amqp, bridge, queue, rejects, events, since_s)
