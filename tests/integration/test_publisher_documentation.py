"""The examples in the README of the publishers, run as they stand.

Each example ends with an update that a client gets, or with a reject that the publisher gets.

"""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import aio_pika
import orjson
import pytest
from aio_pika.abc import AbstractConnection

from bridge.app import Bridge
from tests.support.broker.find import Broker
from tests.support.broker.session import unavailable
from tests.support.clients import RawClient
from tests.support.documentation import adapted, code_block, shell
from tests.support.killmail import killmail
from tests.support.prepare import DEBIAN_PYTHON
from tests.support.publishers import PUBLISHERS, node_program, python_publisher
from tests.support.publishing import bind, observer, take
from tests.support.running import port_of, running
from tests.support.waiting import LIMIT_S, eventually

URL = "amqp://guest:guest@localhost:5672/"
REJECTED = b"schema-violation /timestamp: the member 'timestamp' is missing"
CLOSES, IN_FLIGHT = 10, 20
"""How often the test closes the example's connection, and how many events are in flight.

With these numbers, RabbitMQ 4.3 would refuse some events if the example did not unbind its queue.
"""


def one_node(broker: Broker) -> str:
    """The URL of the broker's first node, without a slash at the end."""
    return broker.url.split(",", maxsplit=1)[0].removesuffix("/")


def kombu_url(broker: Broker) -> str:
    """Returns the URL of the broker's first node. Without a virtual host, the URL ends with a slash."""
    url = one_node(broker)
    return url if urlsplit(url).path else f"{url}/"


@pytest.fixture
async def bridge(broker: Broker, exchange: str, rejects: str) -> AsyncIterator[Bridge]:
    async with running(broker.url, exchanges=f"{exchange}=killmail", reject_exchange=rejects) as running_bridge:
        yield running_bridge


@asynccontextmanager
async def client_of(bridge: Bridge) -> AsyncIterator[RawClient]:
    client = await RawClient.open(port_of(bridge))
    yield client
    await client.close()


async def killmail_id(client: RawClient) -> int:
    """Returns the id of the killmail that the client gets next."""
    async with asyncio.timeout(LIMIT_S):
        number = orjson.loads(await client.text())["data"]["killmailId"]
    assert isinstance(number, int)
    return number


@pytest.mark.parametrize(
    ("old", "new", "output"),
    [
        ("587", "587", b"a queue has it: True\n"),
        (
            '"systemId": 30000142',
            '"systemId": "Jita"',
            b'schema-violation: /systemId: "Jita" is not of type "integer"\n',
        ),
    ],
    ids=["valid", "invalid"],
)
async def test_publisher_of_the_package_publishes_valid_updates_only(
    broker: Broker,
    amqp: AbstractConnection,
    exchange: str,
    queue: str,
    tmp_path: Path,
    old: str,
    new: str,
    output: bytes,
) -> None:
    example = code_block("schemas/publishers/README.md", "Python", 0)
    example = adapted(example, (URL, broker.url), ("killmails", exchange), (old, new))
    (tmp_path / "example.py").write_text(example)
    await bind(amqp, exchange, queue)
    assert await shell("python example.py", tmp_path) == output
    if old == new:
        [message] = await take(amqp, queue, 1)
        assert orjson.loads(message.body)["killmailId"] == 123456789


# Rejects


def assert_reject_of_published(output: bytes) -> None:
    """Checks that the output has an event's message id and its reject. A reject can arrive before the confirm."""
    [published] = [line for line in output.splitlines() if line.startswith(b"published ")]
    message_id = published.removeprefix(b"published ")
    assert sorted(output.splitlines()) == sorted([published, b" ".join([message_id, REJECTED])])


async def test_example_in_python_learns_of_its_reject(
    broker: Broker, bridge: Bridge, exchange: str, rejects: str, tmp_path: Path
) -> None:
    example = code_block("schemas/publishers/README.md", "Learn of rejects", 0)
    changes = (URL, one_node(broker)), ('"killmails", print', f'"{exchange}", print, "{rejects}"')
    (tmp_path / "main.py").write_text(adapted(example, *changes, ("sleep(5)", "sleep(2)")))
    shutil.copy(PUBLISHERS / "publisher.py", tmp_path)
    assert_reject_of_published(await shell("python main.py", tmp_path))


async def test_example_in_node_learns_of_its_reject(
    broker: Broker, bridge: Bridge, exchange: str, rejects: str, tmp_path: Path
) -> None:
    example = code_block("schemas/publishers/README.md", "Learn of rejects", 1)
    changes = (
        (URL, one_node(broker)),
        ('"killmails", console.log', f'"{exchange}", console.log, {{ rejects: "{rejects}" }}'),
    )
    await asyncio.to_thread(node_program, tmp_path, adapted(example, *changes, ("5_000", "2_000")))
    assert_reject_of_published(await shell("node main.mjs", tmp_path))


@pytest.fixture
def example() -> ModuleType:
    """The example in Python."""
    return python_publisher()


async def test_publisher_gets_no_rejects_of_other_publishers(
    broker: Broker, bridge: Bridge, exchange: str, rejects: str, example: ModuleType
) -> None:
    mine: list[tuple[str, ...]] = []
    other: list[tuple[str, ...]] = []
    url = one_node(broker)
    async with (
        example.publisher(url, exchange, lambda *reject: mine.append(reject), rejects) as publish,
        example.publisher(url, exchange, lambda *reject: other.append(reject), rejects) as publish_other,
        client_of(bridge) as client,
    ):
        my_id = await publish("killmail", {})
        other_id = await publish_other("nothing", killmail(1))
        await publish("killmail", killmail(2))
        assert await killmail_id(client) == 2
        await eventually("both publishers have a reject", lambda: mine and other)
    assert [reject[:2] for reject in mine] == [(my_id, "schema-violation")]
    assert [reject[:2] for reject in other] == [(other_id, "unknown-type")]


async def test_event_is_forgotten_once_too_many_newer_ones_are_published(
    broker: Broker,
    amqp: AbstractConnection,
    exchange: str,
    queue: str,
    rejects: str,
    example: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(example, "MAX_KNOWN", 2)
    await bind(amqp, exchange, queue)
    await bind(amqp, rejects, rejects)
    found: list[tuple[str, ...]] = []
    async with example.publisher(one_node(broker), exchange, lambda *reject: found.append(reject), rejects) as publish:
        ids = [await publish("killmail", killmail(number)) for number in range(3)]
        channel = await amqp.channel()
        source = await channel.get_exchange(rejects)
        for message_id in ids:
            headers: dict[str, object] = {"x-reject-reason": "internal-error", "x-reject-detail": ""}
            message = aio_pika.Message(b"", message_id=message_id, headers=headers)  # type: ignore[arg-type]  # values of any type
            await source.publish(message, "")
        await eventually("the rejects have arrived", lambda: len(found) == 2)
    assert [reject[0] for reject in found] == ids[1:]


async def test_end_of_a_publisher_does_not_make_confirms_of_others_fail(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, rejects: str, example: ModuleType
) -> None:
    await bind(amqp, exchange, queue, **{"x-max-length": 1})
    await bind(amqp, rejects, rejects, **{"x-max-length": 1})
    closed = asyncio.Event()

    async def close_often() -> None:
        for _ in range(CLOSES):
            async with example.publisher(one_node(broker), exchange, print, rejects):
                pass
        closed.set()

    async def publish_rejects() -> int:
        async with observer(broker.url) as connection:
            channel = await connection.channel(publisher_confirms=True)
            target = await channel.get_exchange(rejects)
            count = 0
            while not closed.is_set():
                # `gather` raises DeliveryError if the broker does not confirm an event.
                await target.publish(aio_pika.Message(b"{}"), "")
                count += 1
            return count

    async with asyncio.TaskGroup() as tasks:
        publishing = [tasks.create_task(publish_rejects()) for _ in range(IN_FLIGHT)]
        tasks.create_task(close_often())
    assert all(task.result() for task in publishing)


# Programs of other projects


def require(*command: str, package: str) -> None:
    """Skips the test if a command fails, which means that a Debian package is not installed."""
    if shutil.which(command[0]) is None or subprocess.run(command, capture_output=True, check=False).returncode:
        unavailable(f"Debian's {package} is not installed; `make prepare` installs it")


async def test_amqp_publish_publishes_a_wrapped_event(
    broker: Broker, bridge: Bridge, exchange: str, tmp_path: Path
) -> None:
    await asyncio.to_thread(require, "amqp-publish", "--help", package="amqp-tools")
    command = code_block("schemas/publishers/README.md", "Command line", 0)
    async with client_of(bridge) as client:
        url = one_node(broker)
        await shell(adapted(command, (URL.removesuffix("/"), url), ("killmails", exchange)), tmp_path)
        assert await killmail_id(client) == 1
        if not urlsplit(url).path:
            with pytest.raises(AssertionError, match="vhost"):
                await shell(adapted(command, (URL.removesuffix("/"), url + "/"), ("killmails", exchange)), tmp_path)


async def test_kombu_publishes_an_event(broker: Broker, bridge: Bridge, exchange: str, tmp_path: Path) -> None:
    await asyncio.to_thread(require, DEBIAN_PYTHON, "-c", "import kombu", package="python3-kombu")
    example = code_block("schemas/publishers/README.md", "kombu and Celery", 0)
    (tmp_path / "example.py").write_text(adapted(example, (URL, kombu_url(broker)), ("killmails", exchange)))
    async with client_of(bridge) as client:
        await shell(f"{DEBIAN_PYTHON} example.py", tmp_path)
        assert await killmail_id(client) == 3


TASK = """
from celery import Celery

data = {data!r}
app = Celery("tasks", broker={url!r})


@app.task
def kill(data):
    pass


kill.apply_async([data], exchange={exchange!r}, routing_key="kill")
data["killmailId"] += 1
"""


async def test_celery_publishes_an_event_with_its_producer_but_not_with_a_task(
    broker: Broker, amqp: AbstractConnection, bridge: Bridge, exchange: str, rejects: str, tmp_path: Path
) -> None:
    await asyncio.to_thread(require, DEBIAN_PYTHON, "-c", "import celery", package="python3-celery")
    task = TASK.format(data=killmail(4), url=kombu_url(broker), exchange=exchange)
    example = adapted(code_block("schemas/publishers/README.md", "kombu and Celery", 1), ("killmails", exchange))
    (tmp_path / "example.py").write_text(task + example)
    async with client_of(bridge) as client:
        await shell(f"{DEBIAN_PYTHON} example.py", tmp_path)
        assert await killmail_id(client) == 5
    [message] = await take(amqp, rejects, 1)
    assert message.headers["x-reject-pointer"] == "/0/0"
