"""Tests what the examples of `schemas/publishers` do if the connection to the broker is lost, or can't be used."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError, ChannelNotFoundEntity

from tests.support.broker.node import PrivateNode
from tests.support.killmail import killmail
from tests.support.proxy import Direction, Proxy, proxy
from tests.support.publishers import node_program, python_publisher
from tests.support.waiting import LIMIT_S, eventually

MISSING = "missing.exchange"
EXCHANGE = "amq.fanout"
"""Every broker has this exchange from its start.

The tests use `amq.fanout` as the exchange of events and as the exchange of rejects.
"""

LOST = AMQPError, ChannelInvalidStateError

PROGRAM = """
import { openPublisher } from "./publisher.mjs";
const [url, exchange] = process.argv.slice(2);
const onError = (error) => {
  console.log(`error: ${error.message}`);
  publisher?.publish("killmail", {}).catch(() => console.log("not published"));
};
let publisher;
try {
  publisher = await openPublisher(url, exchange, () => {}, { rejects: "amq.fanout", onError });
  await publisher.publish("killmail", {});
  console.log("published");
} catch (error) {
  console.log(`not opened: ${error.message}`);
}
if (process.argv[4] === "close") await publisher.close();
"""


@pytest.fixture
async def tunnel(node_broker: PrivateNode) -> AsyncIterator[Proxy]:
    async with proxy(node_broker.url) as running:
        await running.open()
        yield running


@asynccontextmanager
async def in_node(folder: Path, *arguments: str) -> AsyncIterator[asyncio.StreamReader]:
    """Runs the program, which must end by itself. Yields the output of the program."""
    await asyncio.to_thread(node_program, folder, PROGRAM)
    process = await asyncio.create_subprocess_exec(
        "node", "main.mjs", *arguments, cwd=folder, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(LIMIT_S):
            yield process.stdout
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("way", ["the broker closes", "cut"])
async def test_lost_connection_is_reported_once_by_the_example_in_node(
    node_broker: PrivateNode, tunnel: Proxy, way: str, tmp_path: Path
) -> None:
    async with in_node(tmp_path, tunnel.url.removesuffix("/"), EXCHANGE) as output:
        assert await output.readline() == b"published\n"
        if way == "cut":
            tunnel.cut()
        else:
            await node_broker.ctl("close_all_connections", "maintenance")
        lines = (await output.read()).splitlines()
    assert len(lines) == 2, lines
    assert lines[0].startswith(b"error: ")
    assert way == "cut" or b"maintenance" in lines[0]
    assert lines[1] == b"not published"


async def test_end_of_the_example_in_node_is_not_an_error(tunnel: Proxy, tmp_path: Path) -> None:
    async with in_node(tmp_path, tunnel.url.removesuffix("/"), EXCHANGE, "close") as output:
        assert await output.read() == b"published\n"


async def test_example_in_node_closes_its_connection_if_the_exchange_is_missing(tunnel: Proxy, tmp_path: Path) -> None:
    async with in_node(tmp_path, tunnel.url.removesuffix("/"), MISSING) as output:
        lines = (await output.read()).splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith(b"not opened: ")
    assert MISSING.encode() in lines[0]


@pytest.mark.parametrize("is_in_flight", [False, True], ids=["later", "in flight"])
async def test_publish_of_the_example_in_python_raises_an_error_if_the_connection_is_lost(
    tunnel: Proxy, is_in_flight: bool
) -> None:
    async def lose() -> None:
        async with python_publisher().publisher(tunnel.url, EXCHANGE, print, EXCHANGE) as publish:
            await publish("killmail", killmail(1))
            if is_in_flight:
                tunnel.hold(Direction.DOWN)
            publishing = publish("killmail", killmail(2))
            task = asyncio.create_task(publishing) if is_in_flight else None
            await asyncio.sleep(0)
            tunnel.cut()
            await (task or publishing)

    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(LOST) as raised:
            await lose()
    # The end of the `async with` block raises another error, which has the error of `publish` as its context.
    assert isinstance(raised.value.__context__, LOST)


async def test_example_in_python_closes_its_connection_if_the_exchange_is_missing(tunnel: Proxy) -> None:
    with pytest.raises(ChannelNotFoundEntity):
        async with python_publisher().publisher(tunnel.url, MISSING, print, EXCHANGE):
            pass
    await eventually("the connection is closed", lambda: not tunnel._clients)
    assert tunnel.accepted == 1
