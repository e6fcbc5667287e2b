"""TLS to the broker: the bridge sends nothing, not even a password, to a broker whose certificate it does not trust."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import pytest
from aio_pika.abc import AbstractConnection

from bridge.amqp.connection_errors import PLAIN_EOF_TEXT
from bridge.app import Bridge
from tests.integration.test_lifecycle import gone
from tests.support.broker.find import Broker
from tests.support.certificates import certificate
from tests.support.clients import RawClient
from tests.support.killmail import killmail
from tests.support.publishing import publish
from tests.support.running import port_of, running, started
from tests.support.waiting import eventually


@asynccontextmanager
async def listener(
    folder: Path, *, trusts: Path | None = None, silent: bool = False
) -> AsyncIterator[tuple[int, Path, list[bytes]]]:
    """Runs a TLS server with a self-signed certificate. Yields the server's port, certificate and received bytes.

    If `trusts` is a file of trusted certificates, the server requires a client certificate. With `silent`, the server
    aborts each connection.
    """
    chain, key = certificate(folder, "broker")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(chain, key)
    if trusts is not None:
        context.load_verify_locations(trusts)
        context.verify_mode = ssl.CERT_REQUIRED
    received: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if silent:
            writer.transport.abort()
            return
        received.append(await reader.read(4))
        await gone(writer)

    server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1], chain, received


@asynccontextmanager
async def openssl_server(folder: Path, trusts: Path, version: str) -> AsyncIterator[tuple[int, Path]]:
    """Runs OpenSSL's server, which requires a client certificate from the file `trusts`.

    Yields the server's port and certificate.
    """
    chain, key = certificate(folder, "broker")
    arguments = ["-accept", "127.0.0.1:0", "-cert", str(chain), "-key", str(key), "-CAfile", str(trusts), f"-{version}"]
    process = await asyncio.create_subprocess_exec(
        *("openssl", "s_server", *arguments, "-Verify", "1", "-verify_return_error"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        line = b""
        while not line.startswith(b"ACCEPT"):
            line = await process.stdout.readline()
        yield int(line.rpartition(b":")[2]), chain
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


NOT_TRUSTED = "its certificate is not trusted, so nothing is sent to it: self-signed certificate"


async def error(bridge: Bridge) -> str:
    """Waits until `/readyz` reports an error of the broker, and returns the error."""

    def last_error() -> object:
        body = bridge.readiness.report()[1]["broker"]
        assert isinstance(body, dict)
        return body["last_error"]

    await eventually("there is an error", last_error)
    return str(last_error())


async def test_broker_with_an_untrusted_certificate_receives_nothing(tmp_path: Path) -> None:
    async with listener(tmp_path) as (port, _, received):
        async with started(f"amqps://guest:guest@127.0.0.1:{port}/") as bridge:
            assert (await error(bridge)).startswith(f"amqps://guest:***@127.0.0.1:{port}/: {NOT_TRUSTED}")
            assert "add ?cafile=" in await error(bridge)
        assert received == []


async def test_broker_with_a_trusted_certificate_receives_the_protocol_header(tmp_path: Path) -> None:
    async with (
        listener(tmp_path) as (port, chain, received),
        started(f"amqps://guest:guest@127.0.0.1:{port}/?cafile={chain}"),
    ):
        await eventually("the broker receives the protocol header", lambda: b"AMQP" in received)


@pytest.mark.parametrize("version", ["tls1_2", "tls1_3"])
async def test_error_for_a_broker_that_requires_a_certificate_has_a_hint(tmp_path: Path, version: str) -> None:
    """With TLS 1.3, the alert comes after the handshake. TLS 1.2 has no alert for a missing certificate."""
    (own := tmp_path / "bridge").mkdir()
    trusted, _ = certificate(own, "bridge")
    async with (
        openssl_server(tmp_path, trusted, version) as (port, chain),
        started(f"amqps://guest:guest@127.0.0.1:{port}/?cafile={chain}") as bridge,
    ):
        text = await error(bridge)
        assert "require" in text
        assert "a client certificate: add ?certfile=/path/of/it.pem&keyfile=" in text


@pytest.mark.parametrize("version", ["tls1_2", "tls1_3"])
async def test_error_names_a_certificate_that_the_broker_does_not_trust(tmp_path: Path, version: str) -> None:
    (own := tmp_path / "bridge").mkdir()
    (other := tmp_path / "other").mkdir()
    mine, key = certificate(own, "bridge")
    trusted, _ = certificate(other, "another")
    async with openssl_server(tmp_path, trusted, version) as (port, chain):
        url = f"amqps://guest:guest@127.0.0.1:{port}/?cafile={chain}&certfile={mine}&keyfile={key}"
        async with started(url) as bridge:
            assert "not accept the bridge's certificate (certfile in the URL)" in await error(bridge)


@pytest.mark.parametrize("with_certificate", [False, True])
async def test_error_for_a_connection_that_ends_without_an_alert_suggests_a_certificate(
    tmp_path: Path, *, with_certificate: bool
) -> None:
    """Not every server sends a TLS alert, and not every alert arrives."""
    (own := tmp_path / "bridge").mkdir()
    mine, key = certificate(own, "bridge")
    async with listener(tmp_path, silent=True) as (port, chain, received):
        query = f"&certfile={mine}&keyfile={key}" if with_certificate else ""
        async with started(f"amqps://guest:guest@127.0.0.1:{port}/?cafile={chain}{query}") as bridge:
            text = await error(bridge)
            assert ("may not accept the bridge's certificate" if with_certificate else "may require") in text
        assert received == []


async def test_bridge_connects_with_a_certificate_that_the_broker_trusts(tmp_path: Path) -> None:
    (own := tmp_path / "bridge").mkdir()
    mine, key = certificate(own, "bridge")
    async with listener(tmp_path, trusts=mine) as (port, chain, received):
        url = f"amqps://guest:guest@127.0.0.1:{port}/?cafile={chain}&certfile={mine}&keyfile={key}"
        async with started(url):
            await eventually("the broker receives the protocol header", lambda: b"AMQP" in received)


async def test_broker_with_a_certificate_for_another_host_receives_nothing(tmp_path: Path) -> None:
    async with listener(tmp_path) as (port, chain, received):
        async with started(f"amqps://guest:guest@localhost:{port}/?cafile={chain}") as bridge:
            text = await error(bridge)
            assert "its certificate is for another host, so nothing is sent to it: Hostname mismatch" in text
        assert received == []


async def test_error_for_a_tls_port_with_a_plain_url_names_amqps(tmp_path: Path) -> None:
    async with listener(tmp_path) as (port, _, received):
        async with started(f"amqp://guest:guest@127.0.0.1:{port}/") as bridge:
            assert await error(bridge) == f"amqp://guest:***@127.0.0.1:{port}/: {PLAIN_EOF_TEXT}"
            assert "use amqps://" in PLAIN_EOF_TEXT
        assert received == []


async def test_error_for_a_plain_port_with_an_amqps_url_names_the_usual_port(broker: Broker) -> None:
    parts = urlsplit(broker.url)
    async with started(f"amqps://guest:guest@{parts.hostname}:{parts.port}/") as bridge:
        assert "amqps:// is usually on 5671" in await error(bridge)


async def test_updates_arrive_through_an_encrypted_connection(
    broker: Broker, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    """The fast path reads deliveries and writes acknowledgements through TLS."""
    async with encrypted(broker.url, tmp_path) as url, running(url, exchanges=f"{exchange}=killmail") as bridge:
        client = await RawClient.open(port_of(bridge))
        # More events than the prefetch: all of them arrive only if the broker gets acknowledgements.
        for number in range(500):
            await publish(amqp, exchange, killmail(number))
        for number in range(500):
            assert orjson.loads(await client.text())["data"]["killmailId"] == number
        await client.close()


@asynccontextmanager
async def encrypted(broker_url: str, folder: Path) -> AsyncIterator[str]:
    """Runs a TLS proxy in front of the broker, which has no TLS listener. Yields the proxy's URL."""
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
