"""What a bridge sends over WebSocket, Server-Sent Events and HTTP matches the schema files and both documents."""

from typing import Any

import jsonschema_rs
import orjson
import pytest
from aio_pika.abc import AbstractConnection

from bridge.amqp.status import Gap, GapSlug
from bridge.app import Bridge
from tests.conformance import validators
from tests.support.broker.find import Broker
from tests.support.clients import RawClient, get
from tests.support.event_streams import StreamClient
from tests.support.generated import asyncapi_document
from tests.support.killmail import killmail
from tests.support.publishing import publish
from tests.support.running import port_of, running
from tests.support.waiting import eventually

DOCUMENT = orjson.loads(asyncapi_document())


def assert_described(channel: str, message: dict[str, Any]) -> None:
    """Asserts that a message matches its schema files, and one message of a channel of the AsyncAPI document."""
    text, data = orjson.dumps(message), orjson.dumps(message["data"])
    envelope = "update-with-id" if "id" in message else "update"
    assert validators.jsonschema([(envelope, text), (message["type"], data)]) == [frozenset(), frozenset()], message
    fitting = [
        name
        for name in DOCUMENT["channels"][channel]["messages"]
        if jsonschema_rs.Draft7Validator(
            {**DOCUMENT["components"]["messages"][name]["payload"], "components": DOCUMENT["components"]}
        ).is_valid(message)
    ]
    kind = "update-with-id" if "id" in message else "update" if message["type"] == "killmail" else "message"
    assert fitting == [f"{kind}.{message['type']}"]


async def provoke(bridge: Bridge, amqp: AbstractConnection, exchange: str, published: int) -> None:
    """Makes the bridge send an update and then a gap."""
    await publish(amqp, exchange, killmail(published))
    await eventually("the update is in the log", lambda: bridge._hub.logged_updates == published)
    bridge._source.gaps.report(Gap(1_700_000_000.0, 1_700_000_012.25, "the connection was lost", GapSlug.BROKER_AWAY))


async def test_messages_over_websocket_and_server_sent_events_are_described(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        port = port_of(bridge)
        plain, with_ids = await RawClient.open(port), await RawClient.open(port, path="/updates?after=")
        stream = await StreamClient.open(port)
        received = {"updates": [orjson.loads(await with_ids.text(heartbeats=True)) for _ in range(2)]}
        received["eventStream"] = [(await stream.event()).message for _ in range(2)]
        await provoke(bridge, amqp, exchange, 1)
        received["updates"] += [orjson.loads(await with_ids.text(heartbeats=True)) for _ in range(2)]
        received["eventStream"] += [(await stream.event()).message for _ in range(2)]
        for channel, messages in received.items():
            assert [message["type"] for message in messages] == ["resume", "heartbeat", "killmail", "gap"]
            for message in messages:
                assert_described(channel, message)
        assert_described("updates", orjson.loads(await plain.text()))
        await plain.close()
        await with_ids.close()
        await stream.close()


async def test_message_of_a_full_bridge_is_described(broker: Broker, exchange: str) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", max_connections=1) as bridge:
        client = await StreamClient.open(port_of(bridge))
        await client.event()
        refused = await StreamClient.open(port_of(bridge))
        message = (await refused.event()).message
        assert message["type"] == "close"
        assert_described("eventStream", message)
        await refused.close()
        await client.close()


@pytest.mark.parametrize("query", ["", "&after=", "&after=earliest", "&last=1", "&after=1-00000000", "&type=event"])
async def test_response_as_json_matches_its_schema(
    broker: Broker, amqp: AbstractConnection, exchange: str, query: str
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        await provoke(bridge, amqp, exchange, 1)
        status, body = await get(port_of(bridge), f"/updates?format=json{query}")
    assert status == 200
    assert validators.jsonschema([("updates-response", body)]) == [frozenset()], body
    for update in orjson.loads(body)["updates"]:
        assert validators.jsonschema([(update["type"], orjson.dumps(update["data"]))]) == [frozenset()]
