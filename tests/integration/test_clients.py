"""Clients that behave and clients that do not: what each gets, and why it is let go."""

import asyncio
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
from aio_pika.abc import AbstractConnection
from websockets.asyncio.client import connect

from bridge.demo.broker import Broker
from tests.support.certificates import certificate
from tests.support.clients import CLOSE, PING, PONG, TEXT, RawClient, client_frame, close_code, get, server_frames
from tests.support.killmail import EXAMPLE, killmail
from tests.support.publishing import publish
from tests.support.running import BridgeProcess, bridge_process, port_of, running, sample
from tests.support.waiting import eventually


async def test_everything_that_a_client_sends_is_ignored(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    async with (
        running(broker.url, exchanges=f"{exchange}=killmail") as bridge,
        connect(f"ws://127.0.0.1:{port_of(bridge)}/updates") as client,
    ):
        await client.send('{"subscribe": "everything"}')
        await client.send(b"\x00" * 1_000_000)
        await client.send(["frag", "ment", "ed"])
        await publish(amqp, exchange, EXAMPLE)
        assert orjson.loads(await client.recv())["data"] == EXAMPLE


async def test_ping_of_a_client_is_answered_with_its_payload(broker: Broker, exchange: str) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        client = await RawClient.open(port_of(bridge))
        client.send(client_frame(PING, b"are you there"))
        assert await client.frame() == (PONG, b"are you there")
        await client.close()


async def test_close_of_a_client_is_answered_with_its_code_and_the_connection_ends(
    broker: Broker, exchange: str
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        client = await RawClient.open(port_of(bridge))
        client.send(client_frame(CLOSE, (3001).to_bytes(2, "big") + b"done"))
        [(opcode, payload)] = server_frames(await client.rest())
        assert (opcode, close_code(payload)) == (CLOSE, 3001)
        await eventually("it is gone", lambda: sample(bridge, "bridge_connections") == 0)
        await client.close()


async def test_frame_without_a_mask_ends_with_1002(broker: Broker, exchange: str) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        client = await RawClient.open(port_of(bridge))
        client.send(b"\x81\x02hi")
        [(opcode, payload)] = server_frames(await client.rest())
        assert (opcode, close_code(payload)) == (CLOSE, 1002)
        assert sample(bridge, "bridge_evictions_total", reason="protocol-error") == 1
        await client.close()


async def test_silent_client_is_pinged_and_closed_with_4009(broker: Broker, exchange: str) -> None:
    flags = {"exchanges": f"{exchange}=killmail", "idle_timeout": "600ms", "ping_interval": "200ms"}
    async with running(broker.url, **flags) as bridge:
        silent = await RawClient.open(port_of(bridge))
        assert (await silent.frame())[0] == PING
        assert await silent.closed() == 4009
        assert sample(bridge, "bridge_evictions_total", reason="idle") == 1
        await silent.close()


async def test_client_that_only_answers_pings_stays(broker: Broker, exchange: str) -> None:
    flags = {"exchanges": f"{exchange}=killmail", "idle_timeout": "600ms", "ping_interval": "200ms"}
    async with running(broker.url, **flags) as bridge:
        client = await RawClient.open(port_of(bridge))
        # Ten pings, at 200 ms each, are more than three idle timeouts.
        for _ in range(10):
            assert (await client.frame())[0] == PING
            client.send(client_frame(PONG, b""))
        assert sample(bridge, "bridge_connections") == 1
        await client.close()


async def test_being_sent_to_does_not_keep_a_silent_client(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    flags = {"exchanges": f"{exchange}=killmail", "idle_timeout": "600ms", "ping_interval": "500ms"}
    async with running(broker.url, **flags) as bridge:
        silent = await RawClient.open(port_of(bridge))
        closing = asyncio.create_task(silent.closed())
        number = 0
        while not closing.done():
            number += 1
            await publish(amqp, exchange, killmail(number))
        assert closing.result() == 4009
        await silent.close()


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
        # No more at once than the log holds: all run in one loop here, and the reader must have its turn.
        for first in range(0, count, 10):
            numbers = range(first, first + 10)
            await publish(amqp, exchange, *(killmail(number, padding=padding) for number in numbers))
            received = [orjson.loads(await reader.text())["data"]["killmailId"] for _ in numbers]
            assert received == list(numbers)
        await eventually(
            "the stalled client is evicted", lambda: sample(bridge, "bridge_evictions_total", reason="too-slow") == 1
        )
        assert sample(bridge, "bridge_sends_total", outcome="dropped") > 0
        assert sample(bridge, "bridge_log_bytes") <= 2**20
        await stalled.close()
        await reader.close()


async def test_client_that_reads_on_late_finds_why_it_was_closed_even_where_the_bridge_is_gone(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    variables = {"BRIDGE_LOG_BYTES": "1 MiB", "BRIDGE_MAX_MESSAGE_BYTES": "100 KiB"}
    async with bridge_process(broker.url, BRIDGE_EXCHANGES=f"{exchange}=killmail", **variables) as process:
        port = await process.port()
        await process.consuming()
        stalled = await RawClient.open(port, receive_bytes=4096)
        stalled.pause()
        await publish(amqp, exchange, *(killmail(number, padding="x" * 50_000) for number in range(60)))
        await eventually("it is evicted", lambda: process.logged("client evicted"))
        # One more turn of the bridge's loop, in which the kernel takes what was left.
        assert (await get(port, "/healthz"))[0] == 200
        process.process.kill()
        stalled.resume()
        frames = server_frames(await stalled.rest())
        assert [opcode for opcode, _ in frames[:-1]] == [TEXT] * (len(frames) - 1)
        assert (frames[-1][0], close_code(frames[-1][1])) == (CLOSE, 4008)
        ids = [orjson.loads(payload)["data"]["killmailId"] for _, payload in frames[:-1]]
        assert ids == list(range(len(ids))), "what it had begun to get, it gets whole"
        await stalled.close()


async def test_client_that_pauses_and_reads_on_gets_everything(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    padding = "x" * 50_000
    count = 200
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        client = await RawClient.open(port_of(bridge), receive_bytes=4096)
        client.pause()
        await publish(amqp, exchange, *(killmail(number, padding=padding) for number in range(count)))
        await eventually("it lags", lambda: sample(bridge, "bridge_connections_lagging") == 1)
        client.resume()
        ids = [orjson.loads(await client.text())["data"]["killmailId"] for _ in range(count)]
        assert ids == list(range(count))
        await eventually("it has caught up", lambda: sample(bridge, "bridge_connections_lagging") == 0)
        await publish(amqp, exchange, killmail(count))
        assert orjson.loads(await client.text())["data"]["killmailId"] == count
        await client.close()


async def test_client_beyond_the_limit_is_closed_with_1013_and_the_others_stay(broker: Broker, exchange: str) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", max_connections=2) as bridge:
        first, second = await RawClient.open(port_of(bridge)), await RawClient.open(port_of(bridge))
        third = await RawClient.open(port_of(bridge))
        assert await third.closed() == 1013
        assert sample(bridge, "bridge_connections") == 2
        await first.close()
        await eventually("there is room", lambda: sample(bridge, "bridge_connections") == 1)
        fourth = await RawClient.open(port_of(bridge))
        fourth.send(client_frame(PING, b""))
        assert (await fourth.frame())[0] == PONG
        for client in (second, third, fourth):
            await client.close()


async def test_stopping_closes_every_client_with_1001(broker: Broker, exchange: str) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        clients = [await RawClient.open(port_of(bridge)) for _ in range(3)]
        codes = [asyncio.create_task(client.closed()) for client in clients]
    assert [await code for code in codes] == [1001] * 3
    for client in clients:
        await client.close()


@asynccontextmanager
async def secure_bridge(
    broker: Broker, exchange: str, chain: Path, key: Path
) -> AsyncIterator[tuple[BridgeProcess, str]]:
    """A bridge that serves TLS with this certificate, and its URL."""
    variables = {"BRIDGE_TLS_CERTIFICATE": str(chain), "BRIDGE_TLS_KEY": str(key)}
    async with bridge_process(broker.url, BRIDGE_EXCHANGES=f"{exchange}=killmail", **variables) as process:
        await process.consuming()
        yield process, f"wss://127.0.0.1:{await process.port()}/updates"


async def test_wss_delivers_and_reads_a_new_certificate_on_sighup(
    broker: Broker, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    chain, key = certificate(tmp_path, "first")
    old = ssl.create_default_context(cafile=chain)
    async with secure_bridge(broker, exchange, chain, key) as (process, url), connect(url, ssl=old) as client:
        await publish(amqp, exchange, killmail(1))
        assert orjson.loads(await client.recv())["data"]["killmailId"] == 1
        certificate(tmp_path, "second")
        process.process.send_signal(signal.SIGHUP)
        await eventually("the certificate is read again", lambda: process.logged("certificate read again"))
        async with connect(url, ssl=ssl.create_default_context(cafile=chain)) as second:
            await publish(amqp, exchange, killmail(2))
            for each in (client, second):
                assert orjson.loads(await each.recv())["data"]["killmailId"] == 2
        with pytest.raises(ssl.SSLError):
            await connect(url, ssl=old)


async def test_certificate_that_can_not_be_read_on_sighup_leaves_the_old_one_in_use(
    broker: Broker, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    chain, key = certificate(tmp_path, "first")
    trusted = ssl.create_default_context(cafile=chain)
    async with secure_bridge(broker, exchange, chain, key) as (process, url), connect(url, ssl=trusted) as client:
        chain.write_text("not a certificate")
        process.process.send_signal(signal.SIGHUP)
        unread = "the certificate can't be read; the old one stays"
        await eventually("it is said", lambda: process.logged(unread))
        line = process.logged(unread)
        assert line is not None
        assert line["error"] == f"{chain} holds no certificate (PEM)"
        async with connect(url, ssl=trusted) as second:
            await publish(amqp, exchange, killmail(1))
            for each in (client, second):
                assert orjson.loads(await each.recv())["data"]["killmailId"] == 1


async def test_both_addresses_of_localhost_answer_on_one_port(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", host="localhost") as bridge:
        assert [address for address, _ in bridge.addresses] == ["127.0.0.1", "::1"]
        clients = [await RawClient.open(port_of(bridge), host=host) for host in ("127.0.0.1", "::1")]
        await publish(amqp, exchange, EXAMPLE)
        texts = [await client.text() for client in clients]
        assert texts[0] == texts[1]
        for client in clients:
            await client.close()
