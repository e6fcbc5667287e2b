"""If a permission is missing, the error of `edk-bridge rejects` names it, and no event is lost."""

from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from aio_pika.abc import AbstractConnection

from tests.support.broker.node import PASSWORD, PrivateNode
from tests.support.commands import ran
from tests.support.publishing import bind, numbers_in, observer, rejected
from tests.support.running import running, unique


async def removed(amqp: AbstractConnection, *names: str) -> None:
    """Deletes the queues and exchanges with these names."""
    channel = await amqp.channel()
    for name in names:
        await channel.queue_delete(name)
        await channel.exchange_delete(name)
    await channel.close()


@pytest.fixture
async def node(node_broker: PrivateNode) -> AsyncIterator[AbstractConnection]:
    async with observer(node_broker.url) as amqp:
        yield amqp


@pytest.mark.parametrize(
    "arguments",
    [
        ("list",),
        *(pytest.param(words, marks=pytest.mark.slow) for words in (("requeue", "--all"), ("purge", "--all", "--yes"))),
    ],
    ids=lambda words: words[0],
)
async def test_queue_that_may_not_be_read_is_named(
    node_broker: PrivateNode, node: AbstractConnection, arguments: tuple[str, ...]
) -> None:
    """Promise: the exit code is 3, one line names the missing permission, and the queue does not change."""
    await rejected(node, rejects := unique("rejects"), "kills", range(3))
    url = await node_broker.user(configure="^$", read="^$")
    ended = await ran("rejects", *arguments, BRIDGE_AMQP_URL=url, BRIDGE_REJECT_EXCHANGE=rejects)
    assert ended.code == 3
    assert ended.errors[-1].startswith(f"edk-bridge: the queue '{rejects}' can't be read: ACCESS_REFUSED")
    assert ended.errors[-1].endswith("grant read on this queue to the user of BRIDGE_AMQP_URL")
    assert PASSWORD not in "".join(ended.errors)
    assert await numbers_in(node, rejects) == [0, 1, 2]
    await removed(node, rejects)


async def test_exchange_that_may_not_be_written_to_keeps_its_events_and_no_others(
    node_broker: PrivateNode, node: AbstractConnection
) -> None:
    """Promise: the command requeues all events from exchanges to which the user may write.

    The other events stay in the queue, in their order. The error names the exchange of these events only once.
    """
    rejects, free, closed = unique("rejects"), unique("free"), unique("closed")
    for exchange in (free, closed):
        await bind(node, exchange, exchange)
    for first in range(0, 200, 20):
        await rejected(node, rejects, closed, range(first, first + 10))
        await rejected(node, rejects, free, range(first + 10, first + 20))
    url = await node_broker.user(configure="^$", write=f"^{free}$")
    ended = await ran("rejects", "requeue", "--all", BRIDGE_AMQP_URL=url, BRIDGE_REJECT_EXCHANGE=rejects)
    assert ended.code == 1
    kept, total = ended.errors
    assert kept.startswith(
        f"100 kept: the user of BRIDGE_AMQP_URL may not write to the exchange '{closed}': ACCESS_REF"
    )
    assert total == "100 events requeued, 100 kept"
    assert await numbers_in(node, free) == [n for n in range(200) if n % 20 >= 10]
    assert await numbers_in(node, rejects) == [n for n in range(200) if n % 20 < 10]
    await removed(node, rejects, free, closed)


@pytest.mark.slow
async def test_queue_that_the_bridge_declares_drops_no_event_that_is_listed(node_broker: PrivateNode) -> None:
    """Promise: `list` never removes an event, whatever the default queue type of the virtual host is."""
    host = unique("host")
    await node_broker.ctl("add_vhost", host, "--default-queue-type", "quorum")
    await node_broker.ctl("set_permissions", "-p", host, "guest", ".*", ".*", ".*")
    url = urlsplit(node_broker.url)._replace(path=f"/{host}").geturl()
    try:
        async with running(url, exchanges="kills=killmail", reject_exchange="rejects"), observer(url) as amqp:
            # This queue shows that the default queue type is quorum. If the default were classic, the test would prove
            # nothing.
            await (await amqp.channel()).declare_queue("other", durable=True)
            queues = await node_broker.ctl("list_queues", "-p", host, "name", "type")
    finally:
        await node_broker.ctl("delete_vhost", host)
    kinds = dict(line.split() for line in queues.splitlines() if line.startswith(("other", "rejects")))
    assert kinds == {"other": "quorum", "rejects": "classic"}


async def test_broker_that_is_stopped_ends_it_in_time_and_nothing_is_lost(
    node_broker: PrivateNode, node: AbstractConnection
) -> None:
    """Promise: if the broker does not answer within a few seconds, an error names its URL without the password."""
    await rejected(node, rejects := unique("rejects"), "kills", range(3))
    node_broker.pause()
    try:
        ended = await ran("rejects", "list", BRIDGE_AMQP_URL=node_broker.url, BRIDGE_REJECT_EXCHANGE=rejects)
    finally:
        node_broker.resume()
    assert ended.code == 1
    [line] = ended.errors
    assert line.endswith("does not answer within 5 s; BRIDGE_AMQP_URL (--amqp-url) names the broker")
    assert await numbers_in(node, rejects) == [0, 1, 2]
    await removed(node, rejects)
