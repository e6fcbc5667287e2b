"""`edk-bridge demo`, as a person runs it: killmails flow, and Ctrl-C leaves nothing behind."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aio_pika
import orjson
import pytest
from aio_pika.abc import AbstractConnection

from bridge.demo.broker import Broker
from bridge.demo.ports import free_port
from tests.support.clients import RawClient, get
from tests.support.waiting import LIMIT_S, eventually

EXCHANGE = "bridge.demo"

END_LIMIT_S = 15.0
"""The bridge's own time to stop, and some for the rest."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc")


def marked(mark: str) -> list[int]:
    """The processes with this text in their environment: it is handed on to children, whatever their session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = path.read_bytes()
        except OSError:
            continue  # gone by now, or another user's
        if mark.encode() in environment:
            found.append(int(path.parent.name))
    return found


async def exists(amqp: AbstractConnection, exchange: str) -> bool:
    """Whether the broker has the exchange."""
    channel = await amqp.channel()
    try:
        await channel.get_exchange(exchange)
    except aio_pika.exceptions.ChannelNotFoundEntity:
        return False
    await channel.close()
    return True


@asynccontextmanager
async def demo(amqp_url: str, port: int, output: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A demo, and the mark in the environment of all its processes; killed at the end, with all of them."""
    mark = f"TEST_DEMO={port}.{os.getpid()}"
    environment = {name: text for name, text in os.environ.items() if not name.startswith("BRIDGE_")}
    environment |= {"BRIDGE_AMQP_URL": amqp_url, "PYTHONUNBUFFERED": "1"}
    environment |= dict([mark.split("=")])
    with output.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bridge", "demo", "--port", str(port), "--rate", "20"),
            env=environment,
            # Away from any .env of the developer's own, but with the package to be found.
            cwd=output.parent,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process, mark
    finally:
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)
        await process.wait()


async def test_demo_publishes_killmails_and_leaves_nothing_after_ctrl_c(
    broker: Broker, amqp: AbstractConnection, tmp_path: Path
) -> None:
    port, output = free_port(), tmp_path / "output"
    async with demo(broker.url, port, output) as (process, mark):

        def guide_is_shown() -> bool:
            assert process.returncode is None, output.read_text()
            return "Ctrl-C stops it all" in output.read_text()

        await eventually("the demo says how to watch it", guide_is_shown)
        assert f"ws://localhost:{port}/updates" in output.read_text()
        assert (await get(port, "/readyz"))[0] == 200
        client = await RawClient.open(port)
        async with asyncio.timeout(LIMIT_S):
            updates = [orjson.loads(await client.text()) for _ in range(10)]
        assert {update["type"] for update in updates} == {"killmail"}
        assert len({update["data"]["killmailId"] for update in updates}) == 10
        assert await exists(amqp, EXCHANGE)
        # The demo, the shell that holds the bridge's leash, its watcher, and the bridge.
        assert len(marked(mark)) >= 3
        process.send_signal(signal.SIGINT)
        assert await client.closed() == 1001
        async with asyncio.timeout(END_LIMIT_S):
            assert await process.wait() == 0, output.read_text()
        assert marked(mark) == []
        assert not await exists(amqp, EXCHANGE)
        assert output.read_text().rstrip().endswith("stopped")
        await client.close()
