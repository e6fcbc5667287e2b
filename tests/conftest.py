"""Fixtures for all tests, and how tests are distributed among several workers.

No fixture affects a test that does not ask for the fixture.
"""

import asyncio
import re
import resource
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import aio_pika
import orjson
import pytest
import uvloop
from aio_pika.abc import AbstractConnection
from xdist.remote import Producer  # type: ignore[import-untyped]  # has no stubs
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]  # has no stubs

# pytest must be told about `tests.support` before its modules are imported, so that failing assertions in them show
# values. This call can't be in `tests/__init__.py`, because the benchmark imports `tests` with an interpreter that has
# no pytest.
pytest.register_assert_rewrite("tests.support")

from tests.support.broker import ports
from tests.support.broker.find import Broker, NoBroker
from tests.support.broker.node import PrivateNode, installed_server
from tests.support.broker.session import origins, running, shared, started_node, unavailable
from tests.support.image import built
from tests.support.prepare import NODE
from tests.support.running import unique

pytest_plugins = ["tests.support.figures", "tests.support.releases_marker"]


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Returns asyncio's own loop. For tests with the mark `both_loops`, also returns uvloop, which the bridge uses."""
    own: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    return own | {"uvloop": uvloop.new_event_loop} if item.get_closest_marker("both_loops") else own


def pytest_configure(config: pytest.Config) -> None:
    """Gives each worker its own range of ports. A port that looks free may soon be used by another worker's broker."""
    worker: Mapping[str, str] | None = getattr(config, "workerinput", None)
    if worker is None:
        return
    index, count = int(worker["workerid"].removeprefix("gw")), int(worker["workercount"])
    size = (ports._LAST_PORT - ports._FIRST_PORT) // count
    # If a worker crashes, the number of its replacement is beyond `count`.
    ports._FIRST_PORT += index % count * size
    ports._LAST_PORT = ports._FIRST_PORT + size


NODE_SCOPE, BROWSER_SCOPE, IMAGE_SCOPE = SHARING = ("private node", "browser", "image")
"""The test scopes that consist of several files, with the slowest scope first."""


@cache
def scope_of(file: str) -> str:
    """Returns the scope of a file: all tests of a scope run in one worker.

    All tests that use the private node form one scope, and so do all that use the browser, and all that use the image.
    Every other test file is a scope of its own.
    """
    if file.startswith("tests/browser/"):
        return BROWSER_SCOPE
    text = Path(file).read_text() if Path(file).is_file() else ""
    if re.search("(node|mortal)_broker", text):
        return NODE_SCOPE
    # A test that uses the fixture `image` has the argument `image: str`. In unit tests, the name `image` means other
    # things.
    return IMAGE_SCOPE if file.startswith("tests/integration/") and re.search(r"\bimage: str\b", text) else file


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # the base has no types
    """Assigns scopes to workers in the order in which the tests were collected."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid.partition("::")[0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling | None:
    """With `--dist=loadfile`, decides which tests run in one worker."""
    if config.option.dist != "loadfile":
        return None
    config.option.loadscopereorder = False
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the longest scopes first, so that the workers finish at about the same time."""
    order = {scope: place for place, scope in enumerate(SHARING)}
    items.sort(key=lambda item: order.get(scope_of(item.nodeid.partition("::")[0]), len(order)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tells the controller where the brokers of this worker come from."""
    output: dict[str, object] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["origins"] = origins


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Collects what a worker has reported about its brokers. A worker that crashed has reported nothing."""
    found = getattr(node, "workeroutput", {}).get("origins", ())
    origins.extend(origin for origin in found if origin not in origins)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints where the brokers that the tests used come from."""
    for origin in origins:
        terminalreporter.write_line(f"RabbitMQ: {origin}")


@pytest.fixture(scope="session")
def broker(worker_id: str) -> Iterator[Broker]:
    """A real RabbitMQ, shared by all tests. A test must leave nothing in this broker, and must leave it running."""
    yield from shared(worker_id)


@pytest.fixture(scope="session")
def node_broker() -> Iterator[PrivateNode]:
    """A private node that a test may kill, restart, pause and configure.

    All tests that use this node run in one worker. A test must leave the node running and unchanged.
    """
    try:
        node = started_node()
    except NoBroker:
        unavailable("a private node needs an installed rabbitmq-server, whatever other broker there is: `make prepare`")
    yield node
    node.stop()


@pytest.fixture(scope="session")
def mortal_broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """A broker that a test may only kill and start again: `node_broker`, or a container if no server is installed."""
    if installed_server() is not None:
        yield request.getfixturevalue("node_broker")
    else:
        yield from running()


@pytest.fixture(scope="session")
def image() -> Iterator[str]:
    """The name of the image that is built from `docker/Dockerfile`. All tests that use this image run in one worker."""
    with built() as name:
        yield name


@pytest.fixture(autouse=True)
def _node_runs_again(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test, starts or resumes the private node if the test has left it dead or paused."""
    names = {"node_broker", "mortal_broker"}.intersection(request.fixturenames)
    nodes = [request.getfixturevalue(name) for name in names]
    yield
    for node in nodes:
        if isinstance(node, PrivateNode):
            if node.runs:
                node.resume()
            else:
                node.start()


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
    """The name of an exchange. The test or the bridge declares the exchange."""
    async for name in _own(amqp, "exchange"):
        yield name


@pytest.fixture
async def queue(amqp: AbstractConnection) -> AsyncIterator[str]:
    """The name of a queue. The test or the bridge declares the queue."""
    async for name in _own(amqp, "queue"):
        yield name


@pytest.fixture
async def rejects(amqp: AbstractConnection) -> AsyncIterator[str]:
    """The name of an exchange for rejected events, and of its queue; the bridge declares both."""
    async for name in _own(amqp, "rejects"):
        yield name


@pytest.fixture(scope="session")
def node() -> str:
    """The command of Node, with the packages that the tests need."""
    command = shutil.which("node")
    if command is None:
        unavailable("node is not installed")
    packages = orjson.loads((NODE / "package.json").read_bytes())["dependencies"]
    missing = [package for package in packages if not (NODE / "node_modules" / package).is_dir()]
    if missing:
        unavailable(f"not installed: {', '.join(missing)} (Node); `make prepare` installs them")
    return command


FILES = 4096
"""The limit on open files for tests with a thousand clients. Two ends of each connection may be in one process."""


@pytest.fixture
def many_files() -> Iterator[None]:
    """Raises the limit on open files for this process and its children, so that all clients can connect."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        pytest.skip(f"this machine allows only {hard} open files")
    raised = soft if soft == resource.RLIM_INFINITY else max(soft, FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
