"""With a real bridge and a real broker, followers get each update exactly once, even if connections break.

The followers are the examples of `schemas/clients` in a browser, in Node and in Python, and `edk-bridge tail`. In a
browser and in Node, one example uses WebSocket, and one Server-Sent Events. The command uses either.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aio_pika.abc import AbstractConnection

from bridge.app import Bridge
from tests.support.broker.find import Broker
from tests.support.browser import chromium
from tests.support.followers import (
    Follower,
    in_browser,
    in_node,
    in_node_with_events,
    in_python,
    in_tail,
    updates_of,
)
from tests.support.killmail import killmail
from tests.support.proxy import Proxy, proxy
from tests.support.publishing import publish
from tests.support.running import port_of, running, sample
from tests.support.waiting import eventually

LONG_S = 60.0
"""A silence limit that no test reaches."""

SHORT_S = 0.5
JITA, AMARR = 30000142, 30002187

Following = Callable[..., AbstractAsyncContextManager[Follower]]


EXAMPLES = "browser", "node", "python", "events in browser", "events in node"
"""The followers other than the command, which does not report heartbeats and has an option instead of `?last=`."""


WAITS_FOR_RETRY = ("events in browser", "tail --sse")
"""The clients that reconnect after the bridge's `retry`: 1 to 5 seconds."""


@pytest.fixture(
    params=[
        pytest.param(name, marks=[pytest.mark.slow] if name in WAITS_FOR_RETRY else [])
        for name in (*EXAMPLES, "tail", "tail --sse")
    ]
)
def following(request: pytest.FixtureRequest, tmp_path: Path) -> Following:
    """Returns a function that runs a follower with a URL and a silence limit."""
    if request.param == "tail":
        return lambda url, silence_s=LONG_S: in_tail(url, pauses=f"0.02, 0.1, 0.0, {silence_s}")
    if request.param == "tail --sse":
        return lambda url, silence_s=LONG_S: in_tail("--sse", url, timing=f"silence_s={silence_s}")
    if request.param == "python":
        return lambda url, silence_s=LONG_S: in_python(url, silence_s, {})
    if request.param == "node":
        node = request.getfixturevalue("node")
        return lambda url, silence_s=LONG_S: in_node(node, tmp_path, url, silence_s, {})
    if request.param == "events in node":
        node = request.getfixturevalue("node")
        return lambda url, silence_s=LONG_S: in_node_with_events(node, tmp_path, http(url), silence_s, {})
    if request.param == "events in browser":
        return lambda url, silence_s=LONG_S: _in_own_browser(http(url), silence_s, "sse.js")
    return lambda url, silence_s=LONG_S: _in_own_browser(url, silence_s, "browser.js")


@asynccontextmanager
async def _in_own_browser(url: str, silence_s: float, example: str) -> AsyncIterator[Follower]:
    async with chromium() as browser, in_browser(browser, url, silence_s, {}, example=example) as follower:
        yield follower


def http(url: str) -> str:
    """Returns the URL for Server-Sent Events."""
    return url.replace("ws://", "http://")


def url_of(bridge: Bridge, query: str = "") -> str:
    return f"ws://127.0.0.1:{port_of(bridge)}/updates{query}"


@asynccontextmanager
async def proxy_to(bridge: Bridge) -> AsyncIterator[tuple[Proxy, str]]:
    """Yields a proxy that can break connections, and the URL of the bridge behind it."""
    # The proxy requires a URL with a password, although the bridge has no password.
    async with proxy(f"ws://any:one@127.0.0.1:{port_of(bridge)}/updates") as running_proxy:
        await running_proxy.open()
        yield running_proxy, f"ws://127.0.0.1:{urlsplit(running_proxy.url).port}/updates"


async def connected(bridge: Bridge) -> None:
    def count() -> float:
        return sum(sample(bridge, "bridge_connections", transport=transport) for transport in ("websocket", "sse"))

    await eventually("the client is connected", lambda: count() == 1)


async def has(follower: Follower, *killmail_ids: int) -> None:
    """Checks that the follower gets exactly the killmails `killmail_ids`, in order, each with a different id."""

    async def is_had() -> bool:
        return len(await updates_of(follower)) >= len(killmail_ids)

    await eventually(f"the client has {len(killmail_ids)} updates", is_had)
    updates = await updates_of(follower)
    assert [update["data"]["killmailId"] for update in updates] == list(killmail_ids)
    assert len({update["id"] for update in updates}) == len(updates)
    assert {tuple(update) for update in updates} == {("type", "data", "timestamp", "id")}


async def reported(follower: Follower, *words: str) -> None:
    """Waits until the follower has made a report that begins with one of the words."""

    async def is_reported() -> bool:
        return any(report[0] in words for report in await follower.reports())

    await eventually(f"the client reports {words}", is_reported)


async def test_no_update_is_missed_when_connections_are_cut(
    broker: Broker, amqp: AbstractConnection, exchange: str, following: Following
) -> None:
    async with (
        running(broker.url, exchanges=f"{exchange}=killmail") as bridge,
        proxy_to(bridge) as (proxy, url),
        following(url) as follower,
    ):
        await connected(bridge)
        await publish(amqp, exchange, killmail(1), killmail(2))
        await has(follower, 1, 2)
        for first in range(3, 30, 3):
            proxy.cut()
            await publish(amqp, exchange, *(killmail(first + n) for n in range(3)))
        await has(follower, *range(1, 30))
        assert "missed" not in [words[0] for words in await follower.reports()]


async def test_no_update_is_missed_while_a_connection_is_dead(
    broker: Broker, amqp: AbstractConnection, exchange: str, following: Following
) -> None:
    flags = {"exchanges": f"{exchange}=killmail", "ping_interval": "100ms", "heartbeat_interval": "100ms"}
    async with (
        running(broker.url, **flags) as bridge,
        proxy_to(bridge) as (proxy, url),
        following(url, SHORT_S) as follower,
    ):
        await connected(bridge)
        await publish(amqp, exchange, killmail(1))
        await has(follower, 1)
        proxy.hold()
        await publish(amqp, exchange, killmail(2), killmail(3))
        accepted = proxy.accepted
        await eventually("the client has tried again", lambda: proxy.accepted > accepted)
        # The test ends the old connection first, so that the held updates do not arrive on the old connection.
        proxy.cut()
        proxy.release()
        await has(follower, 1, 2, 3)
        await publish(amqp, exchange, killmail(4))
        await has(follower, 1, 2, 3, 4)


async def test_filter_still_applies_after_a_lost_connection(
    broker: Broker, amqp: AbstractConnection, exchange: str, following: Following
) -> None:
    async with (
        running(broker.url, exchanges=f"{exchange}=killmail") as bridge,
        proxy_to(bridge) as (proxy, url),
        following(f"{url}?type=killmail&systemId={JITA}") as follower,
    ):
        await connected(bridge)
        await publish(amqp, exchange, killmail(1, systemId=AMARR), killmail(2, systemId=JITA))
        await has(follower, 2)
        proxy.cut()
        await publish(amqp, exchange, killmail(3, systemId=JITA), killmail(4, systemId=AMARR))
        await publish(amqp, exchange, killmail(5, systemId=JITA))
        await has(follower, 2, 3, 5)


async def test_restart_of_a_bridge_without_history_is_reported(
    broker: Broker, amqp: AbstractConnection, exchange: str, following: Following
) -> None:
    flags = {"exchanges": f"{exchange}=killmail"}
    async with AsyncExitStack() as after:
        async with running(broker.url, **flags) as bridge:
            follower = await after.enter_async_context(following(url_of(bridge)))
            await connected(bridge)
            await publish(amqp, exchange, killmail(1))
            await has(follower, 1)
        async with running(broker.url, **flags, port=port_of(bridge)) as bridge:
            await connected(bridge)
            await publish(amqp, exchange, killmail(2))
            await has(follower, 1, 2)
            await reported(follower, "missed")


async def test_no_update_is_missed_when_a_bridge_with_history_restarts(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, following: Following
) -> None:
    flags = {"exchanges": f"{exchange}=killmail", "history": "stream", "history_stream": queue}
    async with AsyncExitStack() as after:
        async with running(broker.url, **flags) as bridge:
            follower = await after.enter_async_context(following(url_of(bridge)))
            await connected(bridge)
            await publish(amqp, exchange, killmail(1))
            await has(follower, 1)
        await publish(amqp, exchange, killmail(2), killmail(3))
        async with running(broker.url, **flags, port=port_of(bridge)) as bridge:
            await has(follower, 1, 2, 3)
            await publish(amqp, exchange, killmail(4))
            await has(follower, 1, 2, 3, 4)
            assert "missed" not in [words[0] for words in await follower.reports()]


async def test_client_continues_with_another_bridge_on_the_same_history(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, following: Following
) -> None:
    flags = {"exchanges": f"{exchange}=killmail", "history": "stream", "history_stream": queue}
    async with (
        running(broker.url, **flags) as one,
        running(broker.url, **flags) as other,
        proxy_to(one) as (proxy, url),
        following(url) as follower,
    ):
        await connected(one)
        await publish(amqp, exchange, killmail(1))
        await has(follower, 1)
        proxy._target = "127.0.0.1", port_of(other)
        proxy.cut()
        await publish(amqp, exchange, killmail(2))
        await has(follower, 1, 2)
        await connected(other)
        assert "missed" not in [words[0] for words in await follower.reports()]


@pytest.mark.parametrize("following", EXAMPLES, indirect=True)
async def test_gap_is_reported_once(
    broker: Broker, amqp: AbstractConnection, exchange: str, following: Following
) -> None:
    async with proxy(broker.url) as tunnel:
        await tunnel.open()
        async with (
            running(tunnel.url, exchanges=f"{exchange}=killmail") as bridge,
            proxy_to(bridge) as (line, url),
            following(url) as follower,
        ):
            await connected(bridge)
            tunnel.cut()
            await reported(follower, "missed")
            # No update follows the gap, so the client reconnects with the id of the gap.
            line.cut()
            await eventually("the bridge consumes again", lambda: bridge.readiness.report()[0])
            await publish(amqp, exchange, killmail(1))
            await has(follower, 1)
            [[_, gap]] = [words for words in await follower.reports() if words[0] == "missed"]
            assert gap["reason"] == "broker-away"


async def test_filter_with_an_unknown_member_is_refused(broker: Broker, exchange: str, following: Following) -> None:
    async with (
        running(broker.url, exchanges=f"{exchange}=killmail") as bridge,
        following(url_of(bridge, "?systemID=1")) as follower,
    ):
        # A script in a browser can't see a refusal, only a lost connection.
        await reported(follower, "disconnected", "refused")


@pytest.mark.parametrize("following", EXAMPLES, indirect=True)
async def test_client_begins_with_the_newest_updates(
    broker: Broker, amqp: AbstractConnection, exchange: str, following: Following
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        await publish(amqp, exchange, *(killmail(number) for number in range(1, 6)))
        await eventually("the bridge has the updates", lambda: sample(bridge, "bridge_update_log_updates") == 5)
        async with proxy_to(bridge) as (proxy, url), following(f"{url}?last=2") as follower:
            await has(follower, 4, 5)
            proxy.cut()
            await publish(amqp, exchange, killmail(6))
            await has(follower, 4, 5, 6)
            assert "missed" not in [words[0] for words in await follower.reports()]


@pytest.mark.parametrize("flags", [[], ["--sse"]], ids=["websocket", "sse"])
async def test_tail_begins_with_the_newest_updates(
    broker: Broker, amqp: AbstractConnection, exchange: str, flags: list[str]
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        await publish(amqp, exchange, *(killmail(number) for number in range(1, 6)))
        await eventually("the bridge has the updates", lambda: sample(bridge, "bridge_update_log_updates") == 5)
        async with proxy_to(bridge) as (proxy, url), in_tail(*flags, "--last", "2", url) as follower:
            await has(follower, 4, 5)
            proxy.cut()
            await publish(amqp, exchange, killmail(6))
            await has(follower, 4, 5, 6)
            assert [words for words in await follower.reports() if words[0] != "update"] == []


@pytest.mark.parametrize("following", EXAMPLES, indirect=True)
async def test_client_with_a_rare_filter_keeps_a_recent_id(
    broker: Broker, amqp: AbstractConnection, exchange: str, following: Following
) -> None:
    """The log of this bridge keeps about 300 updates."""
    flags = {"exchanges": f"{exchange}=killmail", "log_bytes": "64KiB", "max_message_bytes": "4KiB"}
    async with (
        running(broker.url, **flags, heartbeat_interval="100ms") as bridge,
        proxy_to(bridge) as (proxy, url),
        following(f"{url}?systemId={JITA}") as follower,
    ):
        await connected(bridge)
        for first in (0, 250, 500):
            await publish(amqp, exchange, *(killmail(first + number, systemId=AMARR) for number in range(250)))
            await eventually("the bridge has the updates", partial(_has_sent, bridge, first + 250))
            # The id of the second heartbeat is read after these updates.
            await heartbeats(follower, 2)
        proxy.cut()
        await publish(amqp, exchange, killmail(1000, systemId=JITA))
        await has(follower, 1000)
        assert "missed" not in [words[0] for words in await follower.reports()]


def _has_sent(bridge: Bridge, count: int) -> bool:
    return sample(bridge, "bridge_updates_total", type="killmail") == count


async def heartbeats(follower: Follower, more: int) -> None:
    """Waits until the follower has received `more` heartbeats."""

    async def count() -> int:
        return [words[0] for words in await follower.reports()].count("heartbeat")

    async def is_reached() -> bool:
        return await count() >= enough

    enough = await count() + more
    await eventually("heartbeats have come", is_reached)
