"""What the bridge promises if the broker ends, returns, loses its data, hangs, or refuses the bridge."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import orjson
import pytest
from aio_pika.abc import AbstractConnection
from pamqp.common import FieldTable

from bridge.amqp.nodes import Node
from bridge.app import Bridge
from bridge.timing import Timing
from tests.support.broker.find import Broker
from tests.support.broker.ports import free_port
from tests.support.certificates import certificate
from tests.support.clients import RawClient, get
from tests.support.killmail import killmail
from tests.support.proxy import proxy
from tests.support.publishing import observer, publish
from tests.support.running import bridge_process, consumer_of, port_of, running, sample, started, unique
from tests.support.scene import RECOVERY_LIMIT_S, scene
from tests.support.waiting import eventually

WRONG_PASSWORD = "correct-horse"  # no message contains this text by chance


@asynccontextmanager
async def silent_server() -> AsyncIterator[int]:
    """Yields the port of a server that accepts connections and sends nothing."""
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


IMPATIENT = Timing(connect_timeout_s=1.0)
"""With these time constants, a node has one second to answer, instead of five."""

GIVEN_UP_LIMIT_S = 15.0
"""The bridge must give up on a silent node within this time, even on a busy machine.

aio-pika by itself would wait for 30 s.
"""


async def state(port: int) -> tuple[int, dict[str, Any]]:
    """Returns the status and the body of `/readyz`."""
    status, body = await get(port, "/readyz")
    return status, orjson.loads(body)


async def not_ready(bridge: Bridge) -> dict[str, Any]:
    """Waits until `/readyz` has status 503 and the bridge knows why it is not connected to the broker.

    Returns the body.
    """
    await eventually(
        "`/readyz` has the reason",
        lambda: not bridge.readiness.report()[0] and consumer_of(bridge).status.error is not None,
    )
    status, body = await state(port_of(bridge))
    assert status == 503
    return body


async def ready_again(bridge: Bridge, since_s: float) -> None:
    """Waits until the bridge is ready, and checks that at most RECOVERY_LIMIT_S has passed since `since_s`."""
    await eventually("the bridge is ready", lambda: bridge.readiness.report()[0])
    took_s = time.monotonic() - since_s
    assert took_s <= RECOVERY_LIMIT_S, f"{took_s:.1f} s"
    assert (await state(port_of(bridge)))[0] == 200


async def next_id(client: RawClient) -> int:
    """Returns the id of the next killmail that a client gets."""
    killmail_id = orjson.loads(await client.text())["data"]["killmailId"]
    assert isinstance(killmail_id, int)
    return killmail_id


async def test_broker_that_is_killed_and_started_again_is_consumed_from_again(mortal_broker: Broker) -> None:
    """Promise: clients stay connected during an outage, and get every confirmed event once."""
    what, does = "the broker is killed (-9) and started again", "waits for it, reconnects"
    async with scene(mortal_broker.url) as stage:
        fault = await stage.fault()
        await asyncio.to_thread(mortal_broker.kill)
        for bridge in stage.bridges.values():
            body = await bridge.not_ready(str(Node(mortal_broker.url)))
            assert body["broker"]["state"] == "lost"
            assert "the bridge does not consume from the broker" in body["missing"]
        await asyncio.to_thread(mortal_broker.start)
        fault.over()
        await stage.verify(fault, what, does)


async def test_update_that_was_sent_but_not_acknowledged_is_not_sent_again_after_a_reconnect(
    mortal_broker: Broker,
) -> None:
    """If the broker delivers an event twice, the bridge acknowledges and counts the second delivery.

    No client gets the event twice.
    """
    exchange, queue, rejects = unique("exchange"), unique("queue"), unique("rejects")
    async with observer(mortal_broker.url) as amqp:
        channel = await amqp.channel()
        await channel.declare_exchange(rejects, "fanout", durable=True)
        full: FieldTable = {"x-max-length": 0, "x-overflow": "reject-publish"}
        await channel.declare_queue(rejects, durable=True, arguments=full)
    flags = {"exchanges": f"{exchange}=killmail", "queue": queue, "reject_exchange": rejects}
    async with running(mortal_broker.url, **flags) as bridge:
        client = await RawClient.open(port_of(bridge))
        async with observer(mortal_broker.url) as amqp:
            # Because the bridge can't publish the rejected event, it does not acknowledge the later events.
            await publish(amqp, exchange, b"invalid", killmail(1), killmail(2), delivery_mode=2)
        assert [await next_id(client), await next_id(client)] == [1, 2]
        await asyncio.to_thread(mortal_broker.kill)
        await not_ready(bridge)
        await asyncio.to_thread(mortal_broker.start)
        await eventually(
            "both events are delivered again",
            lambda: sample(bridge, "bridge_duplicates_total", type="killmail") == 2,
        )
        assert sample(bridge, "bridge_redeliveries_total") == 3
        async with observer(mortal_broker.url) as amqp:
            await publish(amqp, exchange, killmail(3))
        assert await next_id(client) == 3
        await client.close()


async def test_bridge_that_starts_without_a_broker_gets_ready_by_itself(mortal_broker: Broker) -> None:
    """If a bridge starts before its broker, it reports the missing broker and accepts clients.

    The bridge connects by itself when the broker is up.
    """
    exchange = unique("exchange")
    await asyncio.to_thread(mortal_broker.kill)
    async with started(mortal_broker.url, exchanges=f"{exchange}=killmail") as bridge:
        body = await not_ready(bridge)
        assert body["missing"][0] == "the bridge does not consume from the broker"
        assert str(Node(mortal_broker.url)) in body["broker"]["last_error"]
        client = await RawClient.open(port_of(bridge))
        await asyncio.to_thread(mortal_broker.start)
        await ready_again(bridge, time.monotonic())
        async with observer(mortal_broker.url) as amqp:
            await publish(amqp, exchange, killmail(7))
        assert await next_id(client) == 7
        assert sample(bridge, "bridge_broker_losses_total") == 0
        await client.close()


async def test_node_that_is_down_is_skipped(broker: Broker, amqp: AbstractConnection, exchange: str) -> None:
    """If the first of several nodes is dead, the bridge connects to the next node without a delay."""
    urls = f"amqp://guest:guest@127.0.0.1:{free_port()}/,{broker.url}"
    async with running(urls, exchanges=f"{exchange}=killmail") as bridge:
        assert sample(bridge, "bridge_broker_connection_attempts_total") == 1
        client = await RawClient.open(port_of(bridge))
        await publish(amqp, exchange, killmail(7))
        assert await next_id(client) == 7
        await client.close()


async def test_node_that_sends_nothing_is_skipped(broker: Broker, amqp: AbstractConnection, exchange: str) -> None:
    """A node that accepts connections and sends nothing delays the bridge by only a few seconds.

    The bridge then uses another node.
    """
    async with silent_server() as silent:
        urls = f"amqp://guest:guest@127.0.0.1:{silent}/,{broker.url}"
        async with running(urls, IMPATIENT, exchanges=f"{exchange}=killmail") as bridge:
            client = await RawClient.open(port_of(bridge))
            await publish(amqp, exchange, killmail(7))
            assert await next_id(client) == 7
            await client.close()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="http"),
        pytest.param(b"\x15\x03\x01\x00\x02\x02\x16", id="tls-alert"),
        pytest.param(b"AMQP\x00\x01\x00\x00", id="another-version"),
        pytest.param(b"\x01\x00\x00\x00\x00\x01\xf5\x00\x0a\x00\x0a", id="half-a-frame"),
    ],
)
async def test_node_that_answers_with_something_else_is_skipped_and_closed(
    answer: bytes, broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """Invalid bytes from the first node do not disturb the connection to the next node.

    The bridge closes the connection to the first node.
    """
    left = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(answer)
        writer.write_eof()
        with suppress(ConnectionError):
            await reader.read()
        left.set()
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as odd:
        urls = f"amqp://guest:guest@127.0.0.1:{odd.sockets[0].getsockname()[1]}/,{broker.url}"
        async with running(urls, exchanges=f"{exchange}=killmail") as bridge:
            await eventually("the bridge closes the connection", left.is_set)
            client = await RawClient.open(port_of(bridge))
            await publish(amqp, exchange, killmail(7))
            assert await next_id(client) == 7
            await client.close()


async def test_broker_that_sends_nothing_is_named_in_readyz() -> None:
    """A broker that accepts connections and sends nothing does not block the bridge, and /readyz names the broker."""
    async with silent_server() as silent:
        url = f"amqp://guest:{WRONG_PASSWORD}@127.0.0.1:{silent}/"
        async with started(url, IMPATIENT) as bridge:
            body = await not_ready(bridge)
            assert body["broker"]["last_error"] == f"amqp://guest:***@127.0.0.1:{silent}/ does not answer within 1 s"


async def test_broker_that_sends_nothing_behind_tls_is_given_up_as_soon(tmp_path: Path) -> None:
    """Promise: the bridge gives up on a silent broker in time, even if the broker does not answer the TLS shutdown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    chain, key = certificate(tmp_path, "broker")
    context.load_cert_chain(chain, key)

    class Silent(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            tunnel.hold()

    server = await asyncio.get_running_loop().create_server(Silent, "127.0.0.1", 0, ssl=context)
    async with server, proxy(f"amqps://guest:guest@127.0.0.1:{server.sockets[0].getsockname()[1]}/") as tunnel:
        await tunnel.open()
        since_s = time.monotonic()
        async with started(f"{tunnel.url}?cafile={chain}", IMPATIENT) as bridge:
            body = await not_ready(bridge)
            assert body["broker"]["last_error"].endswith("does not answer within 1 s")
            assert time.monotonic() - since_s <= GIVEN_UP_LIMIT_S


async def refused(kind: str, broker: Broker, amqp: AbstractConnection, exchange: str) -> tuple[str, str]:
    """Makes the broker refuse the bridge.

    Returns the URL for the bridge, and a text that must be in the bridge's error.
    """
    parts = urlsplit(broker.url.split(",", maxsplit=1)[0])
    if kind == "password":
        netloc = f"{parts.username}:{WRONG_PASSWORD}@{parts.hostname}:{parts.port}"
        return parts._replace(netloc=netloc).geturl(), "refuses the user name or the password in its URL"
    if kind == "virtual host":
        return parts._replace(path="/nowhere").geturl(), "the virtual host 'nowhere'"
    channel = await amqp.channel()
    await channel.declare_exchange(exchange, aio_pika.ExchangeType.DIRECT, durable=True)
    return broker.url, f"the exchange {exchange!r} is a direct exchange"


KINDS = ["password", "virtual host", "kind of exchange"]


@pytest.mark.parametrize("kind", KINDS)
async def test_refusal_at_the_start_ends_the_bridge_with_3(
    kind: str, broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """If only the operator can fix a fault, the bridge ends at once and prints one line, without the password."""
    url, words = await refused(kind, broker, amqp, exchange)
    async with bridge_process(url, BRIDGE_EXCHANGES=f"{exchange}=killmail") as process:
        assert await process.ended() == 3
        [line] = process.texts
        assert line.startswith("edk-bridge: ")
        assert words in line
        assert str(urlsplit(url).password) + "@" not in line + str(process.lines)
        assert WRONG_PASSWORD not in line + str(process.lines)


@pytest.mark.parametrize("kind", KINDS)
async def test_refusal_with_wait_leaves_the_bridge_up_and_is_in_readyz(
    kind: str, broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """With BRIDGE_WAIT, the bridge continues after a refusal, and reports the cause."""
    url, words = await refused(kind, broker, amqp, exchange)
    async with started(url, exchanges=f"{exchange}=killmail", wait="true") as bridge:
        body = await not_ready(bridge)
        assert body["broker"]["state"] == "refused"
        assert words in body["broker"]["last_error"]
        assert str(urlsplit(url).password) + "@" not in str(body)
        client = await RawClient.open(port_of(bridge))
        await client.close()
