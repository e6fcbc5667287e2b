"""A web proxy cuts connections that are silent for too long, or answers for a bridge that restarts."""

import signal
from pathlib import Path

import pytest
from aio_pika.abc import AbstractConnection

from tests.faults.test_several_bridges import on_stream
from tests.support import web_proxies
from tests.support.broker.find import Broker
from tests.support.broker.ports import free_port
from tests.support.exactly_once import assert_exactly_once
from tests.support.killmail import killmail
from tests.support.publishing import publish
from tests.support.resuming import (
    CONNECTED,
    EventSourceClient,
    EventStreamClient,
    PatientPollingClient,
    PollingClient,
    WebSocketClient,
    have_all,
    resuming_clients,
)
from tests.support.running import UNPINGED, bridge_process
from tests.support.waiting import eventually

PROXIES = {"nginx": web_proxies.nginx, "haproxy": web_proxies.haproxy}

TIMEOUT_MS = 3000
"""The timeout of the proxy. Common defaults are 30 s and 60 s."""

PING_INTERVAL_MS = 250

LONG_TIMEOUT_MS = 60_000
"""A timeout that ends no connection in a test."""

NO_HEARTBEATS = {"BRIDGE_HEARTBEAT_INTERVAL": "0"}
"""Settings with which a silent connection gets only keep-alives."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", PROXIES)
async def test_connections_with_keepalives_outlast_the_timeout_of_a_proxy(
    kind: str, broker: Broker, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    """The ping interval is shorter than the timeout, and so is the wait of a poll."""
    settings = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", "BRIDGE_PING_INTERVAL": f"{PING_INTERVAL_MS}ms"}
    port = free_port()
    async with (
        bridge_process(broker.url, **settings, **NO_HEARTBEATS) as process,
        PROXIES[kind](tmp_path, port, await process.port(), TIMEOUT_MS),
    ):
        await process.consuming()
        async with (
            resuming_clients(port, 2, *CONNECTED) as connected,
            resuming_clients(port, 2, PollingClient) as polling,
        ):
            enough = 3 * TIMEOUT_MS // (2 * PING_INTERVAL_MS)
            await eventually(
                "the connections are silent for longer than the timeout",
                lambda: all(client.keepalives > enough for client in connected),
            )
            await publish(amqp, exchange, killmail(1))
            await have_all([*connected, *polling], {1})
            assert_exactly_once([*connected, *polling], {1})
            assert [client.reconnects for client in connected] == [0] * len(connected)
            assert [client.refusals for client in polling if client.refusals] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", PROXIES)
async def test_clients_miss_nothing_although_a_proxy_cuts_every_silent_connection(
    kind: str, broker: Broker, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    """Without keep-alives, each connection is cut after the timeout, and the proxy answers 504 to a poll that waits."""
    settings = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", **UNPINGED, **NO_HEARTBEATS}
    port = free_port()
    async with (
        bridge_process(broker.url, **settings) as process,
        PROXIES[kind](tmp_path, port, await process.port(), TIMEOUT_MS),
    ):
        await process.consuming()
        async with (
            resuming_clients(port, 2, *CONNECTED) as connected,
            resuming_clients(port, 2, PatientPollingClient) as polling,
        ):
            for number in range(2):
                await eventually(
                    "each connection is cut",
                    lambda: (
                        all(client.reconnects > number for client in connected)  # noqa: B023 - the wait ends within this iteration
                        and all(client.refusals["504"] > number for client in polling)  # noqa: B023 - see above
                    ),
                )
                await publish(amqp, exchange, killmail(number))
            await have_all([*connected, *polling], {0, 1})
            assert_exactly_once([*connected, *polling], {0, 1})


@pytest.mark.parametrize(("kind", "status"), [("nginx", "502"), ("haproxy", "503")])
async def test_clients_come_back_after_a_proxy_answered_for_a_bridge_that_was_away(
    kind: str, status: str, broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, tmp_path: Path
) -> None:
    """Only `EventSource` gives up for good, because the proxy's status is not 200."""
    port, bridge_port = free_port(), free_port()
    settings = {**on_stream(exchange, queue), "BRIDGE_PORT": str(bridge_port)}
    async with (
        PROXIES[kind](tmp_path, port, bridge_port, LONG_TIMEOUT_MS),
        bridge_process(broker.url, **settings) as process,
    ):
        await process.consuming()
        async with (
            resuming_clients(port, 2, WebSocketClient, EventStreamClient, PollingClient) as clients,
            resuming_clients(port, 1, EventSourceClient) as [event_source],
        ):
            await publish(amqp, exchange, *map(killmail, range(5)))
            await have_all([*clients, event_source], set(range(5)))
            process.process.send_signal(signal.SIGKILL)
            await process.ended()
            await publish(amqp, exchange, *map(killmail, range(5, 10)))
            await eventually(
                f"each client gets the status {status}", lambda: all(client.refusals[status] for client in clients)
            )
            async with bridge_process(broker.url, **settings):
                await have_all(clients, set(range(10)))
                assert_exactly_once(clients, set(range(10)))
            with pytest.raises(AssertionError, match=f"the client gives up after the status {status}"):
                event_source.verify()
