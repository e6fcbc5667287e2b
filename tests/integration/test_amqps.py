"""A broker behind TLS: nothing is said to one whose certificate nobody vouches for, the password least of all."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import orjson
from aio_pika.abc import AbstractConnection

from bridge.app import Bridge
from bridge.broker.tls import SILENT_END
from bridge.demo.broker import Broker
from tests.integration.test_lifecycle import gone
from tests.support.certificates import certificate
from tests.support.clients import RawClient
from tests.support.killmail import killmail
from tests.support.publishing import publish
from tests.support.running import port_of, running, started
from tests.support.waiting import eventually


@asynccontextmanager
async def listener(folder: Path) -> AsyncIterator[tuple[int, Path, list[bytes]]]:
    """A server behind TLS with a certificate of its own making: its port, the certificate, and what it is told."""
    chain, key = certificate(folder, "broker")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(chain, key)
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(4))
        await gone(writer)

    server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1], chain, heard


NOT_TRUSTED = "its certificate is not trusted, so nothing is said to it: self-signed certificate"


async def error(bridge: Bridge) -> str:
    """What `/readyz` says of the broker, once it says something."""

    def said() -> object:
        body = bridge.readiness.report()[1]["broker"]
        assert isinstance(body, dict)
        return body["last_error"]

    await eventually("there is an error", said)
    return str(said())


async def test_broker_with_a_certificate_that_nobody_vouches_for_is_told_nothing(tmp_path: Path) -> None:
    async with listener(tmp_path) as (port, _, heard):
        async with started(f"amqps://guest:guest@127.0.0.1:{port}/") as bridge:
            assert (await error(bridge)).startswith(f"amqps://guest:***@127.0.0.1:{port}/: {NOT_TRUSTED}")
            assert "let ?cafile=" in await error(bridge)
        assert heard == []


async def test_broker_with_a_certificate_that_is_trusted_is_spoken_to(tmp_path: Path) -> None:
    async with (
        listener(tmp_path) as (port, chain, heard),
        started(f"amqps://guest:guest@127.0.0.1:{port}/?cafile={chain}"),
    ):
        await eventually("the broker is spoken to", lambda: b"AMQP" in heard)


async def test_broker_with_a_certificate_for_another_host_is_told_nothing(tmp_path: Path) -> None:
    async with listener(tmp_path) as (port, chain, heard):
        async with started(f"amqps://guest:guest@localhost:{port}/?cafile={chain}") as bridge:
            said = await error(bridge)
            assert "its certificate is for another host, so nothing is said to it: Hostname mismatch" in said
        assert heard == []


async def test_port_for_tls_that_is_spoken_to_without_is_named(tmp_path: Path) -> None:
    async with listener(tmp_path) as (port, _, heard):
        async with started(f"amqp://guest:guest@127.0.0.1:{port}/") as bridge:
            assert await error(bridge) == f"amqp://guest:***@127.0.0.1:{port}/: {SILENT_END}"
            assert "begins with amqps://" in SILENT_END
        assert heard == []


async def test_broker_that_speaks_no_tls_on_its_port_is_named(broker: Broker) -> None:
    parts = urlsplit(broker.url)
    async with started(f"amqps://guest:guest@{parts.hostname}:{parts.port}/") as bridge:
        assert "amqps:// is usually on 5671" in await error(bridge)


async def test_updates_come_through_an_encrypted_line(
    broker: Broker, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    """The fast path of the deliveries takes what TLS gives it, and every acknowledgement goes back through it."""
    async with encrypted(broker.url, tmp_path) as url, running(url, exchanges=f"{exchange}=killmail") as bridge:
        client = await RawClient.open(port_of(bridge))
        # More than the prefetch: all of them come only where acknowledgements arrive.
        for number in range(500):
            await publish(amqp, exchange, killmail(number))
        for number in range(500):
            assert orjson.loads(await client.text())["data"]["killmailId"] == number
        await client.close()


@asynccontextmanager
async def encrypted(broker_url: str, folder: Path) -> AsyncIterator[str]:
    """The URL by which the broker is reached through TLS: its own listener has none."""
    parts = urlsplit(broker_url)
    chain, key = certificate(folder, "broker")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(chain, key)
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(parts.hostname, parts.port)
        pumps = [pump(reader, up_writer), pump(up_reader, writer)]
        await asyncio.wait([asyncio.ensure_future(each) for each in pumps], return_when=asyncio.FIRST_COMPLETED)
        for each in (up_writer, writer):
            each.transport.abort()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        serving.add(task)
        task.add_done_callback(serving.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield parts._replace(scheme="amqps", netloc=f"guest:guest@127.0.0.1:{port}", query=f"cafile={chain}").geturl()
    if serving:
        await asyncio.wait(serving)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
