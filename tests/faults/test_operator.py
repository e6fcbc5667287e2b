"""How bridges react to what an operator does to a running broker."""

import secrets
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest

from tests.support.broker.node import PASSWORD, PrivateNode
from tests.support.clients import RawClient, get
from tests.support.killmail import killmail
from tests.support.publishing import depth, observer, publish, take
from tests.support.releases_marker import release_of, version_of
from tests.support.running import bridge_process, unique
from tests.support.scene import RECOVERY_LIMIT_S, scene
from tests.support.waiting import eventually

OTHER_PASSWORD = secrets.token_hex(8)


def user_of(url: str) -> str:
    """Returns the user name in a URL."""
    return urlsplit(url).username or ""


async def close_connections(node: PrivateNode, user: str, reason: str) -> None:
    """Closes all connections of a user."""
    await node.ctl("close_all_user_connections", user, reason)


async def test_connections_that_are_closed_by_force_are_opened_again(node_broker: PrivateNode) -> None:
    """Promise: the bridge logs the broker's reason, and consumes again after about a second.

    A named queue loses no event.
    """
    url = await node_broker.user()
    user = user_of(url)
    async with scene(node_broker.url, url) as stage:
        fault = await stage.fault()
        await close_connections(node_broker, user, "maintenance")
        await stage.verify(fault, "an operator closes the connections", "reconnects at once")
        for bridge in stage.bridges.values():
            [line] = fault.lines(bridge, "broker lost")
            assert "maintenance" in str(line["error"])


async def test_password_that_is_changed_is_named_until_it_is_right_again(node_broker: PrivateNode) -> None:
    """Promise: `/readyz` names the user. The bridge consumes again by itself when the password is changed back."""
    url = await node_broker.user()
    user = user_of(url)
    async with scene(node_broker.url, url) as stage:
        fault = await stage.fault()
        await node_broker.ctl("change_password", user, OTHER_PASSWORD)
        await close_connections(node_broker, user, "the password has changed")
        for bridge in stage.bridges.values():
            body = await bridge.not_ready("refuses the user name or the password")
            assert body["broker"]["state"] == "refused"
            assert PASSWORD not in str(body) + str(bridge.process.lines)
        await stage.fetcher.further(100)
        await node_broker.ctl("change_password", user, PASSWORD)
        fault.over()
        does = "reports it in `/readyz`, retries"
        await stage.verify(fault, "the password is changed, and changed back", does)


@pytest.mark.slow
async def test_virtual_host_that_is_deleted_and_created_again_is_consumed_from_again(node_broker: PrivateNode) -> None:
    """Promise: `/readyz` names the virtual host.

    The events in the queues of the virtual host are lost, and the bridge continues.
    """
    vhost = unique("vhost")
    rights = {"user": "guest", "configure": ".*", "write": ".*", "read": ".*"}
    definitions = {"vhosts": [{"name": vhost}], "permissions": [{"vhost": vhost, **rights}]}
    await node_broker.define(definitions)
    async with scene(urlsplit(node_broker.url)._replace(path=f"/{vhost}").geturl()) as stage:
        fault = await stage.fault()
        await node_broker.ctl("delete_vhost", vhost)
        for bridge in stage.bridges.values():
            body = await bridge.not_ready(f"the virtual host '{vhost}'")
            assert body["broker"]["state"] == "refused"
        await node_broker.define(definitions)
        fault.over()
        # The events in the queues of the virtual host are lost.
        what, does = "the virtual host is deleted and created again", "reports it in `/readyz`, retries"
        await stage.verify(fault, what, does, kept=False)
    await node_broker.ctl("delete_vhost", vhost)


@asynccontextmanager
async def rejects_are_refused(node: PrivateNode, rejects: str) -> AsyncIterator[None]:
    """Limits the queue of rejected events, so that it refuses all further events."""
    policy = unique("policy")
    full = '{"max-length":0,"overflow":"reject-publish"}'
    await node.ctl("set_policy", "--apply-to", "queues", policy, f"^{rejects}$", full)
    try:
        yield
    finally:
        await node.ctl("clear_policy", policy)


@asynccontextmanager
async def ack_timeout(node: PrivateNode, timeout_ms: int, check_ms: int) -> AsyncIterator[None]:
    """Sets how long the broker waits for an acknowledgement on new channels, and how often it checks this."""
    was = await node.ctl("eval", "[application:get_env(rabbit, N) || N <- [consumer_timeout, channel_tick_interval]].")
    assert was == "[{ok,1800000},{ok,60000}]"
    setting = (
        "application:set_env(rabbit, consumer_timeout, {}), application:set_env(rabbit, channel_tick_interval, {})."
    )
    await node.ctl("eval", setting.format(timeout_ms, check_ms))
    try:
        yield
    finally:
        await node.ctl("eval", setting.format(1_800_000, 60_000))


@pytest.mark.slow
async def test_channel_that_the_broker_closes_with_406_is_opened_again(
    node_broker: PrivateNode,
) -> None:
    """Promise: if the bridge holds a rejected event for too long, the broker closes the channel.

    The bridge reconnects, and the event is not lost.
    """
    if release_of(version_of(node_broker.url)) == "4.3":
        # This test can never run with RabbitMQ 4.3, because 4.3 has no such timeout for classic queues, and both
        # bridges use classic queues.
        pytest.skip("RabbitMQ 4.3 waits without a limit for the acknowledgements of a classic queue")
    async with (
        ack_timeout(node_broker, 1000, 500),
        scene(node_broker.url) as stage,
        observer(node_broker.url) as amqp,
    ):
        fault = await stage.fault()
        async with rejects_are_refused(node_broker, stage.rejects):
            await publish(amqp, stage.exchange, b"invalid", delivery_mode=2)
            await stage.noticed(fault)
        fault.over()
        await stage.verify(fault, "the broker closes the channel (406)", "reconnects at once")
        for bridge in stage.bridges.values():
            assert "PRECONDITION_FAILED" in str(fault.lines(bridge, "broker lost")[0]["error"])
        for message in await take(amqp, stage.rejects, 2):
            assert message.body == b"invalid"
        assert await depth(amqp, stage.rejects) == 0


async def test_missing_permission_to_read_the_queue_ends_the_start(node_broker: PrivateNode) -> None:
    """Promise: if the permission to consume, or any other permission, is missing, the bridge ends at the start."""
    exchange, queue = unique("exchange"), unique("queue")
    url = await node_broker.user(read=f"^{exchange}$")
    variables = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", "BRIDGE_QUEUE": queue, "BRIDGE_REJECT_EXCHANGE": "off"}
    async with bridge_process(url, **variables) as process:
        assert await process.ended() == 3
        [line] = process.texts
        assert "lacks a permission" in line
        assert queue in line
    async with observer(node_broker.url) as amqp:
        channel = await amqp.channel()
        await channel.queue_delete(queue)
        await channel.exchange_delete(exchange)


async def readyz(port: int, status: int, *missing: str) -> dict[str, Any]:
    """Waits until `/readyz` answers with `status` and with exactly the sentences `missing`, and returns the body."""
    body = b""

    async def has() -> bool:
        nonlocal body
        now, body = await get(port, "/readyz")
        return now == status and orjson.loads(body)["missing"] == list(missing)

    await eventually(f"/readyz is {status}, {missing}", has)
    answer: dict[str, Any] = orjson.loads(body)
    return answer


@asynccontextmanager
async def memory_alarm(node: PrivateNode) -> AsyncIterator[None]:
    """Makes the broker report a memory alarm."""
    await node.ctl("set_vm_memory_high_watermark", "0.00001")
    try:
        yield
    finally:
        await node.ctl("set_vm_memory_high_watermark", "0.4")


async def test_broker_that_is_short_of_memory_is_consumed_from_and_rejected_events_are_held(
    node_broker: PrivateNode,
) -> None:
    """Promise: even if the broker has a memory alarm, clients get all updates.

    A rejected event is held, and `/readyz` has the broker's reason.
    """
    exchange, rejects = unique("exchange"), unique("rejects")
    variables = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", "BRIDGE_REJECT_EXCHANGE": rejects}
    async with bridge_process(node_broker.url, **variables) as process, observer(node_broker.url) as amqp:
        await process.consuming()
        port = await process.port()
        client = await RawClient.open(port)
        # The test waits until both connections are open: the alarm must block a connection for rejected events that is
        # already open.
        await readyz(port, 200)
        process.process.send_signal(signal.SIGSTOP)
        await publish(amqp, exchange, b"invalid", killmail(1))
        async with memory_alarm(node_broker):
            process.process.send_signal(signal.SIGCONT)
            assert orjson.loads(await client.text())["data"]["killmailId"] == 1
            body = await readyz(port, 503, "rejected events can't be published, and are held")
            assert body["rejects"]["waiting"] == 1
            assert "low on memory" in body["rejects"]["last_error"]
        since_s = time.monotonic()
        await readyz(port, 200)
        [message] = await take(amqp, rejects, 1)
        assert message.body == b"invalid"
        assert time.monotonic() - since_s <= RECOVERY_LIMIT_S
        assert await depth(amqp, rejects) == 0
        await client.close()
        channel = await amqp.channel()
        await channel.queue_delete(rejects)
        for name in (exchange, rejects):
            await channel.exchange_delete(name)
