"""The examples of the README run as they stand."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import orjson
import pytest
from aio_pika.abc import AbstractConnection

from bridge.contract import catalog
from bridge.contract.pipeline import Accepted, Event, Pipeline
from tests.support.broker.find import Broker
from tests.support.broker.ports import free_port
from tests.support.clients import RawClient, get
from tests.support.documentation import BIN, ROOT, adapted, code_block, shell
from tests.support.image import BASE, site
from tests.support.killmail import killmail
from tests.support.publishing import bind, observer, publish, take
from tests.support.running import port_of, running, sample, unique
from tests.support.waiting import LIMIT_S, eventually


@asynccontextmanager
async def started(*command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Starts a program with an open input and an output that the test reads. Ends the program and its children."""
    pipe = asyncio.subprocess.PIPE
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}
    process = await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=pipe, env=environment, start_new_session=True
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # the program may have ended when the bridge stopped
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()


def websocket_flags(node: str) -> list[str]:
    """Returns the flags with which Node 20 has the built-in WebSocket of Node 22, which the example needs."""
    version = subprocess.run([node, "--version"], stdout=subprocess.PIPE, check=True, text=True).stdout
    return ["--experimental-websocket"] if version.startswith("v20.") else []


async def prints_an_update(
    amqp: AbstractConnection, exchange: str, broker: Broker, *command: str, last: bytes = b""
) -> bytes:
    """Runs a client until it prints an update, and returns the client's output.

    In `command`, `PORT` stands for the port of the bridge. When the bridge has stopped, the output must contain `last`.
    """
    async with running(broker.url, exchanges=f"{exchange}=killmail", host="localhost") as bridge:
        command = tuple(argument.replace("PORT", str(port_of(bridge))) for argument in command)
        async with started(*command) as process:
            await eventually(
                "the client is connected", lambda: sample(bridge, "bridge_connections", transport="websocket") == 1
            )
            await publish(amqp, exchange, killmail(123456789))
            assert process.stdout is not None
            output = b""
            async with asyncio.timeout(LIMIT_S):
                while b"123456789" not in output:
                    output += await process.stdout.readline()
            await bridge.stop()
            async with asyncio.timeout(LIMIT_S):
                while last not in output:
                    output += await process.stdout.readline()
            return output


async def test_demo_shows_the_live_page(broker: Broker) -> None:
    port = free_port()
    command = adapted(code_block("README.md", "edk-bridge", 0), ("make demo", f'make demo FLAGS="--port={port}"'))
    environment = os.environ | {"BRIDGE_AMQP_URL": broker.url}
    process = await asyncio.create_subprocess_shell(
        command, cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout is not None
        output = b""
        async with asyncio.timeout(LIMIT_S):
            while b"Ctrl-C" not in output:
                output += await process.stdout.readline()
        status, page = await get(port, "/")
        assert status == 200
        assert b"<html" in page
    finally:
        os.killpg(process.pid, signal.SIGINT)
        await process.communicate()


async def test_client_in_javascript_prints_updates_and_the_close_code(
    node: str, broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    script = adapted(code_block("README.md", "edk-bridge", 1), ("localhost:3000", "localhost:PORT"))
    output = await prints_an_update(
        amqp, exchange, broker, node, *websocket_flags(node), "--eval", script, last=b"1001"
    )
    assert b"type: 'killmail'" in output


def test_message_is_an_update() -> None:
    message = orjson.loads(code_block("README.md", "Connect", 0))
    assert list(message) == ["type", "data", "timestamp"]
    pipeline = Pipeline(catalog.load([catalog.PACKAGED]), 4096)
    accepted = pipeline.process(Event(orjson.dumps(message), None, None, None), message["timestamp"])
    assert isinstance(accepted, Accepted)
    assert orjson.loads(accepted.payload) == message


async def test_client_in_python_prints_updates(broker: Broker, amqp: AbstractConnection, exchange: str) -> None:
    script = adapted(code_block("README.md", "Connect", 1), ("localhost:3000", "localhost:PORT"))
    await prints_an_update(amqp, exchange, broker, sys.executable, "-u", "-c", script)


async def test_command_prints_updates(broker: Broker, amqp: AbstractConnection, exchange: str) -> None:
    command = adapted(
        code_block("README.md", "Connect", 2),
        (".venv/bin/edk-bridge tail", "exec edk-bridge tail ws://localhost:PORT/updates"),
        ("30000142", str(killmail(1)["systemId"])),
    )
    await prints_an_update(amqp, exchange, broker, "sh", "-c", command)


async def test_publisher_publishes(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, tmp_path: Path
) -> None:
    script = adapted(
        code_block("README.md", "Publish"),
        ("amqp://guest:guest@localhost:5672/", broker.url),
        ('"killmails"', f'"{exchange}"'),
    )
    (tmp_path / "example.py").write_text(script)
    await bind(amqp, exchange, queue)
    assert await shell("python example.py", tmp_path) == b""
    [message] = await take(amqp, queue, 1)
    assert orjson.loads(message.body)["killmailId"] == 1


@pytest.mark.slow
async def test_container_sends_updates(image: str) -> None:
    build, run = code_block("README.md", "Run").split("\n", 1)
    base = f"--build-arg PYTHON_IMAGE={BASE} " if BASE else ""
    name, port = unique("image"), free_port()
    try:
        # The build reuses the layers of the image that the fixture `image` has built.
        await shell(
            adapted(build, ("docker build", f"docker build --network=host {base}"), ("-t edk-bridge", f"-t {name}")),
            ROOT,
        )
        with site(name) as place:
            container = await shell(
                adapted(
                    run,
                    ("docker run", "docker run --detach"),
                    ("my-network", place.network),
                    ("127.0.0.1:3000", f"127.0.0.1:{port}"),
                    ("user:password", "guest:guest"),
                    (" edk-bridge\n", f" {name}\n"),
                ),
                ROOT,
            )
            try:
                await eventually("the bridge is ready", lambda: is_ready(port))
                client = await RawClient.open(port)
                async with observer(place.broker_url) as amqp:
                    await publish(amqp, "killmails", killmail(1))
                assert orjson.loads(await client.text())["data"] == killmail(1)
                await client.close()
            finally:
                await shell(f"docker rm --force --volumes {container.decode().strip()}", ROOT)
    finally:
        await shell(f"docker rmi --force {name}", ROOT)


async def is_ready(port: int) -> bool:
    try:
        return (await get(port, "/readyz"))[0] == 200
    except (OSError, IndexError):
        # While the bridge does not listen yet, the engine's proxy accepts connections and closes them.
        return False
