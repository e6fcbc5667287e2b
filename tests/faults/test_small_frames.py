"""If a broker accepts only small frames, rejected events are still published, and name the omitted headers."""

from collections.abc import Iterator

import orjson
import pytest
from pamqp.common import FieldTable

from tests.support.broker.find import NoBroker, find_server
from tests.support.broker.node import PrivateNode
from tests.support.broker.session import say, unavailable
from tests.support.clients import RawClient
from tests.support.killmail import killmail
from tests.support.publishing import observer, publish, take
from tests.support.running import port_of, running, sample, unique

pytestmark = pytest.mark.slow

FRAME_MAX = 8192
"""The smallest frame size that RabbitMQ's configuration allows."""


@pytest.fixture(scope="module")
def small_frames_node() -> Iterator[PrivateNode]:
    try:
        node = PrivateNode(find_server(say, may_install=False), {"frame_max": str(FRAME_MAX)})
    except NoBroker as error:
        unavailable(str(error))
    node.start()
    yield node
    node.stop()


async def test_rejected_event_with_headers_that_just_fit_is_published_without_the_largest(
    small_frames_node: PrivateNode,
) -> None:
    """The event's headers fit into a frame, but not together with the headers that the bridge adds to a rejected event.

    If a frame is too large, the broker closes the connection.
    """
    exchange, rejects = unique("exchange"), unique("rejects")
    url = small_frames_node.url
    async with (
        observer(url) as amqp,
        running(url, exchanges=f"{exchange}=killmail", reject_exchange=rejects) as bridge,
    ):
        large: FieldTable = {"trace": "x" * 6200, "source": "y" * 1700, "fetcher": "f-1"}
        await publish(amqp, exchange, b"invalid", headers=large)
        [message] = await take(amqp, rejects, 1)
        assert message.headers["x-reject-reason"] == "not-json"
        assert str(message.headers["x-reject-headers"]).endswith(": trace")
        assert {name: message.headers.get(name) for name in large} == {**large, "trace": None}
        assert sample(bridge, "bridge_broker_connection_attempts_total") == 1
        client = await RawClient.open(port_of(bridge))
        await publish(amqp, exchange, killmail(1, padding="z" * 20_000), headers=large)
        assert orjson.loads(await client.text())["data"]["killmailId"] == 1
        await client.close()
        channel = await amqp.channel()
        await channel.queue_delete(rejects)
        for name in (exchange, rejects):
            await channel.exchange_delete(name)
