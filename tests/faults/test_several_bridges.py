"""What resuming clients get from several bridges behind HAProxy, which read one stream and restart under load."""

import signal

import pytest
from aio_pika.abc import AbstractConnection

from tests.support import figures
from tests.support.broker.find import Broker
from tests.support.clients import close_all, collectors
from tests.support.exactly_once import (
    SYSTEMS,
    ConfirmingFetcher,
    assert_exactly_once,
    confirming_fetcher,
)
from tests.support.fleet import SIZE, Fleet, fleet
from tests.support.healthy import Healthy
from tests.support.killmail import killmail
from tests.support.publishing import publish
from tests.support.resuming import KINDS, EventSourceClient, PollingClient, ResumingClient, have_all, resuming_clients
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

CLIENTS = 5
"""The number of clients of each kind that get every update.

In addition, SOME clients of each kind ask for the updates of only one solar system.
"""

SOME = 3

BETWEEN = 50
"""Between two steps of a test, this many updates are published, in about one second."""


def on_stream(exchange: str, stream: str) -> dict[str, str]:
    """Returns the settings of bridges with a stream as their history."""
    return {
        "BRIDGE_EXCHANGES": f"{exchange}=killmail",
        "BRIDGE_HISTORY": "stream",
        "BRIDGE_HISTORY_STREAM": stream,
        "BRIDGE_REJECT_EXCHANGE": "off",
    }


async def healthy(port: int, count: int) -> list[Healthy]:
    """Connects `count` clients that do not ask for ids."""
    return [client for client in await collectors(port, count, Healthy) if isinstance(client, Healthy)]


async def settled(fetcher: ConfirmingFetcher, everyone: list[ResumingClient], some: list[ResumingClient]) -> None:
    """Ends the fetcher.

    Checks that each client has got all confirmed updates that match its filter, each exactly once.
    """
    await fetcher.stop()
    ours = {number for number in fetcher.confirmed if SYSTEMS[number % 2] == SYSTEMS[0]}
    await have_all(everyone, fetcher.confirmed)
    await have_all(some, ours)
    assert_exactly_once(everyone, fetcher.confirmed)
    assert_exactly_once(some, ours)


async def ended_in_turn(bridges: Fleet, fetcher: ConfirmingFetcher, by: signal.Signals) -> None:
    """Ends and restarts each bridge, one after the other."""
    for place in range(SIZE):
        await fetcher.further(BETWEEN)
        await bridges.end(place, by=by)
        await fetcher.further(BETWEEN)
        await bridges.start(place)


async def test_plain_clients_behind_haproxy_are_spread_over_the_bridges_and_move_on_when_one_is_killed(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """A load balancer needs only `/readyz` to choose a bridge for each client.

    Whichever bridge a client is connected to, it gets every update once. If a bridge is killed, only its own clients
    are disconnected, and they find another bridge at once.
    """
    settings = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", "BRIDGE_REJECT_EXCHANGE": "off"}
    async with fleet(broker.url, **settings) as bridges:
        clients = await healthy(bridges.port, 3 * SIZE)
        await publish(amqp, exchange, *map(killmail, range(100)))
        await eventually("all clients have all updates", lambda: all(len(client.arrivals) == 100 for client in clients))
        await bridges.end(0)
        await eventually("the clients are disconnected", lambda: sum(client.lost.done() for client in clients) == 3)
        stayed = [client for client in clients if not client.lost.done()]
        moved = await healthy(bridges.port, 3)
        await publish(amqp, exchange, *map(killmail, range(100, 200)))
        await eventually(
            "all clients have the remaining updates", lambda: all(len(client.arrivals) == 100 for client in moved)
        )
        await eventually(
            "the other clients have all updates", lambda: all(len(client.arrivals) == 200 for client in stayed)
        )
        assert all(client.numbers == list(range(200)) for client in stayed)
        assert all(client.numbers == list(range(100, 200)) for client in moved)
        await bridges.balanced()
        await bridges.start(0)
        close_all([*clients, *moved])
        bridges.assert_nothing_went_wrong()


async def test_plain_clients_of_a_bridge_that_hangs_are_cut_off_by_haproxy(broker: Broker, exchange: str) -> None:
    """A suspended bridge keeps its connections and sends nothing.

    The load balancer notices this with its checks, and ends the connections.
    """
    settings = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", "BRIDGE_REJECT_EXCHANGE": "off"}
    async with fleet(broker.url, **settings) as bridges:
        clients = await healthy(bridges.port, 2 * SIZE)
        await bridges.hang(0)
        await eventually("the clients are disconnected", lambda: sum(client.lost.done() for client in clients) == 2)
        moved = await healthy(bridges.port, 2)
        await bridges.end(0)
        close_all([*clients, *moved])
        bridges.assert_nothing_went_wrong()


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
async def test_clients_that_resume_miss_nothing_while_bridges_end_in_turn(
    broker: Broker, exchange: str, queue: str, by: signal.Signals
) -> None:
    """With BRIDGE_HISTORY=stream, a client can resume on any bridge, with the last id that it got from another bridge.

    The client gets every confirmed update exactly once, in order, and every resume is complete. For a client that
    reconnects as `EventSource` does, the header `Last-Event-ID` replaces the `after` and the `last` of its URL.
    """
    async with (
        fleet(broker.url, **on_stream(exchange, queue)) as bridges,
        resuming_clients(bridges.port, CLIENTS, *KINDS.values()) as everyone,
        resuming_clients(bridges.port, 1, EventSourceClient, after="earliest") as from_earliest,
        resuming_clients(bridges.port, 1, EventSourceClient, last="10") as from_newest,
        resuming_clients(bridges.port, SOME, *KINDS.values(), systemId=str(SYSTEMS[0])) as some,
        confirming_fetcher(broker.url, exchange) as fetcher,
    ):
        await ended_in_turn(bridges, fetcher, by)
        await fetcher.further(BETWEEN)
        everyone += [*from_earliest, *from_newest]
        await settled(fetcher, everyone, some)
        reconnects = sum(client.reconnects for client in everyone)
        replayed = sum(client.replayed for client in everyone)
        # Every bridge has ended once, so every client that was connected all the time must have reconnected.
        assert all(client.reconnects for client in everyone if not isinstance(client, PollingClient))
        assert replayed > 0
        bridges.assert_nothing_went_wrong()
        figures.record(
            f"{SIZE} bridges on one stream, behind HAProxy, end in turn under load ({by.name})",
            f"clients of all transports resume on another bridge ({reconnects} times; {replayed} updates replayed)",
            f"0 of {len(fetcher.confirmed)}",
            "0",
        )


async def test_clients_that_resume_miss_nothing_while_a_bridge_hangs(broker: Broker, exchange: str, queue: str) -> None:
    """If a bridge is suspended, the load balancer notices it and disconnects the bridge's clients.

    Another bridge sends the disconnected clients the updates that they missed.
    """
    async with (
        fleet(broker.url, **on_stream(exchange, queue)) as bridges,
        resuming_clients(bridges.port, CLIENTS, *KINDS.values()) as everyone,
        resuming_clients(bridges.port, SOME, *KINDS.values(), systemId=str(SYSTEMS[0])) as some,
        confirming_fetcher(broker.url, exchange) as fetcher,
    ):
        await fetcher.further(BETWEEN)
        await bridges.hang(0)
        await fetcher.further(BETWEEN)
        await bridges.end(0)
        await bridges.start(0)
        await fetcher.further(BETWEEN)
        await settled(fetcher, everyone, some)
        assert sum(client.reconnects for client in everyone) > 0
        bridges.assert_nothing_went_wrong()


async def test_clients_that_resume_miss_nothing_when_all_bridges_are_killed_at_once(
    broker: Broker, exchange: str, queue: str
) -> None:
    """Events that are published while no bridge runs stay in the stream.

    Bridges that start later know the ids that earlier bridges gave to updates.
    """
    async with (
        fleet(broker.url, **on_stream(exchange, queue)) as bridges,
        resuming_clients(bridges.port, CLIENTS, *KINDS.values()) as everyone,
        resuming_clients(bridges.port, SOME, *KINDS.values(), systemId=str(SYSTEMS[0])) as some,
        confirming_fetcher(broker.url, exchange) as fetcher,
    ):
        for _ in range(2):
            await fetcher.further(BETWEEN)
            await bridges.end(*range(SIZE))
            await fetcher.further(2 * BETWEEN)
            await bridges.start(*range(SIZE))
        await fetcher.further(BETWEEN)
        await settled(fetcher, everyone, some)
        assert all(client.reconnects >= 2 for client in everyone)
        bridges.assert_nothing_went_wrong()
