"""A broker behind TLS: nothing is said to one whose certificate nobody vouches for, the password least of all."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.integration.test_lifecycle import gone
from tests.support.certificates import certificate
from tests.support.running import started
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


async def test_broker_with_a_certificate_that_nobody_vouches_for_is_told_nothing(tmp_path: Path) -> None:
    async with listener(tmp_path) as (port, _, heard):
        async with started(f"amqps://guest:guest@127.0.0.1:{port}/") as bridge:
            await eventually(
                "the certificate is refused", lambda: "CERTIFICATE_VERIFY_FAILED" in str(bridge.readiness())
            )
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
            await eventually("the host is refused", lambda: "CERTIFICATE_VERIFY_FAILED" in str(bridge.readiness()))
        assert heard == []
