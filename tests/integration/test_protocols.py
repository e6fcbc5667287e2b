"""Events over AMQP 1.0, STOMP, MQTT and HTTP, from other projects' clients: each becomes an update or a reject."""

import asyncio
import json
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import paho.mqtt.client as mqtt
import pytest
import stomp  # type: ignore[import-untyped]  # the module has no types
from aio_pika.abc import AbstractConnection
from paho.mqtt.enums import CallbackAPIVersion

from bridge.amqp.consume.repeated_failures import CLOSED_EARLY
from bridge.app import Bridge
from tests.support.broker.find import NoBroker, find_server
from tests.support.broker.node import PrivateNode
from tests.support.broker.ports import LOOPBACK, free_port
from tests.support.broker.session import say, unavailable
from tests.support.clients import RawClient
from tests.support.documentation import adapted, code_block, shell
from tests.support.killmail import killmail
from tests.support.prepare import DEBIAN_PYTHON
from tests.support.publishing import observer, take
from tests.support.releases_marker import version_of
from tests.support.running import consumer_of, port_of, running, unique
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

HERE = Path(__file__).parents[1]
LIMIT_S = 20
GUEST = "guest"
PLUGINS = "[rabbitmq_amqp1_0,rabbitmq_stomp,rabbitmq_mqtt,rabbitmq_management].\n"


class PluginsNode(PrivateNode):
    """A private node with AMQP 1.0, STOMP, MQTT and the HTTP API, in addition to AMQP 0-9-1."""

    def __init__(self, server: Path) -> None:
        self.stomp_port, self.mqtt_port, self.http_port = free_port(), free_port(), free_port()
        super().__init__(
            server,
            {
                "stomp.listeners.tcp.1": f"{LOOPBACK}:{self.stomp_port}",
                "mqtt.listeners.tcp.1": f"{LOOPBACK}:{self.mqtt_port}",
                "management.tcp.ip": LOOPBACK,
                "management.tcp.port": str(self.http_port),
            },
        )
        (self.directory / "enabled_plugins").write_text(PLUGINS)


@pytest.fixture(scope="module")
def plugins_node() -> Iterator[PluginsNode]:
    try:
        node = PluginsNode(find_server(say, may_install=False))
    except NoBroker as error:
        unavailable(str(error))
    node.start()
    yield node
    node.stop()


def release(node: PrivateNode) -> tuple[int, ...]:
    return tuple(map(int, version_of(node.url).split(".")))


def address(node: PrivateNode, exchange: str, routing_key: str | None = "any") -> str:
    """Returns the address that an AMQP 1.0 client sends to."""
    prefix = "/exchanges" if release(node) >= (4,) else "/exchange"
    return f"{prefix}/{exchange}" + (f"/{routing_key}" if routing_key else "")


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr


def require(way: str) -> None:
    """Skips the test if the client is not installed.

    Call `require` before you open any resources, because a skip does not close them.
    """
    if way == "rhea" and shutil.which("node") is None:
        unavailable("node is not installed; `make prepare` installs it")
    proton = (DEBIAN_PYTHON, "-c", "import proton")
    if way == "proton" and subprocess.run(proton, capture_output=True, check=False).returncode:
        unavailable("Debian's python3-qpid-proton is not installed; `make prepare` installs it")


def by_rhea(node: PluginsNode, exchange: str, kind: str, body: str, routing_key: str | None = "any") -> None:
    run("node", HERE / "node/amqp10.mjs", LOOPBACK, str(node.port), address(node, exchange, routing_key), kind, body)


def by_proton(node: PluginsNode, exchange: str, kind: str, body: str) -> None:
    url = f"amqp://{GUEST}:{GUEST}@{LOOPBACK}:{node.port}"
    run(DEBIAN_PYTHON, HERE / "support/proton_sender.py", url, address(node, exchange), kind, body)


def by_stomp(node: PluginsNode, exchange: str, kind: str, body: str) -> None:
    connection = stomp.Connection([(LOOPBACK, node.stomp_port)])
    connection.connect(GUEST, GUEST, wait=True)
    connection.send(f"/exchange/{exchange}", body, content_type=kind)
    connection.disconnect()


def by_mqtt(node: PluginsNode, topic: str, kind: str, body: str) -> None:
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.username_pw_set(GUEST, GUEST)
    connected = threading.Event()
    client.on_connect = lambda *_: connected.set()
    client.connect(LOOPBACK, node.mqtt_port)
    client.loop_start()
    # If an MQTT client ends before it reads the broker's answer, the connection is reset and the messages are lost.
    assert connected.wait(LIMIT_S)
    client.publish(topic, body, qos=int(kind)).wait_for_publish(LIMIT_S)
    client.disconnect()
    client.loop_stop()


WAYS = {"rhea": by_rhea, "proton": by_proton, "stomp": by_stomp, "mqtt": by_mqtt}

MQTT_EXCHANGE = "amq.topic"


@asynccontextmanager
async def bridge_of(
    node: PluginsNode, exchange: str, **flags: object
) -> AsyncIterator[tuple[Bridge, AbstractConnection, str]]:
    """Yields a bridge on the node, an operator's connection, and the queue's name.

    At the end, removes what the bridge declared.
    """
    rejects, queue = unique("rejects"), unique("queue")
    async with observer(node.url) as amqp:
        try:
            async with running(
                node.url, exchanges=f"{exchange}=killmail", reject_exchange=rejects, queue=queue, **flags
            ) as bridge:
                yield bridge, amqp, queue
        finally:
            channel = await amqp.channel()
            for name in (queue, rejects):
                await channel.queue_delete(name)
            for name in (rejects, *([] if exchange == MQTT_EXCHANGE else [exchange])):
                await channel.exchange_delete(name)


@pytest.mark.parametrize(
    ("way", "kind"),
    [
        ("rhea", "data"),
        ("proton", "data"),
        ("stomp", "application/json"),
        ("stomp", "text/plain"),
        ("mqtt", "0"),
        ("mqtt", "1"),
    ],
)
async def test_event_over_another_protocol_becomes_an_update(plugins_node: PluginsNode, way: str, kind: str) -> None:
    require(way)
    exchange = MQTT_EXCHANGE if way == "mqtt" else unique("exchange")
    async with bridge_of(plugins_node, exchange) as (bridge, _, _queue):
        client = await RawClient.open(port_of(bridge))
        target = "killmails" if way == "mqtt" else exchange
        await asyncio.to_thread(WAYS[way], plugins_node, target, kind, json.dumps(killmail(1)))
        assert orjson.loads(await client.text())["data"] == killmail(1)
        await client.close()


async def test_event_over_the_http_api_becomes_an_update(plugins_node: PluginsNode, tmp_path: Path) -> None:
    command = code_block("schemas/publishers/README.md", "Command line", 1)
    exchange = unique("exchange")
    changes = ("localhost:15672", f"{LOOPBACK}:{plugins_node.http_port}"), ("killmails", exchange)
    async with bridge_of(plugins_node, exchange) as (bridge, _, _queue):
        client = await RawClient.open(port_of(bridge))
        assert await shell(adapted(command, *changes), tmp_path) == b'{"routed":true}'
        assert orjson.loads(await client.text())["data"]["killmailId"] == 2
        await client.close()


@pytest.mark.parametrize(
    ("way", "kind"),
    [("rhea", "text"), ("rhea", "binary"), ("rhea", "object"), ("rhea", "sequence"), ("proton", "value")],
)
async def test_value_or_sequence_of_amqp_1_0_is_rejected_with_a_hint(
    plugins_node: PluginsNode, way: str, kind: str
) -> None:
    require(way)
    exchange = unique("exchange")
    async with bridge_of(plugins_node, exchange) as (bridge, amqp, _queue):
        await asyncio.to_thread(WAYS[way], plugins_node, exchange, kind, json.dumps(killmail(1)))
        rejects = bridge._rejects._exchange
        assert rejects is not None
        [message] = await take(amqp, rejects, 1)
    assert message.headers["x-reject-reason"] == "unsupported-encoding"
    assert "send the JSON as bytes, in a data section" in str(message.headers["x-reject-detail"])


async def test_message_that_the_broker_can_not_deliver_is_reported_and_requested_rarely(
    plugins_node: PluginsNode,
) -> None:
    """RabbitMQ 3.10 can't deliver an event that an AMQP 1.0 client published without a routing key."""
    if release(plugins_node) >= (4,):
        pytest.skip("RabbitMQ 4 delivers it")
    require("rhea")
    exchange = unique("exchange")
    async with bridge_of(plugins_node, exchange) as (bridge, amqp, queue):
        await asyncio.to_thread(by_rhea, plugins_node, exchange, "data", json.dumps(killmail(1)), None)

        def warnings() -> object:
            return bridge.readiness.report()[1]["warnings"]

        await eventually("the bridge reports the message", lambda: warnings() == [CLOSED_EARLY])
        attempts = consumer_of(bridge).status.attempts
        assert attempts <= 4
        assert "INTERNAL_ERROR" in str(consumer_of(bridge).status.error)
        channel = await amqp.channel()
        client = await RawClient.open(port_of(bridge))
        await (await channel.get_queue(queue)).purge()
        await asyncio.to_thread(by_rhea, plugins_node, exchange, "data", json.dumps(killmail(2)))
        assert orjson.loads(await client.text())["data"] == killmail(2)
        await eventually("the warning ends", lambda: not warnings())
        await client.close()
