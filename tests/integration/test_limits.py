"""What clients may use, with limits low enough to bite: places, in all and from one address, unfinished requests."""

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bridge.app import Bridge
from bridge.demo.broker import Broker
from bridge.descriptors import RESERVE
from bridge.fanout import server
from bridge.fanout.handshake import MAX_BEHIND_BYTES, MAX_REQUEST_BYTES
from bridge.lines import MOST
from tests.support.certificates import certificate
from tests.support.clients import RawClient, request
from tests.support.namespaces import NEAR, island
from tests.support.running import bridge_process, port_of, running, sample
from tests.support.waiting import eventually

pytestmark = pytest.mark.both_loops

Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]

PENDING = 5


@asynccontextmanager
async def lines(port: int, count: int) -> AsyncIterator[list[Line]]:
    """Clients that connect and say nothing."""
    made = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    yield made
    for _, writer in made:
        writer.transport.abort()


async def answer(line: Line) -> bytes:
    """All that the bridge says until it ends the connection."""
    with suppress(ConnectionError):
        return await line[0].read(-1)
    return b""


def pending(bridge: Bridge) -> float:
    return sample(bridge, "bridge_handshakes_pending")


@pytest.fixture
def few_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PENDING", PENDING)


@pytest.mark.usefixtures("few_pending")
async def test_eldest_client_without_a_request_goes_for_a_new_one(broker: Broker, exchange: str) -> None:
    """Who connects and says nothing keeps nobody out: the last to come is served, and the first is cut off."""
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        async with lines(port_of(bridge), PENDING) as silent:
            await eventually("all are waited for", lambda: pending(bridge) == PENDING)
            client = await RawClient.open(port_of(bridge))
            assert await answer(silent[0]) == b""
            assert pending(bridge) == PENDING - 1
            assert sample(bridge, "bridge_refused_total", rule="pending") == 1
            # The others are there still.
            silent[1][1].write(request(port_of(bridge)))
            assert (await silent[1][0].readline()).startswith(b"HTTP/1.1 101 ")
            await client.close()
        await eventually("nothing is left", lambda: pending(bridge) == sample(bridge, "bridge_connections") == 0)


@pytest.mark.usefixtures("few_pending")
async def test_as_many_clients_without_a_request_as_are_allowed_lose_nothing(broker: Broker, exchange: str) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge, lines(port_of(bridge), PENDING) as made:
        await eventually("all are waited for", lambda: pending(bridge) == PENDING)
        for reader, writer in made:
            writer.write(request(port_of(bridge)))
            assert (await reader.readline()).startswith(b"HTTP/1.1 101 ")
        assert sample(bridge, "bridge_refused_total", rule="pending") == 0


async def test_client_for_whom_there_is_no_place_gets_that_of_one_without_a_request(
    broker: Broker, exchange: str
) -> None:
    async with (
        running(broker.url, exchanges=f"{exchange}=killmail", max_connections=1) as bridge,
        lines(port_of(bridge), 1 + RESERVE) as silent,
    ):
        await eventually("all are waited for", lambda: pending(bridge) == 1 + RESERVE)
        client = await RawClient.open(port_of(bridge))
        assert await answer(silent[0]) == b""
        await client.close()


async def test_clients_far_beyond_the_limit_are_dropped_without_an_answer(broker: Broker, exchange: str) -> None:
    """A full bridge tells 256 clients so, and drops whoever comes beyond them, said once and counted."""
    async with running(broker.url, exchanges=f"{exchange}=killmail", max_connections=1) as bridge:
        with capture_logs() as logged:
            # None of those who are told so ends the connection.
            clients = [await RawClient.open(port_of(bridge)) for _ in range(1 + RESERVE)]
            async with lines(port_of(bridge), 3) as beyond:
                for each in beyond:
                    assert await answer(each) == b""
        assert sample(bridge, "bridge_refused_total", rule="full") == 3
        assert [line["log_level"] for line in logged if line["event"].startswith("more clients than")] == ["warning"]
        for client in clients:
            await client.close()
        await eventually("all are gone", lambda: len(bridge._server._connections) == 0)
        with capture_logs() as logged:
            await (await RawClient.open(port_of(bridge))).close()
        assert [line["dropped"] for line in logged if line["event"] == "there is room for clients again"] == [3]


@pytest.mark.parametrize("excess", [0, 1])
async def test_request_of_the_largest_size_is_read_and_a_larger_one_refused(
    broker: Broker, exchange: str, excess: int
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        head = request(port_of(bridge), headers=["X-A: " + "a" * 6000, "X-B: " + "b" * 6000, "X-C: "])
        padded = head[:-4] + b"c" * (MAX_REQUEST_BYTES - len(head) + 4 + excess) + b"\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(bridge))
        writer.write(padded)
        assert (await reader.readline())[9:12] == (b"431" if excess else b"101")
        assert sample(bridge, "bridge_refused_total", rule="size") == excess
        writer.transport.abort()


@pytest.mark.parametrize("header", ["Cookie: " + "a" * 8300, "\r\n".join(["X-A: b"] * 130)], ids=["line", "headers"])
async def test_request_with_more_than_http_is_read_of_is_told_the_limits(
    broker: Broker, exchange: str, header: str
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        async with lines(port_of(bridge), 1) as [line]:
            line[1].write(request(port_of(bridge), headers=[header]))
            said = await answer(line)
        assert said.startswith(b"HTTP/1.1 431 ")
        assert said.endswith(b"Of a request 16384 bytes are read, 128 headers, 8190 bytes a line.\n")


async def write_for_ever(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x" * 4096)
        await writer.drain()


async def read_all(client: socket.socket) -> None:
    while await asyncio.get_running_loop().sock_recv(client, 65536):
        pass


async def test_client_that_goes_on_behind_its_answer_is_cut_off(broker: Broker, exchange: str) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge, lines(port_of(bridge), 1) as [line]:
        reader, writer = line
        writer.write(b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 405 ")
        writer.write(b"x" * MAX_BEHIND_BYTES)
        assert pending(bridge) == 1
        with pytest.raises(ConnectionError):
            await write_for_ever(writer)
        await eventually("it has no place any more", lambda: pending(bridge) == 0)


async def test_nothing_stays_in_the_kernel_for_a_client_that_does_not_read_its_page(
    broker: Broker, exchange: str
) -> None:
    """With its place its bytes are gone too: what it reads later ends with a reset."""
    async with running(broker.url, exchanges=f"{exchange}=killmail", handshake_timeout="200ms") as bridge:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", port_of(bridge)))
        with client:
            await loop.sock_sendall(client, b"GET /asyncapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await eventually("it is counted", lambda: pending(bridge) == 1)
            await eventually("it has no place any more", lambda: pending(bridge) == 0)
            with pytest.raises(ConnectionResetError):
                await read_all(client)


async def test_bridge_that_is_full_again_and_again_says_so_ten_times_a_minute(broker: Broker, exchange: str) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", max_connections=1) as bridge:
        server, address = bridge._server, "127.0.0.1"
        with capture_logs() as logged:
            for _ in range(3 * MOST):
                server._dropped = 0
                server._connections.update(dict.fromkeys(range(1 + RESERVE)))  # type: ignore[arg-type]  # only counted
                ours, theirs = socket.socketpair()
                with theirs:
                    server.let_in(ours, address)
                server._connections.clear()
                server._has_place()
        events = Counter(line["event"] for line in logged)
        assert set(events.values()) == {MOST}
        assert len(events) == 2


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback is an address like others."""
    monkeypatch.setattr("bridge.fanout.tally._is_loopback", lambda address: False)
    monkeypatch.setattr("bridge.fanout.tally.RESERVE", 2)


@pytest.mark.usefixtures("crowded")
async def test_client_beyond_those_of_its_address_finds_1013_and_any_further_one_is_dropped(
    broker: Broker, exchange: str
) -> None:
    limits = {"exchanges": f"{exchange}=killmail", "max_connections_per_address": 2}
    async with running(broker.url, **limits) as bridge:
        clients = [await RawClient.open(port_of(bridge)) for _ in range(2)]
        told = [await RawClient.open(port_of(bridge)) for _ in range(2)]
        with capture_logs() as logged:
            async with lines(port_of(bridge), 1) as [beyond]:
                assert await answer(beyond) == b""
        assert [(line["rule"], line["peer"]) for line in logged] == [("address", "127.0.0.1")]
        assert [await each.closed() for each in told] == [1013, 1013]
        assert sample(bridge, "bridge_evictions_total", reason="crowded") == 2
        assert sample(bridge, "bridge_connections") == 2
        for each in [*clients, *told]:
            await each.close()
        await eventually("all are gone", lambda: len(bridge._server._tally) == 0)
        await (await RawClient.open(port_of(bridge))).close()


async def test_host_of_the_network_may_not_take_all_places_while_this_one_may(broker: Broker, exchange: str) -> None:
    variables = {
        "BRIDGE_EXCHANGES": f"{exchange}=killmail",
        "BRIDGE_HOST": "0.0.0.0",
        "BRIDGE_MAX_CONNECTIONS_PER_ADDRESS": "2",
    }
    async with island(broker.url) as net, bridge_process(net.broker_url, **variables) as process:
        port = await process.port()

        async def status() -> tuple[bytes, int]:
            """How a client of the other machine is answered: its status, and the code that it is closed with, or 0."""
            line = await net.connect_from_afar(port)
            line.settimeout(0)
            reader, writer = await asyncio.open_connection(sock=line)
            kept.append(writer)
            writer.write(request(port, host=NEAR))
            head = await reader.readuntil(b"\r\n\r\n")
            if len(kept) <= 2:
                return head[9:12], 0
            first, size = await reader.readexactly(2)
            assert first == 0x88
            return head[9:12], int.from_bytes((await reader.readexactly(size))[:2], "big")

        kept: list[asyncio.StreamWriter] = []
        assert [await status() for _ in range(3)] == [(b"101", 0), (b"101", 0), (b"101", 1013)]
        clients = [await RawClient.open(port) for _ in range(5)]
        for client in clients:
            await client.close()
        for writer in kept:
            writer.transport.abort()


# TLS


@asynccontextmanager
async def secure(broker: Broker, exchange: str, folder: Path, **flags: object) -> AsyncIterator[tuple[Bridge, Path]]:
    """A bridge with a certificate, which clients are to trust."""
    chain, key = certificate(folder, "limits")
    flags |= {"exchanges": f"{exchange}=killmail", "tls_certificate": chain, "tls_key": key}
    async with running(broker.url, **flags) as bridge:
        yield bridge, chain


async def test_tls_handshake_that_is_never_complete_takes_a_place_for_the_handshake_timeout(
    broker: Broker, exchange: str, tmp_path: Path
) -> None:
    async with secure(broker, exchange, tmp_path, handshake_timeout="300ms") as (bridge, _):
        async with lines(port_of(bridge), 3) as silent:
            silent[1][1].write(b"\x16\x03\x01\x02\x00")
            await eventually("they are counted", lambda: pending(bridge) == 3)
            with capture_logs() as logged:
                assert [await answer(each) for each in silent] == [b"", b"", b""]
            await eventually("they have no place any more", lambda: pending(bridge) == 0)
        assert sample(bridge, "bridge_refused_total", rule="timeout") == 3
        assert {line["detail"] for line in logged} == {"No complete TLS handshake within 0.3 seconds."}


@pytest.mark.usefixtures("few_pending")
async def test_tls_handshakes_that_are_never_complete_keep_nobody_out(
    broker: Broker, exchange: str, tmp_path: Path
) -> None:
    async with secure(broker, exchange, tmp_path) as (bridge, chain), lines(port_of(bridge), 2 * PENDING) as silent:
        await eventually("the first ones are cut off", lambda: sample(bridge, "bridge_refused_total", rule="pending"))
        trust = ssl.create_default_context(cafile=chain)
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(bridge), ssl=trust)
        writer.write(request(port_of(bridge)))
        assert (await reader.readline()).startswith(b"HTTP/1.1 101 ")
        assert await answer(silent[0]) == b""
        assert pending(bridge) <= PENDING
        writer.transport.abort()


async def test_client_that_speaks_no_tls_is_refused_and_the_operator_told_why(
    broker: Broker, exchange: str, tmp_path: Path
) -> None:
    async with secure(broker, exchange, tmp_path) as (bridge, _):
        async with lines(port_of(bridge), 1) as [line]:
            with capture_logs() as logged:
                line[1].write(request(port_of(bridge)))
                assert b"HTTP" not in await answer(line)
                await eventually("it has no place any more", lambda: pending(bridge) == 0)
        assert sample(bridge, "bridge_refused_total", rule="tls") == 1
        [refusal] = [entry for entry in logged if entry["event"] == "client refused"]
        assert refusal["detail"] == "It speaks HTTP, not TLS: use wss:// and https:// here."


def distrust(port: int) -> None:
    """A TLS handshake by a client that knows no certificate. Not asyncio's: that one ends without saying why."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        ssl.create_default_context().wrap_socket(line, server_hostname="127.0.0.1")


async def test_client_that_speaks_tls_where_there_is_none_is_told_so_at_once(broker: Broker, exchange: str) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        with capture_logs() as logged, pytest.raises(ssl.SSLError, match="WRONG_VERSION_NUMBER"):
            await asyncio.to_thread(distrust, port_of(bridge))
        assert [(line["rule"], line["detail"]) for line in logged] == [
            ("malformed", "There is no TLS here: use ws:// and http://.")
        ]


async def test_client_that_goes_during_the_tls_handshake_is_counted(
    broker: Broker, exchange: str, tmp_path: Path
) -> None:
    async with secure(broker, exchange, tmp_path) as (bridge, _):
        with capture_logs() as logged:
            async with lines(port_of(bridge), 1):
                await eventually("it is counted", lambda: pending(bridge) == 1)
            await eventually("it has no place any more", lambda: pending(bridge) == 0)
        assert sample(bridge, "bridge_refused_total", rule="tls") == 1
        assert [entry["detail"] for entry in logged] == ["The client ended the connection."]


async def test_client_that_does_not_trust_the_certificate_is_named(
    broker: Broker, exchange: str, tmp_path: Path
) -> None:
    async with secure(broker, exchange, tmp_path) as (bridge, _):
        with capture_logs() as logged:
            with pytest.raises(ssl.SSLCertVerificationError):
                await asyncio.to_thread(distrust, port_of(bridge))
            await eventually("it is refused", lambda: sample(bridge, "bridge_refused_total", rule="tls"))
        [refusal] = [entry for entry in logged if entry["event"] == "client refused"]
        assert "unknown ca" in str(refusal["detail"]).lower()


async def test_stranger_is_cut_off_before_any_tls(broker: Broker, exchange: str, tmp_path: Path) -> None:
    async with secure(broker, exchange, tmp_path, allowed_networks="10.0.0.0/8") as (bridge, _):
        async with lines(port_of(bridge), 1) as [line]:
            assert await answer(line) == b""
        assert sample(bridge, "bridge_refused_total", rule="peer") == 1


async def test_stopping_ends_tls_handshakes(broker: Broker, exchange: str, tmp_path: Path) -> None:
    async with secure(broker, exchange, tmp_path) as (bridge, _):
        silent = await asyncio.open_connection("127.0.0.1", port_of(bridge))
        await eventually("it is counted", lambda: pending(bridge) == 1)
    assert await answer(silent) == b""
    silent[1].transport.abort()
