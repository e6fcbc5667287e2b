"""A client that is not Python's: Node's `ws` gets the same texts, to the byte."""

import asyncio
import shutil
from contextlib import AsyncExitStack

import orjson
import pytest
from aio_pika.abc import AbstractConnection

from bridge.demo.broker import Broker
from tests.support.broker import unavailable
from tests.support.clients import RawClient
from tests.support.killmail import EXAMPLE, killmail
from tests.support.prepare import NODE
from tests.support.publishing import publish
from tests.support.running import port_of, running
from tests.support.waiting import LIMIT_S

# What a client that mistakes bytes for characters, or cuts at 125 or 65535 bytes, would get wrong.
EVENTS = [EXAMPLE, killmail(2, note='Ünïcode 🚀 \u2028 \x7f \\ " /'), killmail(3, padding="é" * 70_000)]


@pytest.fixture
def node() -> str:
    """Node's command, with `ws` installed."""
    command = shutil.which("node")
    if command is None:
        unavailable("node is not installed")
    if not (NODE / "node_modules/ws").is_dir():
        unavailable("Node's ws is not installed; `python -m tests.support.prepare` installs it")
    return command


async def line(output: asyncio.StreamReader) -> bytes:
    """The next line, without its end."""
    async with asyncio.timeout(LIMIT_S):
        return (await output.readline()).removesuffix(b"\n")


async def end(process: asyncio.subprocess.Process) -> None:
    """Kills the process if it still runs."""
    if process.returncode is None:
        process.kill()
    await process.wait()


async def test_ws_gets_the_same_bytes_as_a_raw_client(
    node: str, broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    async with AsyncExitStack() as after:
        async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
            raw = await RawClient.open(port_of(bridge))
            process = await asyncio.create_subprocess_exec(
                node,
                "client.mjs",
                f"ws://127.0.0.1:{port_of(bridge)}/updates",
                cwd=NODE,
                stdout=asyncio.subprocess.PIPE,
                limit=2**20,
            )
            after.push_async_callback(end, process)
            assert process.stdout is not None
            assert await line(process.stdout) == b"open"
            await publish(amqp, exchange, *EVENTS)
            texts = [await raw.text() for _ in EVENTS]
            assert [await line(process.stdout) for _ in EVENTS] == texts
            assert [orjson.loads(text)["data"] for text in texts] == EVENTS
            await raw.close()
        assert await line(process.stdout) == b"closed 1001"
        assert await process.wait() == 0
