"""The example `sse.js` delivers each update exactly once, however a stream of Server-Sent Events ends.

The example follows a scripted bridge, in Chromium and in Node with the package eventsource.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.support.browser import chromium
from tests.support.followers import (
    TAG,
    Follower,
    InBrowser,
    InNode,
    in_browser,
    in_node_with_events,
    updates_of,
)
from tests.support.scripted_events import ScriptedEvents, scripted_events
from tests.support.waiting import eventually

# All tests run in one event loop, so that one browser serves all of them.
pytestmark = pytest.mark.asyncio(loop_scope="module")

LONG_S = 60.0
"""A silence limit, or a pause, that no test reaches."""

SHORT_S = 0.7
"""A silence limit that is short enough for a test to reach it. A browser on a busy machine may take 0.3 s to
connect."""

GAP = {"since": "2024-10-22T10:30:00.000Z", "until": "2024-10-22T10:31:00.000Z", "reason": "broker-away"}

Following = Callable[..., AbstractAsyncContextManager[Any]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """Runs Chromium."""
    async with chromium() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def bridge() -> AsyncIterator[ScriptedEvents]:
    async with scripted_events() as running:
        yield running


@pytest.fixture(params=["browser", "node"])
def following(request: pytest.FixtureRequest, tmp_path: Path) -> Following:
    """Returns a function that runs the example with a URL."""
    if request.param == "node":
        node = request.getfixturevalue("node")
        return lambda url, silence_s=LONG_S, after="", **pauses_s: in_node_with_events(
            node, tmp_path, url, silence_s, pauses_s, after=after
        )
    browser = request.getfixturevalue("browser")
    return lambda url, silence_s=LONG_S, after="", **pauses_s: in_browser(
        browser, url, silence_s, pauses_s, after=after, example="sse.js"
    )


async def reported(follower: Follower, *words: Any) -> None:
    """Waits until the follower has reported a list that begins with `words`."""

    async def is_reported() -> bool:
        return list(words) in [report[: len(words)] for report in await follower.reports()]

    await eventually(f"the client reports {words}", is_reported)


async def count(follower: Follower, word: str) -> int:
    """Returns the number of reports that begin with `word`."""
    return [words[0] for words in await follower.reports()].count(word)


async def has(follower: Follower, *texts: bytes) -> None:
    """Waits until the follower has `len(texts)` updates, and checks that the updates are `texts`, in order."""

    async def is_had() -> bool:
        return len(await updates_of(follower)) >= len(texts)

    await eventually(f"the client has {len(texts)} updates", is_had)
    assert await updates_of(follower) == [orjson.loads(text) for text in texts]


async def connected(bridge: ScriptedEvents, times: int = 1) -> None:
    """Waits until clients have connected `times` times, and exactly one connection is open."""
    await eventually("the client is connected", lambda: len(bridge.asked) >= times and len(bridge.connections) == 1)


async def asked_again(bridge: ScriptedEvents, times: int) -> None:
    await eventually("the client has connected again", lambda: len(bridge.asked) >= times)


async def test_updates_arrive_exactly_once_although_the_stream_ends(
    bridge: ScriptedEvents, following: Following
) -> None:
    texts = []
    async with following(f"{bridge.url}?type=killmail&systemId=30000142") as follower:
        await connected(bridge)
        for times in range(2, 5):
            texts += [bridge.emit(number) for number in range(3)]
            await has(follower, *texts)
            bridge.drop()
            await reported(follower, "disconnected", 1006, "")
            texts += [bridge.emit(number) for number in range(3)]
            await connected(bridge, times)
        await has(follower, *texts)
        # EventSource itself reconnects, with the original URL and the last id in the header.
        assert {query for query, _ in bridge.asked} == {"type=killmail&systemId=30000142&after="}
        assert bridge.asked[1].last_event_id == f"3-{TAG}"
        assert not await count(follower, "missed")


@pytest.mark.parametrize("status", [502, 503, 404, 403])
async def test_client_begins_again_with_its_last_id_after_eventsource_has_given_up(
    bridge: ScriptedEvents, following: Following, status: int
) -> None:
    async with following(f"{bridge.url}?last=2") as follower:
        await connected(bridge)
        texts = [bridge.emit(number) for number in range(3)]
        await has(follower, *texts)
        bridge.refusal = status, "The server has no bridge.\n"
        bridge.drop()
        await reported(follower, "disconnected", 1006, f"{status}: The server has no bridge.")
        texts.append(bridge.emit(3))
        bridge.refusal = None
        await has(follower, *texts)
        assert bridge.asked[0] == ("last=2&after=", "")
        assert bridge.asked[-1] == (f"last=2&after=3-{TAG}", "")
        assert not await count(follower, "missed")


async def test_client_continues_after_a_restart_of_the_bridge(bridge: ScriptedEvents, following: Following) -> None:
    async with following(bridge.url) as follower:
        await connected(bridge)
        before = bridge.emit(1)
        await has(follower, before)
        await bridge.stop()
        await reported(follower, "disconnected", 1006, "")
        after = bridge.emit(2)
        await bridge.start()
        await has(follower, before, after)


@pytest.mark.parametrize("closing", [(1001, "the bridge is stopping"), (1013, "the bridge is full; reconnect later")])
async def test_close_message_is_reported_and_the_client_reconnects(
    bridge: ScriptedEvents, following: Following, closing: tuple[int, str]
) -> None:
    async with following(bridge.url) as follower:
        await connected(bridge)
        bridge.closing = closing
        bridge.drop()
        await reported(follower, "disconnected", *closing)
        await asked_again(bridge, 3)
        bridge.closing = None
        await has(follower, bridge.emit(1))
        ends = [words[1:] for words in await follower.reports() if words[0] == "disconnected"]
        assert ends[0] == [1006, ""]
        assert {tuple(end) for end in ends[1:]} == {closing}


async def test_own_messages_move_the_id(bridge: ScriptedEvents, following: Following) -> None:
    async with following(f"{bridge.url}?type=killmail") as follower:
        await reported(follower, "connected", f"0-{TAG}")
        bridge.send_gap(**GAP)
        await reported(follower, "missed", {**GAP, "id": f"1-{TAG}"})
        bridge.pass_by()
        bridge.beat(consuming=False)
        await reported(follower, "heartbeat", {"id": f"2-{TAG}", "consuming": False})
        bridge.drop()
        await asked_again(bridge, 2)
        assert bridge.asked[1].last_event_id == f"2-{TAG}"
        bridge.pass_by()
        bridge.send(b'{"type":"bridge.new","data":{"id":"3-%s"},"timestamp":1}' % TAG.encode())
        bridge.send(b'{"type":"bridge.new","data":null,"timestamp":1}')
        text = bridge.emit(1)
        await has(follower, text)
        bridge.refusal = 502, "Bad Gateway"
        bridge.drop()
        await reported(follower, "disconnected", 1006, "502: Bad Gateway")
        bridge.refusal = None
        await connected(bridge)
        assert bridge.asked[-1] == (f"type=killmail&after=4-{TAG}", "")
        # The gap is not reported again.
        assert await count(follower, "missed") == 1
        await has(follower, text, bridge.emit(2))


async def test_missing_updates_are_reported_and_the_kept_ones_follow(
    bridge: ScriptedEvents, following: Following
) -> None:
    async with following(bridge.url, after=f"17-{TAG}") as follower:
        await connected(bridge)
        assert bridge.asked == [(f"after=17-{TAG}", "")]
        await reported(follower, "missed", {"complete": False, "replayed": 0, "id": f"0-{TAG}"})
        await has(follower, bridge.emit(1))


async def test_client_begins_with_the_newest_updates_and_then_resumes(
    bridge: ScriptedEvents, following: Following
) -> None:
    texts = [bridge.emit(number) for number in range(5)]
    async with following(f"{bridge.url}?last=2") as follower:
        await has(follower, *texts[3:])
        bridge.drop()
        await asked_again(bridge, 2)
        await has(follower, *texts[3:], bridge.emit(5))
        assert bridge.asked[:2] == [("last=2&after=", ""), ("last=2&after=", f"5-{TAG}")]


async def test_silent_connection_is_dead_and_no_update_is_missed(bridge: ScriptedEvents, following: Following) -> None:
    async with following(bridge.url, SHORT_S) as follower:
        await connected(bridge)
        text = bridge.emit(1)
        await has(follower, text)
        await reported(follower, "disconnected", 1006, "")
        await asked_again(bridge, 2)
        assert bridge.asked[1] == (f"after=1-{TAG}", "")
        await has(follower, text, bridge.emit(2))
        # The client has closed the silent connection.
        await connected(bridge, 2)


async def test_connection_with_heartbeats_stays(bridge: ScriptedEvents, following: Following) -> None:
    async with following(bridge.url, SHORT_S) as follower:
        await connected(bridge)
        until = asyncio.get_running_loop().time() + 3 * SHORT_S
        beats = 0

        async def is_heard() -> bool:
            return await count(follower, "heartbeat") >= beats

        while asyncio.get_running_loop().time() < until:
            bridge.beat()
            beats += 1
            await eventually("the client has the heartbeat", is_heard)
        assert len(bridge.asked) == 1


async def test_pauses_grow_until_a_connection_has_lasted(bridge: ScriptedEvents, following: Following) -> None:
    bridge.refusal = 502, "Bad Gateway"
    async with following(bridge.url, FIRST_PAUSE=0.01, LONGEST_PAUSE=LONG_S, LASTING=LONG_S):
        await eventually("the client has tried often", lambda: len(bridge.asked) > 6)
    # A request follows each attempt, to find out the cause.
    assert bridge.diagnoses >= 6


async def test_wrong_path_is_reported(bridge: ScriptedEvents, following: Following) -> None:
    bridge.refusal = 200, "<!doctype html>"
    async with following(bridge.url) as follower:
        await reported(follower, "disconnected", 1006, "the server is not a bridge, or the path is wrong")


async def test_hidden_refusal_is_reported_as_a_possible_cause(bridge: ScriptedEvents, browser: Browser) -> None:
    bridge.refusal = 403, "Pages of this origin may not connect (BRIDGE_ALLOWED_ORIGINS)."
    bridge.cross_origin = False
    async with in_browser(browser, bridge.url, LONG_S, {}, example="sse.js") as follower:
        await reported(follower, "disconnected", 1006)
        [*_, reason] = (await follower.reports())[0]
        assert "BRIDGE_ALLOWED_ORIGINS" in reason


async def test_bridge_that_is_back_before_the_diagnosis_is_no_cause(
    bridge: ScriptedEvents, following: Following
) -> None:
    bridge.content_type = "application/json"
    async with following(bridge.url) as follower:
        await reported(follower, "disconnected", 1006, "")


async def test_stopped_client_does_not_reconnect(bridge: ScriptedEvents, following: Following) -> None:
    async with following(bridge.url, SHORT_S) as follower:
        await connected(bridge)
        await follower.stop()
        await eventually("the client is gone", lambda: not bridge.connections)
        if isinstance(follower, InNode):
            assert await follower.ended() == 0
        if isinstance(follower, InBrowser):
            assert await follower.last_id() == f"0-{TAG}"
    assert len(bridge.asked) == 1
