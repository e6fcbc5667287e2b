"""The bridge declares classic queues, whatever the default queue type is.

The bridge warns if a queue has a delivery limit.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aio_pika.abc import AbstractConnection
from pamqp.common import FieldTable

from bridge.amqp.consume.delivery_counts import WARNED
from bridge.timing import Timing
from tests.support.broker.find import Broker
from tests.support.broker.node import PrivateNode
from tests.support.documentation import adapted, code_block
from tests.support.proxy import proxy
from tests.support.publishing import observer, publish, take
from tests.support.running import consumer_of, running, unique
from tests.support.waiting import eventually


@asynccontextmanager
async def virtual_host(node: PrivateNode, default_queue_type: str) -> AsyncIterator[str]:
    """Creates a virtual host with this default queue type, and yields its URL on the node.

    RabbitMQ 3.10 ignores the default queue type.
    """
    name = unique("host")
    metadata = {"description": "", "tags": [], "default_queue_type": default_queue_type}
    rights = {"configure": ".*", "write": ".*", "read": ".*"}
    await node.define(
        {
            "vhosts": [{"name": name, "metadata": metadata, "default_queue_type": default_queue_type}],
            "permissions": [{"user": "guest", "vhost": name, **rights}],
        }
    )
    try:
        yield urlsplit(node.url)._replace(path=f"/{name}").geturl()
    finally:
        await node.ctl("delete_vhost", name)


async def test_queues_that_the_bridge_declares_are_classic_whatever_the_default_is(node_broker: PrivateNode) -> None:
    async with virtual_host(node_broker, "quorum") as url:
        host = urlsplit(url).path[1:]
        async with (
            running(url, queue="kept", reject_exchange="rejected"),
            running(url, reject_exchange="off"),
            running(url, history="stream", reject_exchange="off"),
        ):
            listed = json.loads(await node_broker.ctl("list_queues", "-p", host, "--formatter", "json", "name", "type"))
    types = {row["name"].partition("gen-")[0]: row["type"] for row in listed}
    assert types == {"kept": "classic", "rejected": "classic", "amq.": "classic", "bridge.history": "stream"}


QUORUM: FieldTable = {"x-queue-type": "quorum"}
OF_ONE: FieldTable = {"x-max-length": 1, "x-overflow": "reject-publish"}


async def test_event_that_a_quorum_queue_may_drop_soon_is_warned_of(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, rejects: str
) -> None:
    """Each time the connection is lost, a held event returns to its queue.

    The queue counts how often the event returns.
    """
    channel = await amqp.channel()
    await channel.declare_queue(queue, durable=True, arguments=QUORUM)
    # The queue is full until the test purges it. The test does not delete the full queue, because the broker would then
    # confirm an event that is on its way to the queue.
    full = await channel.declare_queue(rejects, durable=True, arguments=OF_ONE)
    await full.bind(await channel.declare_exchange(rejects, "fanout", durable=True))
    await publish(amqp, rejects, b"old")
    flags = {"exchanges": f"{exchange}=killmail", "queue": queue, "reject_exchange": rejects}
    async with proxy(broker.url) as tunnel:
        await tunnel.open()
        async with running(tunnel.url, Timing(check_interval_s=0.1), **flags) as bridge:

            def warnings() -> object:
                return bridge.readiness.report()[1]["warnings"]

            await publish(amqp, exchange, b"invalid")
            for _ in range(WARNED):
                await eventually("the event is held", lambda: bridge._rejects.waiting == 1)
                assert warnings() == []
                accepted = tunnel.accepted
                tunnel.cut()
                await eventually("the bridge is connected again", lambda: tunnel.accepted > accepted + 1)  # noqa: B023 - the wait ends within this iteration
                # The test waits for an answer, because a connection that ends without any answer would cause a
                # different warning.
                await eventually(
                    "the broker answers", lambda: (check := consumer_of(bridge)._topology_check) and check.answered
                )
            await eventually("the bridge warns", warnings)
            assert f"was delivered {WARNED} times before" in str(warnings())
            await full.purge()
            await eventually("the warning ends", lambda: not warnings())
            await eventually("no event is held", lambda: bridge._rejects.waiting == 0)
        [message] = await take(amqp, rejects, 1)
        assert message.body == b"invalid"
    await channel.close()


async def test_policy_in_the_documentation_removes_the_delivery_limit(node_broker: PrivateNode) -> None:
    if (await node_broker.ctl("version")).startswith("3."):
        # This test can never run with RabbitMQ 3, which by default has no delivery limit and refuses the value -1.
        pytest.skip("quorum queues have a default delivery limit from RabbitMQ 4.0 on")
    async with observer(node_broker.url) as amqp:
        channel = await amqp.channel()
        await channel.declare_queue("killmails.bridge", durable=True, arguments=QUORUM)
        try:
            command = adapted(code_block("bridge/amqp/README.md", "Queue types"), ("rabbitmqctl", '"$RABBITMQCTL"'))
            await node_broker.script(Path("/bin/sh"), "-ec", command)
            columns = ("name", "effective_policy_definition")
            queues = json.loads(await node_broker.ctl("list_queues", "--formatter", "json", *columns))
            policies = {queue["name"]: queue["effective_policy_definition"] for queue in queues}
            assert dict(policies["killmails.bridge"]) == {"delivery-limit": -1}
        finally:
            await channel.queue_delete("killmails.bridge")
            await node_broker.ctl("clear_policy", "bridge")
