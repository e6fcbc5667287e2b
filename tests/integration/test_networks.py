"""Real connections from many addresses, which a machine at the other end of a cable uses one after another."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support.broker.find import Broker
from tests.support.clients import request
from tests.support.namespaces import NEAR, NEAR_V6, Island, island
from tests.support.process_stats import metric, sockets
from tests.support.running import BridgeProcess, bridge_process
from tests.support.waiting import eventually

INTERNAL = (
    "10.0.0.1",
    "10.255.255.254",
    "172.16.0.1",
    "172.31.255.254",
    "192.168.0.1",
    "192.168.255.254",
    "fc00::1",
    "fd00:99::2:1",
    "fdff:ffff::1",
)

EXTERNAL = (
    "9.255.255.254",
    "11.0.0.1",
    "172.15.255.254",
    "172.32.0.1",
    "192.167.255.254",
    "192.169.0.1",
    "100.64.0.1",  # an address that a carrier's customers share (RFC 6598)
    "169.254.7.7",  # link-local
    "192.0.2.7",  # an address for documentation, like the next two
    "198.51.100.7",
    "203.0.113.7",
    "198.18.0.7",  # for benchmarks
    "8.8.8.8",
    "2001:db8::7",
    "2002:a00:1::1",  # the 6to4 address of 10.0.0.1
    "64:ff9b::a00:1",  # the NAT64 address of 10.0.0.1
    "fec0::1",  # a site-local address, a form that is no longer used
    "fe00::1",
    "2606:4700::1111",
    "fe80::",
)


@asynccontextmanager
async def reachable_bridge(
    broker: Broker, exchange: str, **variables: str
) -> AsyncIterator[tuple[Island, BridgeProcess, int]]:
    """Runs a bridge that listens on all addresses, in a network with another machine."""
    variables |= {"BRIDGE_EXCHANGES": f"{exchange}=killmail", "BRIDGE_HOST": "0.0.0.0,::"}
    async with island(broker.url) as net, bridge_process(net.broker_url, **variables) as process:
        yield net, process, await process.port()


async def first_line(net: Island, port: int, address: str, *headers: str, host: str | None = None) -> bytes:
    """Returns the first line of the response to a client with this address, or empty bytes if there is no response."""
    host = host or (f"[{NEAR_V6}]" if ":" in address else NEAR)
    client_socket = await net.connect_from_outside(port, address)
    client_socket.settimeout(0)
    reader, writer = await asyncio.open_connection(sock=client_socket)
    try:
        writer.write(request(port, headers=headers, host=host))
        async with asyncio.timeout(10):
            return await reader.readline()
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


async def test_internal_addresses_can_connect(broker: Broker, exchange: str) -> None:
    async with reachable_bridge(broker, exchange) as (net, _, port):
        for address in INTERNAL:
            answer = await first_line(net, port, await net.settle(address))
            assert answer.startswith(b"HTTP/1.1 101 "), (address, answer)
        assert await metric(port, 'bridge_clients_refused_total{rule="peer"}') == 0
        assert await metric(port, 'bridge_connections_opened_total{transport="websocket"}') == len(INTERNAL)


async def test_other_addresses_are_refused_with_any_headers(broker: Broker, exchange: str) -> None:
    """Clients whose address is not allowed get 403, and do not count as connections."""
    async with reachable_bridge(broker, exchange) as (net, process, port):
        for address in EXTERNAL:
            source = await net.settle(address)
            for headers in ([], ["X-Forwarded-For: 127.0.0.1"], ["Forwarded: for=10.0.0.1"], ["X-Real-IP: ::1"]):
                answer = await first_line(net, port, source, *headers, host="localhost")
                assert answer.startswith(b"HTTP/1.1 403 "), (address, headers, answer)
        assert await metric(port, 'bridge_clients_refused_total{rule="peer"}') == 4 * len(EXTERNAL)
        assert await metric(port, 'bridge_connections_opened_total{transport="websocket"}') == 0
        refusal = process.logged("client refused")
        assert refusal is not None
        assert (refusal["rule"], refusal["peer"]) == ("peer", EXTERNAL[0])


async def test_refused_clients_that_stay_connected_do_not_count(broker: Broker, exchange: str) -> None:
    """Allowed clients can connect, because the bridge closes the connections of refused clients at once."""
    async with reachable_bridge(broker, exchange, BRIDGE_MAX_CONNECTIONS="1") as (net, process, port):
        pid = process.process.pid
        await eventually("the bridge consumes", lambda: process.logged("consuming"))
        external, internal = await net.settle("203.0.113.7"), await net.settle("10.1.2.3")
        before = sockets(pid)
        # The number of refused connections is larger than the connection limit plus its reserve.
        refused = [await net.connect_from_outside(port, external) for _ in range(400)]
        assert (await first_line(net, port, internal)).startswith(b"HTTP/1.1 101 ")
        await eventually("all refused sockets are closed", lambda: sockets(pid) == before)
        assert await metric(port, 'bridge_clients_refused_total{rule="peer"}') == len(refused)
        assert await metric(port, 'bridge_clients_refused_total{rule="full"}') == 0
        for each in refused:
            each.close()


async def test_forwarded_address_can_only_exclude_its_sender(broker: Broker, exchange: str) -> None:
    async with reachable_bridge(broker, exchange) as (net, _, port):
        internal = await net.settle("192.168.7.7")
        for header, status in (
            ("X-Forwarded-For: 192.168.7.8", b"101"),
            ("X-Forwarded-For: 192.168.7.8, 8.8.8.8", b"403"),
            ("Forwarded: for=10.0.0.1;proto=http", b"101"),
            ("Forwarded: for=8.8.8.8", b"403"),
            ("Forwarded: for=unknown", b"403"),
            ("X-Real-IP: nobody", b"403"),
        ):
            assert (await first_line(net, port, internal, header))[9:12] == status, header


@pytest.mark.parametrize("host", [NEAR, f"[{NEAR_V6}]", "bridge", "localhost"])
async def test_host_may_be_a_literal_address_or_a_name_without_a_dot(broker: Broker, exchange: str, host: str) -> None:
    async with reachable_bridge(broker, exchange) as (net, _, port):
        source = await net.settle("fd00:99::2:2" if ":" in host else "10.7.7.7")
        assert (await first_line(net, port, source, host=host)).startswith(b"HTTP/1.1 101 ")
