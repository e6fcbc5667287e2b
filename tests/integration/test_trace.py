"""The log at the level debug shows the paths of two events and of two clients, but no body of an event."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from tests.support.clients import RawClient, get
from tests.support.killmail import killmail
from tests.support.publishing import publish, take
from tests.support.running import UNPINGED, BridgeProcess, bridge_process
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection

    from tests.support.broker.find import Broker

KILLMAIL_ID = 987_654_321
NOT_JSON = b"[private words"
BODIES = (str(KILLMAIL_ID), "private", "words")
"""Parts of the events' bodies."""

TRACED = {
    "handshake",
    "connection opened",
    "connection state",
    "connection closed",
    "delivery",
    "relayed",
    "flush",
    "acknowledged",
    "reject published",
    "reject confirmed",
}


async def traffic(process: BridgeProcess, amqp: AbstractConnection, exchange: str, rejects: str) -> str:
    """Connects a client that gets ids and a client that is refused. Publishes a valid and an invalid event.

    Returns the id of the valid event's update.
    """
    await process.consuming()
    port = await process.port()
    client = await RawClient.open(port, path="/updates?after=&type=killmail")
    assert orjson.loads(await client.text())["type"] == "resume"
    status, _ = await get(port, "/updates")
    assert status == 426
    await publish(amqp, exchange, killmail(KILLMAIL_ID), NOT_JSON)
    update = orjson.loads(await client.text())
    assert update["data"]["killmailId"] == KILLMAIL_ID
    assert len(await take(amqp, rejects, 1)) == 1
    await client.close()
    return str(update["id"])


async def stop(process: BridgeProcess) -> None:
    process.process.terminate()
    assert await process.ended() == 0
    assert process.texts == []


def indexes(lines: list[dict[str, object]], **fields: object) -> list[int]:
    """Returns the indexes of the log lines that have the values in `fields`."""
    return [index for index, line in enumerate(lines) if fields.items() <= line.items()]


async def test_debug_shows_the_path_of_each_event_and_of_each_client_and_no_body(
    broker: Broker, amqp: AbstractConnection, exchange: str, rejects: str
) -> None:
    variables = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", "BRIDGE_REJECT_EXCHANGE": rejects, **UNPINGED}
    async with bridge_process(broker.url, "--log-level", "debug", **variables) as process:
        update_id = await traffic(process, amqp, exchange, rejects)
        await eventually("the reject is confirmed", lambda: process.logged("reject confirmed"))
        await eventually("the connection is closed", lambda: process.logged("connection closed"))
        await stop(process)
    lines = process.lines

    # The clients
    [upgraded] = indexes(lines, event="handshake", outcome="101", types=["killmail"], after="")
    peer = lines[upgraded]["peer"]
    [opened] = indexes(lines, event="connection opened", peer=peer)
    states = indexes(lines, event="connection state", peer=peer)
    [closed] = indexes(lines, event="connection closed", peer=peer)
    changes = [lines[index]["to"] for index in states]
    assert (changes[0], changes[-2:]) == ("resuming", ["live", "closed"])
    assert upgraded < opened < states[0] < states[-1]
    assert opened < closed
    assert len(indexes(lines, event="handshake", outcome="refused", status=426, rule="upgrade")) == 1

    # The events
    [relayed] = indexes(lines, event="relayed", outcome="update", id=update_id)
    [delivery] = indexes(lines, event="delivery", tag=lines[relayed]["tag"])
    flush, *_ = [index for index in indexes(lines, event="flush", positions=1, live=1) if index > relayed]
    acknowledged, *_ = [index for index in indexes(lines, event="acknowledged") if index > relayed]
    assert delivery < relayed < flush < acknowledged
    [rejected] = indexes(lines, event="relayed", outcome="not-json")
    [published] = indexes(lines, event="reject published", tag=lines[rejected]["tag"])
    [confirmed] = indexes(lines, event="reject confirmed", tag=lines[rejected]["tag"])
    assert rejected < published < confirmed < indexes(lines, event="acknowledged")[-1]
    assert lines[published]["message_id"] == lines[confirmed]["message_id"]

    assert [line for line in lines if any(part in str(line) for part in BODIES)] == []
    assert {str(line["logger"]).partition(".")[0] for line in lines if line["level"] == "debug"} == {"bridge"}


async def test_info_does_not_show_paths(broker: Broker, amqp: AbstractConnection, exchange: str, rejects: str) -> None:
    variables = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", "BRIDGE_REJECT_EXCHANGE": rejects, **UNPINGED}
    async with bridge_process(broker.url, "--log-level", "info", **variables) as process:
        await traffic(process, amqp, exchange, rejects)
        await stop(process)
    assert {line["event"] for line in process.lines} & TRACED == set()
    assert {line["level"] for line in process.lines} & {"debug"} == set()
    assert [line for line in process.lines if any(part in str(line) for part in BODIES)] == []
