"""Fixtures for all tests, and how these are shared out among several workers.

None of the fixtures does anything for a test that does not ask for it.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import aio_pika
import orjson
import pytest
import uvloop
from aio_pika.abc import AbstractConnection

from bridge.demo import ports
from bridge.demo.broker import Broker, NoBroker, find_server
from tests.support.broker import URL, origins, running, say, unavailable
from tests.support.control import ControlledNode
from tests.support.prepare import NODE
from tests.support.running import unique
from tests.support.workers import share_of


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """asyncio's own loop, and for what is marked with `both_loops` uvloop as well, which the bridge is served with."""
    own: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    return own | {"uvloop": uvloop.new_event_loop} if item.get_closest_marker("both_loops") else own


def pytest_configure(config: pytest.Config) -> None:
    """Gives each worker ports of its own: one that is free may be another's, whose broker is about to start on it."""
    worker: Mapping[str, str] | None = getattr(config, "workerinput", None)
    if worker is None:
        return
    index, count = int(worker["workerid"].removeprefix("gw")), int(worker["workercount"])
    ports._FIRST_PORT, ports._LAST_PORT = share_of(ports._FIRST_PORT, ports._LAST_PORT, index, count)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hands on what a worker ran against."""
    output: dict[str, object] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["origins"] = origins


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Takes it from there; a worker that crashed has left nothing."""
    found = getattr(node, "workeroutput", {}).get("origins", ())
    origins.extend(origin for origin in found if origin not in origins)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what the tests ran against."""
    for origin in origins:
        terminalreporter.write_line(f"RabbitMQ: {origin}")


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """A real RabbitMQ, shared by all tests of a worker: leave nothing in it, and leave it running."""
    yield from running(URL)


@pytest.fixture(scope="session")
def mortal_broker() -> Iterator[Broker]:
    """A real RabbitMQ that a test may kill and start again; shared, so leave it running."""
    yield from running()


@pytest.fixture(scope="session")
def node_broker() -> Iterator[ControlledNode]:
    """A real RabbitMQ that a test may stop, and tell what its operator would; shared, so leave it running as it was."""
    try:
        node = ControlledNode(find_server(say, may_install=False))
    except NoBroker as error:
        unavailable(str(error))
    node.start()
    yield node
    node.stop()


@pytest.fixture
async def amqp(broker: Broker) -> AsyncIterator[AbstractConnection]:
    """An observer's connection to `broker`."""
    connection = await aio_pika.connect(broker.url, timeout=10)
    yield connection
    await connection.close()


async def _own(amqp: AbstractConnection, kind: str) -> AsyncIterator[str]:
    name = unique(kind)
    yield name
    channel = await amqp.channel()
    await channel.queue_delete(name)
    await channel.exchange_delete(name)


@pytest.fixture
async def exchange(amqp: AbstractConnection) -> AsyncIterator[str]:
    """An exchange's name; the test or the bridge makes it."""
    async for name in _own(amqp, "exchange"):
        yield name


@pytest.fixture
async def queue(amqp: AbstractConnection) -> AsyncIterator[str]:
    """A queue's name; the test or the bridge makes it."""
    async for name in _own(amqp, "queue"):
        yield name


@pytest.fixture
async def rejects(amqp: AbstractConnection) -> AsyncIterator[str]:
    """The name of an exchange for rejected events, and of its queue; the bridge makes both."""
    async for name in _own(amqp, "rejects"):
        yield name


@pytest.fixture
def node() -> str:
    """Node's command, with the packages that the tests need of it."""
    command = shutil.which("node")
    if command is None:
        unavailable("node is not installed")
    packages = orjson.loads((NODE / "package.json").read_bytes())["dependencies"]
    missing = [package for package in packages if not (NODE / "node_modules" / package).is_dir()]
    if missing:
        unavailable(f"not installed: {', '.join(missing)} (Node); `python -m tests.support.prepare` installs them")
    return command
