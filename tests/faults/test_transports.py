"""Faults of the broker and of the bridge, as the clients of each transport see them."""

import signal
from collections.abc import Sequence

import orjson
from aio_pika.abc import AbstractConnection

from tests.support.broker.find import Broker
from tests.support.broker.ports import free_port
from tests.support.clients import get
from tests.support.killmail import killmail
from tests.support.process_stats import metric
from tests.support.proxy import proxy
from tests.support.publishing import publish
from tests.support.resuming import (
    CONNECTED,
    KINDS,
    EventStreamClient,
    PatientPollingClient,
    PollingClient,
    ResumingClient,
    have_all,
    resuming_clients,
)
from tests.support.running import bridge_process, port_of, running
from tests.support.waiting import eventually

RARE_SYSTEM = "31000005"
"""A system in which nobody dies in these tests."""

HEARTBEAT = "200ms"


async def poll(port: int, after: str) -> dict[str, object]:
    """Returns the response to a poll."""
    status, body = await get(port, f"/updates?format=json&after={after}")
    assert status == 200, body
    response: dict[str, object] = orjson.loads(body)
    return response


async def all_know(clients: Sequence[ResumingClient], *, consuming: bool) -> None:
    """Waits until the last heartbeat of each client has this member `consuming`."""
    await eventually(
        f"each client knows that `consuming` is {consuming}",
        lambda: all(client.heartbeats and client.heartbeats[-1]["consuming"] is consuming for client in clients),
    )


async def test_outage_of_the_broker_is_reported_once_to_each_client_of_each_transport(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """While the broker is away, `consuming` is false. Afterwards, each client gets the same gap once.

    The gap does not come again on a connection with its id, and comes again on a connection with an older id.
    """
    async with proxy(broker.url) as tunnel:
        await tunnel.open()
        settings = {"exchanges": f"{exchange}=killmail", "reject_exchange": "off", "heartbeat_interval": HEARTBEAT}
        async with (
            running(tunnel.url, **settings) as bridge,
            resuming_clients(port_of(bridge), 2, *KINDS.values()) as everyone,
            resuming_clients(port_of(bridge), 1, *KINDS.values(), systemId=RARE_SYSTEM) as idle,
        ):
            clients = [*everyone, *idle]
            await publish(amqp, exchange, *map(killmail, range(5)))
            await have_all(everyone, set(range(5)))
            await all_know(clients, consuming=True)
            before = everyone[0].last_id
            await tunnel.close()
            await all_know(clients, consuming=False)
            await publish(amqp, exchange, *map(killmail, range(5, 10)))
            await tunnel.open()
            await eventually("each client gets a gap", lambda: all(client.gaps for client in clients))
            await publish(amqp, exchange, *map(killmail, range(10, 15)))
            await have_all(everyone, {*range(5), *range(10, 15)})
            await all_know(clients, consuming=True)
            for client in clients:
                client.drop()
            await eventually("each client is back", lambda: all(client.reconnects for client in clients))
            await publish(amqp, exchange, killmail(15))
            await have_all(everyone, {*range(5), *range(10, 16)})
            [gap] = clients[0].gaps
            assert gap["reason"] == "broker-away"
            for client in clients:
                client.verify()
                assert client.gaps == [gap], "the gap came again"
                assert [answer for answer in client.resumes if not answer["complete"]] == []
                assert client.places == sorted(client.places)
            port = port_of(bridge)
            assert (await poll(port, before))["gaps"] == [gap]
            assert (await poll(port, gap["id"]))["gaps"] == []


async def test_bridge_that_is_killed_does_not_know_the_ids_of_its_predecessor_and_reports_this(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    """Without a stream, each client learns once that updates may be missing, and gets all later updates."""
    port = free_port()
    settings = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", "BRIDGE_PORT": str(port)}
    async with bridge_process(broker.url, **settings) as process:
        await process.consuming()
        async with resuming_clients(port, 2, *KINDS.values()) as clients:
            await publish(amqp, exchange, *map(killmail, range(5)))
            await have_all(clients, set(range(5)))
            process.process.send_signal(signal.SIGKILL)
            await process.ended()
            async with bridge_process(broker.url, **settings) as successor:
                await successor.consuming()
                await publish(amqp, exchange, *map(killmail, range(5, 10)))
                await have_all(clients, set(range(10)))
                for client in clients:
                    client.verify()
                    assert client.numbers == list(range(10))
                    assert sum(not answer["complete"] for answer in client.resumes) == 1
                    assert client.gaps == []


async def test_client_that_moves_to_an_instance_without_a_broker_waits_until_it_has_caught_up(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    """The id is ahead of the instance. Connections wait for it, and requests for JSON get 503 and are repeated."""
    settings = {"exchanges": f"{exchange}=killmail", "history": "stream", "history_stream": queue}
    async with proxy(broker.url) as tunnel:
        await tunnel.open()
        async with (
            running(broker.url, **settings) as first,
            running(tunnel.url, **settings) as second,
            resuming_clients(port_of(first), 2, *CONNECTED) as connected,
            resuming_clients(port_of(first), 2, PollingClient) as polling,
        ):
            clients = [*connected, *polling]
            await publish(amqp, exchange, *map(killmail, range(5)))
            await have_all(clients, set(range(5)))
            await tunnel.close()
            await eventually("the second bridge has no broker", lambda: not second.is_consuming)
            await publish(amqp, exchange, *map(killmail, range(5, 10)))
            await have_all(clients, set(range(10)))
            for client in clients:
                client.leave()
            await publish(amqp, exchange, *map(killmail, range(10, 15)))
            for client in clients:
                client.come_back(port_of(second))
            await eventually("each connection waits", lambda: second._hub.pending == len(connected))
            await eventually("each request gets 503", lambda: all(client.refusals["503"] for client in polling))
            await tunnel.open()
            await publish(amqp, exchange, killmail(15))
            await have_all(clients, set(range(16)))
            await eventually("each client gets a gap", lambda: all(client.gaps for client in clients))
            for client in clients:
                client.verify()
                assert client.numbers == list(range(16))
                gaps = [gap["id"] for gap in client.gaps]
                assert len(gaps) == len(set(gaps)), "a gap came again"
                assert all(answer["complete"] for answer in client.resumes)
                assert client.places == sorted(client.places)


async def test_bridge_that_stops_tells_clients_of_each_transport_and_answers_waiting_requests_at_once(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    settings = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", "BRIDGE_PORT": str(free_port())}
    async with bridge_process(broker.url, **settings) as process:
        await process.consuming()
        port = await process.port()
        async with (
            resuming_clients(port, 3, *CONNECTED) as connected,
            resuming_clients(port, 3, PatientPollingClient) as polling,
        ):
            await publish(amqp, exchange, *map(killmail, range(5)))
            await have_all([*connected, *polling], set(range(5)))

            async def all_wait() -> bool:
                return await metric(port, 'bridge_connections{transport="poll"}') == len(polling)

            await eventually("each request waits", all_wait)
            answers = [len(client.resumes) for client in polling]
            process.process.send_signal(signal.SIGTERM)
            assert await process.ended() == 0
            await eventually("each connected client knows", lambda: all(client.closes[1001] for client in connected))
            await eventually(
                "each request is answered",
                lambda: all(len(client.resumes) > before for client, before in zip(polling, answers, strict=True)),
            )
            for client in [*connected, *polling]:
                client.verify()
                assert client.numbers == list(range(5))
                assert set(client.closes) <= {1001}
            last_ids = {client.last_id for client in connected if isinstance(client, EventStreamClient)}
            assert last_ids == {client.last_id for client in polling}
    assert process.texts == []
