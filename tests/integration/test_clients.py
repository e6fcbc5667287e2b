"""Clients that follow the protocol, and clients that do not: what a client receives, and why it is evicted."""

import asyncio
import itertools
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
import pytest_asyncio
from aio_pika.abc import AbstractConnection
from websockets.asyncio.client import connect

from bridge.app import Bridge
from bridge.timing import Timing
from tests.support import module_loop
from tests.support.broker.find import Broker
from tests.support.certificates import certificate
from tests.support.clients import CLOSE, PING, PONG, TEXT, RawClient, client_frame, close_code, get, server_frames
from tests.support.killmail import killmail
from tests.support.publishing import publish
from tests.support.running import BridgeProcess, bridge_process, port_of, running, sample
from tests.support.waiting import LIMIT_S, eventually

pytestmark = module_loop.MARK
amqp, exchange = module_loop.amqp, module_loop.exchange

CONTINUATION, BINARY = 0, 2

NUMBERS = itertools.count(1)
"""The ids of killmails. The ids never repeat, because the shared bridge sends no killmail twice."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_exchange(amqp: AbstractConnection) -> AsyncIterator[str]:
    """The exchange of the shared bridge."""
    async with module_loop.own(amqp, "exchange") as name:
        yield name


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(broker: Broker, shared_exchange: str) -> AsyncIterator[Bridge]:
    """A bridge with the default settings, for all tests that need no other settings."""
    # With the default timeout of 10 s, the bridge would abort a connection that it failed to close, and hide the fault.
    async with running(
        broker.url, Timing(close_timeout_s=3600.0), exchanges=f"{shared_exchange}=killmail", host="localhost"
    ) as bridge:
        yield bridge


async def test_client_that_sends_messages_and_a_ping_gets_a_pong_and_the_next_update(
    shared: Bridge, amqp: AbstractConnection, shared_exchange: str
) -> None:
    client = await RawClient.open(port_of(shared))
    client.send(client_frame(TEXT, b'{"subscribe": "everything"}') + client_frame(BINARY, b"\x00" * 100_000))
    client.send(client_frame(TEXT, b"frag", fin=False) + client_frame(PING, b"are you there"))
    client.send(client_frame(CONTINUATION, b"mented"))
    assert await client.frame() == (PONG, b"are you there")
    event = killmail(next(NUMBERS))
    await publish(amqp, shared_exchange, event)
    assert orjson.loads(await client.text())["data"] == event
    await client.close()


@pytest.mark.parametrize(
    ("data", "code", "evictions"),
    [(client_frame(CLOSE, (3001).to_bytes(2, "big") + b"done"), 3001, 0), (b"\x81\x02hi", 1002, 1)],
    ids=["close", "frame without a mask"],
)
async def test_close_frame_or_protocol_error_of_a_client_ends_the_tcp_connection(
    shared: Bridge, data: bytes, code: int, evictions: int
) -> None:
    """Autobahn can't test that the bridge ends the TCP connection, because Autobahn's client ends it first."""

    def evicted() -> float:
        return sample(shared, "bridge_evictions_total", reason="protocol-error")

    before = evicted()
    client = await RawClient.open(port_of(shared))
    client.send(data)
    async with asyncio.timeout(LIMIT_S):
        [(opcode, payload)] = server_frames(await client.read_to_end())
    assert (opcode, close_code(payload)) == (CLOSE, code)
    await client.close()
    await eventually("no connection is left", lambda: sample(shared, "bridge_connections", transport="websocket") == 0)
    assert evicted() - before == evictions


async def test_client_that_pauses_and_continues_gets_all_updates(
    shared: Bridge, amqp: AbstractConnection, shared_exchange: str
) -> None:
    numbers = [next(NUMBERS) for _ in range(200)]
    client = await RawClient.open(port_of(shared), receive_bytes=4096)
    client.pause()
    await publish(amqp, shared_exchange, *(killmail(number, padding="x" * 50_000) for number in numbers))
    await eventually(
        "the client lags", lambda: sample(shared, "bridge_connections_lagging", transport="websocket") == 1
    )
    client.resume()
    assert [orjson.loads(await client.text())["data"]["killmailId"] for _ in numbers] == numbers
    await eventually(
        "the client has caught up", lambda: sample(shared, "bridge_connections_lagging", transport="websocket") == 0
    )
    last = next(NUMBERS)
    await publish(amqp, shared_exchange, killmail(last))
    assert orjson.loads(await client.text())["data"]["killmailId"] == last
    await client.close()


async def test_both_addresses_of_localhost_answer_on_one_port(
    shared: Bridge, amqp: AbstractConnection, shared_exchange: str
) -> None:
    assert [address for address, _ in shared.addresses] == ["127.0.0.1", "::1"]
    clients = [await RawClient.open(port_of(shared), host=host) for host in ("127.0.0.1", "::1")]
    await publish(amqp, shared_exchange, killmail(next(NUMBERS)))
    texts = [await client.text() for client in clients]
    assert texts[0] == texts[1]
    for client in clients:
        await client.close()


async def test_silent_client_is_closed_with_4009_while_it_gets_updates_and_one_that_answers_pings_stays(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    flags = {"exchanges": f"{exchange}=killmail", "idle_timeout": "2s", "ping_interval": "500ms"}
    async with running(broker.url, **flags) as bridge:
        silent, answering = await RawClient.open(port_of(bridge)), await RawClient.open(port_of(bridge))

        async def answer_pings() -> None:
            # Ten pings, one every 500 ms, take longer than two idle timeouts.
            pings = 0
            while pings < 10:
                if (await answering.frame())[0] == PING:
                    pings += 1
                    answering.send(client_frame(PONG, b""))

        answered = asyncio.create_task(answer_pings())
        frames: list[tuple[int, bytes]] = []
        while not frames or frames[-1][0] != CLOSE:
            await publish(amqp, exchange, killmail(next(NUMBERS)))
            frames.append(await silent.frame())
        assert {opcode for opcode, _ in frames} == {TEXT, PING, CLOSE}
        assert close_code(frames[-1][1]) == 4009
        await silent.close()
        await answered
        assert sample(bridge, "bridge_evictions_total", reason="idle") == 1
        assert sample(bridge, "bridge_connections", transport="websocket") == 1
        await answering.close()


async def test_client_that_falls_off_the_log_is_closed_with_4008_and_others_lose_nothing(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    padding = "x" * 50_000
    count = 400
    flags = {"exchanges": f"{exchange}=killmail", "log_bytes": "1 MiB", "max_message_bytes": "100 KiB"}
    async with running(broker.url, **flags) as bridge:
        stalled = await RawClient.open(port_of(bridge), receive_bytes=4096)
        stalled.pause()
        reader = await RawClient.open(port_of(bridge))
        # A batch larger than the log would evict the reader, because the bridge and the reader take turns in one event
        # loop.
        for first in range(0, count, 10):
            numbers = range(first, first + 10)
            await publish(amqp, exchange, *(killmail(number, padding=padding) for number in numbers))
            received = [orjson.loads(await reader.text())["data"]["killmailId"] for _ in numbers]
            assert received == list(numbers)
        await eventually(
            "the stalled client is evicted", lambda: sample(bridge, "bridge_evictions_total", reason="too-slow") == 1
        )
        assert sample(bridge, "bridge_sends_total", outcome="dropped") > 0
        assert sample(bridge, "bridge_update_log_bytes") <= 2**20
        await stalled.close()
        await reader.close()


async def test_evicted_client_can_read_its_close_code_after_the_bridge_has_ended(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    variables = {"BRIDGE_LOG_BYTES": "1 MiB", "BRIDGE_MAX_MESSAGE_BYTES": "100 KiB"}
    async with bridge_process(broker.url, BRIDGE_EXCHANGES=f"{exchange}=killmail", **variables) as process:
        port = await process.port()
        await process.consuming()
        stalled = await RawClient.open(port, receive_bytes=4096)
        stalled.pause()
        await publish(amqp, exchange, *(killmail(number, padding="x" * 50_000) for number in range(60)))
        await eventually("the client is evicted", lambda: process.logged("client evicted"))
        # The bridge needs one more turn of its event loop to pass the remaining bytes to the kernel.
        assert (await get(port, "/healthz"))[0] == 200
        process.process.kill()
        stalled.resume()
        frames = server_frames(await stalled.read_to_end())
        assert [opcode for opcode, _ in frames[:-1]] == [TEXT] * (len(frames) - 1)
        assert (frames[-1][0], close_code(frames[-1][1])) == (CLOSE, 4008)
        ids = [orjson.loads(payload)["data"]["killmailId"] for _, payload in frames[:-1]]
        assert ids == list(range(len(ids))), "an update is missing or not complete"
        await stalled.close()


async def test_client_beyond_the_limit_is_closed_with_1013_and_the_others_stay(broker: Broker, exchange: str) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", max_connections=2) as bridge:
        first, second = await RawClient.open(port_of(bridge)), await RawClient.open(port_of(bridge))
        third = await RawClient.open(port_of(bridge))
        assert await third.closed() == 1013
        assert sample(bridge, "bridge_connections", transport="websocket") == 2
        await first.close()
        await eventually(
            "a connection is free", lambda: sample(bridge, "bridge_connections", transport="websocket") == 1
        )
        fourth = await RawClient.open(port_of(bridge))
        fourth.send(client_frame(PING, b""))
        assert (await fourth.frame())[0] == PONG
        for client in (second, third, fourth):
            await client.close()


@asynccontextmanager
async def secure_bridge(
    broker: Broker, exchange: str, chain: Path, key: Path
) -> AsyncIterator[tuple[BridgeProcess, str]]:
    """Runs a bridge that serves TLS with the certificate `chain`. Yields the bridge's process and URL."""
    variables = {"BRIDGE_TLS_CERTIFICATE": str(chain), "BRIDGE_TLS_KEY": str(key)}
    async with bridge_process(broker.url, BRIDGE_EXCHANGES=f"{exchange}=killmail", **variables) as process:
        await process.consuming()
        yield process, f"wss://127.0.0.1:{await process.port()}/updates"


async def test_wss_delivers_updates_and_reloads_the_certificate_on_sighup(
    broker: Broker, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    chain, key = certificate(tmp_path, "first")
    old = ssl.create_default_context(cafile=chain)
    async with secure_bridge(broker, exchange, chain, key) as (process, url), connect(url, ssl=old) as client:
        await publish(amqp, exchange, killmail(1))
        assert orjson.loads(await client.recv())["data"]["killmailId"] == 1
        certificate(tmp_path, "second")
        process.process.send_signal(signal.SIGHUP)
        await eventually("the certificate is reloaded", lambda: process.logged("certificate reloaded"))
        async with connect(url, ssl=ssl.create_default_context(cafile=chain)) as second:
            await publish(amqp, exchange, killmail(2))
            for each in (client, second):
                assert orjson.loads(await each.recv())["data"]["killmailId"] == 2
        with pytest.raises(ssl.SSLError):
            await connect(url, ssl=old)


async def test_old_certificate_stays_in_use_if_sighup_finds_an_invalid_one(
    broker: Broker, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    chain, key = certificate(tmp_path, "first")
    trusted = ssl.create_default_context(cafile=chain)
    async with secure_bridge(broker, exchange, chain, key) as (process, url), connect(url, ssl=trusted) as client:
        chain.write_text("not a certificate")
        process.process.send_signal(signal.SIGHUP)
        phrase = "certificate not reloaded; the old one stays in use"
        await eventually("the failed reload is logged", lambda: process.logged(phrase))
        line = process.logged(phrase)
        assert line is not None
        assert line["error"] == f"{chain} has no certificate (PEM)"
        async with connect(url, ssl=trusted) as second:
            await publish(amqp, exchange, killmail(1))
            for each in (client, second):
                assert orjson.loads(await each.recv())["data"]["killmailId"] == 1
