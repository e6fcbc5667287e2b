"""Messages that a library can't read or write: the bridge settles each of them, and later events arrive."""

import socket

import orjson
import pytest
from aio_pika.abc import AbstractConnection
from pamqp import commands, encode, frame
from pamqp.base import Frame
from pamqp.body import ContentBody
from yarl import URL

from tests.support.broker.find import Broker
from tests.support.clients import RawClient
from tests.support.killmail import killmail
from tests.support.publishing import depth, publish, take
from tests.support.running import port_of, running, sample
from tests.support.waiting import eventually

TIMESTAMP, MESSAGE_ID, HEADERS, CLUSTER_ID, TYPE = 1 << 6, 1 << 7, 1 << 13, 1 << 2, 1 << 5


def publish_raw(
    url: str, exchange_name: str, body: bytes, flags: int, properties: bytes, routing_key: bytes = b""
) -> None:
    """Publishes a message with properties and a routing key that no AMQP library would write."""
    address = URL(url)
    with socket.create_connection((address.host or "", address.port or 5672), timeout=10) as connection:
        received = b""

        def receive() -> object:
            nonlocal received
            while True:
                size, _, value = frame.unmarshal(received) if received else (0, 0, None)
                if value is not None:
                    received = received[size:]
                    return value
                received += connection.recv(65536)

        def send(method: Frame, channel: int = 1) -> object:
            connection.sendall(frame.marshal(method, channel))
            return receive()

        connection.sendall(b"AMQP\x00\x00\x09\x01")
        receive()
        login = f"\0{address.user}\0{address.password}"
        send(commands.Connection.StartOk({}, "PLAIN", login, "en_US"), 0)
        connection.sendall(frame.marshal(commands.Connection.TuneOk(10, 131072, 0), 0))
        send(commands.Connection.Open(address.path[1:] or "/"), 0)
        send(commands.Channel.Open())
        send(commands.Confirm.Select())
        header = b"\x00\x3c\x00\x00" + len(body).to_bytes(8, "big") + flags.to_bytes(2, "big") + properties
        name = exchange_name.encode()
        method = (
            b"\x00\x3c\x00\x28\x00\x00" + bytes([len(name)]) + name + bytes([len(routing_key)]) + routing_key + b"\x00"
        )
        connection.sendall(
            b"\x01\x00\x01"
            + len(method).to_bytes(4, "big")
            + method
            + b"\xce"
            + b"\x02\x00\x01"
            + len(header).to_bytes(4, "big")
            + header
            + b"\xce"
            + frame.marshal(ContentBody(body), 1)
        )
        assert isinstance(receive(), commands.Basic.Ack)


@pytest.mark.parametrize(
    ("flags", "properties"),
    [
        pytest.param(TIMESTAMP, (1_700_000_000_000_000).to_bytes(8, "big"), id="timestamp-in-microseconds"),
        pytest.param(TIMESTAMP, b"\xff" * 8, id="timestamp-beyond-everything"),
        pytest.param(MESSAGE_ID, b"\x03\xff\xfe\xfd", id="message-id-that-is-not-utf8"),
        pytest.param(HEADERS, b"\x00\x00\x00\x05\x02\xff\xfet\x01", id="header-name-that-is-not-utf8"),
        pytest.param(HEADERS, b"\x00\x00\x00\x0b\x01aT" + b"\xff" * 8, id="header-with-an-impossible-time"),
    ],
)
async def test_properties_that_can_not_be_decoded_do_not_stop_consuming(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, flags: int, properties: bytes
) -> None:
    """Promise: an unreadable property counts as absent, and the event is broadcast like any other."""
    async with running(broker.url, exchanges=f"{exchange}=killmail", queue=queue) as bridge:
        client = await RawClient.open(port_of(bridge))
        publish_raw(broker.url, exchange, orjson.dumps(killmail(1)), flags, properties)
        await publish(amqp, exchange, killmail(2))
        ids = [orjson.loads(await client.text())["data"]["killmailId"] for _ in range(2)]
        assert ids == [1, 2]
        assert sample(bridge, "bridge_broker_losses_total") == 0
        await client.close()


async def test_rejected_event_with_a_property_that_can_not_be_published_is_published_without_it(
    broker: Broker, amqp: AbstractConnection, exchange: str, rejects: str
) -> None:
    """Promise: a rejected event is published with its reasons, and a header names the properties that were omitted."""
    async with running(broker.url, exchanges=f"{exchange}=killmail", reject_exchange=rejects):
        publish_raw(broker.url, exchange, b"invalid", CLUSTER_ID, encode.short_string("abc"))
        [message] = await take(amqp, rejects, 1)
        assert message.headers["x-reject-cluster-id"] == "abc"


async def test_rejected_event_with_names_that_are_not_utf8_does_not_block_others(
    broker: Broker, amqp: AbstractConnection, exchange: str, rejects: str
) -> None:
    """Promise: decoding never makes a name from the broker too long to be published again."""
    async with running(broker.url, exchanges=f"{exchange}=killmail", reject_exchange=rejects, prefetch=1):
        publish_raw(broker.url, exchange, b"invalid", TYPE, b"\xfa" + b"\xff" * 250, routing_key=b"\xff" * 250)
        [message] = await take(amqp, rejects, 1)
        assert message.type == "?" * 250
        assert message.routing_key == "?" * 250
        assert message.headers["x-reject-reason"] == "not-json"


async def test_rejected_event_with_tables_in_tables_leaves_without_its_headers(
    broker: Broker, amqp: AbstractConnection, exchange: str, rejects: str
) -> None:
    """Promise: headers that are nested too deeply for the library are omitted. The event is still published."""
    table = b""
    for _ in range(700):
        table = b"\x01aF" + len(table).to_bytes(4, "big") + table
    async with running(broker.url, exchanges=f"{exchange}=killmail", reject_exchange=rejects, prefetch=1):
        for _ in range(2):
            publish_raw(broker.url, exchange, b"invalid", HEADERS, len(table).to_bytes(4, "big") + table)
        for message in await take(amqp, rejects, 2):
            assert message.body == b"invalid"
            assert message.headers["x-reject-reason"] == "not-json"
            assert "a" not in message.headers


@pytest.mark.parametrize(("held", "prefetch"), [(1, 20), (12, 20), (19, 20), (1, 2)])
async def test_rejected_events_that_are_held_do_not_delay_the_updates_behind_them(
    held: int, prefetch: int, broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, rejects: str
) -> None:
    """Events that can't be rejected yet stay with the broker.

    As long as the number of held events is below the prefetch, all other events are delivered and acknowledged.
    """
    channel = await amqp.channel()
    await channel.declare_exchange(rejects, "fanout", durable=True)
    await channel.declare_queue(rejects, durable=True, arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
    count = 300
    flags = {"exchanges": f"{exchange}=killmail", "queue": queue, "prefetch": prefetch, "reject_exchange": rejects}
    async with running(broker.url, **flags) as bridge:
        invalid = [b"invalid"] * held
        await publish(amqp, exchange, *invalid, *(killmail(number) for number in range(count)), delivery_mode=2)
        await eventually(
            "all updates are sent", lambda: sample(bridge, "bridge_updates_total", type="killmail") == count
        )
        ready, body = bridge.readiness.report()
        assert not ready
        assert "held" in str(body["missing"])

    async def left() -> bool:
        return held <= await depth(amqp, queue) <= prefetch

    await eventually("the broker has the invalid events back, and few others", left)


async def test_rejected_events_of_one_message_id_are_confirmed_one_by_one(
    broker: Broker, amqp: AbstractConnection, exchange: str, rejects: str
) -> None:
    """Promise: if two rejects have the same message id, the confirm of one does not count for the other."""
    async with running(broker.url, exchanges=f"{exchange}=killmail", reject_exchange=rejects):
        channel = await amqp.channel()
        await channel.queue_delete(rejects)
        await publish(amqp, exchange, b"a", b"b", b"c", message_id="the-same")

        async def arrived() -> bool:
            try:
                return await depth(amqp, rejects) == 3
            except Exception:  # the queue does not exist yet
                return False

        await eventually("three rejects are in the queue", arrived)
