"""The examples in `schemas/clients` deliver each update exactly once, however a connection ends.

All three examples follow a scripted bridge, which fails in the way and at the time that the test chooses.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from http import HTTPStatus
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
    ScriptedBridge,
    in_browser,
    in_node,
    in_python,
    python_client,
    scripted_bridge,
    updates_of,
)
from tests.support.waiting import LIMIT_S, eventually

# All tests run in one event loop, so that one browser serves all of them.
pytestmark = pytest.mark.asyncio(loop_scope="module")

LONG_S = 60.0
"""A silence limit that no test reaches."""

SHORT_S = 0.7
"""A silence limit that is short enough for a test to reach it. A browser on a busy machine may take 0.3 s to open a
socket."""

Following = Callable[..., AbstractAsyncContextManager[Any]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """Runs Chromium."""
    async with chromium() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def bridge() -> AsyncIterator[ScriptedBridge]:
    """Runs a scripted bridge that pings often."""
    async with scripted_bridge(ping_interval_s=0.05) as running:
        yield running


@pytest.fixture(params=["browser", "node", "python"])
def following(request: pytest.FixtureRequest, tmp_path: Path) -> Following:
    """Returns a function that runs one of the examples with a URL."""
    if request.param == "python":
        return lambda url, silence_s=LONG_S, after="", **pauses_s: in_python(url, silence_s, pauses_s, after=after)
    if request.param == "node":
        node = request.getfixturevalue("node")
        return lambda url, silence_s=LONG_S, after="", **pauses_s: in_node(
            node, tmp_path, url, silence_s, pauses_s, after=after
        )
    browser = request.getfixturevalue("browser")
    return lambda url, silence_s=LONG_S, after="", **pauses_s: in_browser(
        browser, url, silence_s, pauses_s, after=after
    )


async def reported(follower: Follower, *words: Any) -> None:
    """Waits until the follower has reported a list that begins with `words`."""

    async def is_reported() -> bool:
        return list(words) in [report[: len(words)] for report in await follower.reports()]

    await eventually(f"the client reports {words}", is_reported)


async def has(follower: Follower, *texts: bytes) -> None:
    """Waits until the follower has `len(texts)` updates, and checks that the updates are `texts`, in order."""

    async def is_had() -> bool:
        return len(await updates_of(follower)) >= len(texts)

    await eventually(f"the client has {len(texts)} updates", is_had)
    assert await updates_of(follower) == [orjson.loads(text) for text in texts]


async def connected(bridge: ScriptedBridge, times: int = 1) -> None:
    """Waits until clients have connected `times` times, and exactly one connection is open."""
    await eventually("the client is connected", lambda: len(bridge.asked) >= times and len(bridge.connections) == 1)


async def test_updates_arrive_exactly_once_after_every_kind_of_end(
    bridge: ScriptedBridge, following: Following
) -> None:
    texts = []
    async with following(f"{bridge.url}?type=killmail&systemId=30000142") as follower:
        await connected(bridge)
        assert bridge.asked == ["type=killmail&systemId=30000142&after="]
        texts += [bridge.emit(number) for number in range(3)]
        for code in (None, 1001, 1011, 4008, 4009):
            await has(follower, *texts)
            if code is None:
                bridge.drop()
            else:
                await bridge.close(code)
            await reported(follower, "disconnected", code or 1006)
            texts += [bridge.emit(f"{code} {number}") for number in range(3)]
        await has(follower, *texts)
        assert bridge.asked[1].endswith(f"&after=3-{TAG}")
        assert [words for words in await follower.reports() if words[0] == "missed"] == []


async def test_client_continues_after_a_restart_of_the_bridge(bridge: ScriptedBridge, following: Following) -> None:
    async with following(bridge.url) as follower:
        await connected(bridge)
        before = bridge.emit(1)
        await has(follower, before)
        await bridge.stop()
        await reported(follower, "disconnected", 1001)
        await eventually("a second attempt has failed", lambda: _lost(follower, 2))
        after = bridge.emit(2)
        await bridge.start()
        await has(follower, before, after)


async def _lost(follower: Follower, times: int) -> bool:
    return [words[0] for words in await follower.reports()].count("disconnected") >= times


async def test_client_without_any_update_yet_misses_none(bridge: ScriptedBridge, following: Following) -> None:
    bridge.emit("before it connects")
    async with following(bridge.url) as follower:
        await reported(follower, "connected", f"1-{TAG}")
        bridge.drop()
        await reported(follower, "disconnected", 1006)
        await has(follower, bridge.emit("while it is disconnected"))
        assert bridge.asked[:2] == ["after=", f"after=1-{TAG}"]


async def test_program_that_ended_before_its_first_update_resumes_after_the_reported_id(
    bridge: ScriptedBridge, following: Following
) -> None:
    bridge.emit("before it connects")
    async with following(bridge.url) as follower:
        await reported(follower, "connected")
        [[_, last_id]] = await follower.reports()
    await eventually("the client is gone", lambda: not bridge.connections)
    text = bridge.emit("before it runs again")
    async with following(bridge.url, after=last_id) as follower:
        await has(follower, text)


async def test_missing_updates_are_reported_and_the_kept_ones_follow(
    bridge: ScriptedBridge, following: Following
) -> None:
    async with following(bridge.url) as follower:
        await connected(bridge)
        had = bridge.emit(1)
        await has(follower, had)
        await bridge.stop()
        bridge.emit(2)
        bridge.forget()
        kept = bridge.emit(3)
        await bridge.start()
        await has(follower, had, kept)
        await reported(follower, "missed", {"complete": False, "replayed": 1, "id": f"2-{TAG}"})
        gap = {"since": "2024-10-22T10:30:00.000Z", "until": "2024-10-22T10:31:00.000Z", "reason": "broker-away"}
        bridge.send_gap(**gap)
        bridge.say(b'{"type":"of a newer bridge","data":{},"timestamp":1}')
        await has(follower, had, kept, bridge.emit(4))
        [[_, reported_gap]] = [words for words in await follower.reports() if words[0] == "missed"][1:]
        assert reported_gap == {**gap, "id": f"4-{TAG}"}


async def test_gap_is_reported_once(bridge: ScriptedBridge, following: Following) -> None:
    async with following(bridge.url) as follower:
        await connected(bridge)
        before = bridge.emit(1)
        gap = {"since": "2024-10-22T10:30:00.000Z", "until": "2024-10-22T10:31:00.000Z", "reason": "broker-away"}
        bridge.send_gap(**gap)
        await reported(follower, "missed")
        bridge.drop()
        await eventually("the client has connected again", lambda: len(bridge.asked) > 1)
        await has(follower, before, bridge.emit(2))
        assert bridge.asked[1] == f"after=2-{TAG}"
        assert [words[0] for words in await follower.reports()].count("missed") == 1


async def test_heartbeat_is_reported_and_its_id_replaces_an_older_one(
    bridge: ScriptedBridge, following: Following
) -> None:
    async with following(f"{bridge.url}?type=killmail") as follower:
        await reported(follower, "connected", f"0-{TAG}")
        bridge.pass_by()
        bridge.beat()
        await reported(follower, "heartbeat", {"id": f"1-{TAG}", "consuming": True})
        bridge.beat(consuming=False)
        await reported(follower, "heartbeat", {"id": f"1-{TAG}", "consuming": False})
        bridge.drop()
        await reported(follower, "disconnected", 1006)
        # Without the id of the heartbeat, the client would miss this update: the bridge does not keep older ids.
        bridge.forget()
        await has(follower, bridge.emit(1))
        assert bridge.asked[1] == f"type=killmail&after=1-{TAG}"
        assert "missed" not in [words[0] for words in await follower.reports()]


@pytest.mark.parametrize("data", [b'{"id":"2-%s","new":[1]}' % TAG.encode(), b"{}", b"null", b'"text"', b"[1]"])
async def test_id_of_an_unknown_own_message_replaces_an_older_one(
    bridge: ScriptedBridge, following: Following, data: bytes
) -> None:
    async with following(bridge.url) as follower:
        await reported(follower, "connected", f"0-{TAG}")
        had = bridge.emit(1)
        bridge.pass_by()
        bridge.say(b'{"type":"bridge.new","data":%s,"timestamp":1}' % data)
        bridge.drop()
        await eventually("the client has connected again", lambda: len(bridge.asked) > 1)
        assert bridge.asked[1] == (f"after=2-{TAG}" if b"id" in data else f"after=1-{TAG}")
        await has(follower, had, bridge.emit(3))


async def test_client_begins_with_the_newest_updates_and_then_resumes(
    bridge: ScriptedBridge, following: Following
) -> None:
    texts = [bridge.emit(number) for number in range(5)]
    async with following(f"{bridge.url}?last=2") as follower:
        await has(follower, *texts[3:])
        assert bridge.asked == ["last=2&after="]
        bridge.drop()
        await reported(follower, "disconnected", 1006)
        texts.append(bridge.emit(5))
        await has(follower, *texts[3:])
        assert bridge.asked[1] == f"last=2&after=5-{TAG}"
        assert "missed" not in [words[0] for words in await follower.reports()]
        await bridge.stop()
        bridge.emit("never received")
        bridge.forget()
        texts += [bridge.emit(number) for number in (6, 7, 8)]
        await bridge.start()
        # The id is too old, so that the client begins with the newest updates again.
        await has(follower, *texts[3:6], *texts[7:])
        await reported(follower, "missed", {"complete": False, "replayed": 2, "id": f"8-{TAG}"})


async def test_client_begins_with_everything_that_is_kept(bridge: ScriptedBridge, following: Following) -> None:
    texts = [bridge.emit(number) for number in range(3)]
    async with following(bridge.url, after="earliest") as follower:
        await has(follower, *texts)
        bridge.drop()
        await reported(follower, "disconnected", 1006)
        await has(follower, *texts, bridge.emit(3))
        assert bridge.asked == ["after=earliest", f"after=3-{TAG}"]


async def test_dead_connection_is_detected_and_no_update_is_missed(
    bridge: ScriptedBridge, following: Following
) -> None:
    async with following(bridge.url, SHORT_S) as follower:
        await connected(bridge)
        before = bridge.emit(1)
        await has(follower, before)
        bridge.mute()
        meanwhile = [bridge.emit(number) for number in range(2, 5)]
        await has(follower, before, *meanwhile)
        await has(follower, before, *meanwhile, bridge.emit(5))


async def test_silent_connection_is_reported_as_lost(following: Following) -> None:
    # This bridge does not ping, because the client in Node sees pings.
    async with scripted_bridge() as silent, following(silent.url, SHORT_S) as follower:
        await reported(follower, "connected")
        await reported(follower, "disconnected")
        await eventually("the client has connected again", lambda: len(silent.asked) > 1)


async def test_connection_with_heartbeats_stays(bridge: ScriptedBridge, following: Following) -> None:
    async with following(bridge.url, SHORT_S) as follower:
        await connected(bridge)
        until = asyncio.get_running_loop().time() + 3 * SHORT_S
        beats = 0

        async def is_heard() -> bool:
            return [words[0] for words in await follower.reports()].count("heartbeat") >= beats

        while asyncio.get_running_loop().time() < until:
            bridge.beat()
            beats += 1
            await eventually("the client has the heartbeat", is_heard)
        await has(follower, bridge.emit(1))
        assert len(bridge.asked) == 1


async def test_pauses_grow_until_a_connection_has_lasted(bridge: ScriptedBridge, following: Following) -> None:
    bridge.closing = 1011
    began_at = asyncio.get_running_loop().time()
    async with following(bridge.url, FIRST_PAUSE=0.01, LONGEST_PAUSE=LONG_S, LASTING=LONG_S):
        await eventually("the client has tried often", lambda: len(bridge.asked) > 8)
        # The eight pauses together take at least half of 10 ms + 20 ms + 40 ms + ... + 1280 ms.
        assert asyncio.get_running_loop().time() - began_at >= 0.005 * 255


async def test_pauses_are_short_again_after_a_connection_that_has_lasted(
    bridge: ScriptedBridge, following: Following
) -> None:
    async with following(bridge.url, FIRST_PAUSE=0.01, LONGEST_PAUSE=LONG_S, LASTING=0.0):
        # If the pauses never became short again, they would take more than a minute.
        for times in range(1, 16):
            await connected(bridge, times)
            bridge.drop()
            await eventually("the client is gone", lambda: not bridge.connections or len(bridge.asked) > times)  # noqa: B023 - the wait ends within this iteration


async def test_pauses_grow_again_after_a_connection_that_has_lasted(
    bridge: ScriptedBridge, following: Following
) -> None:
    async with following(bridge.url, FIRST_PAUSE=0.01, LONGEST_PAUSE=LONG_S, LASTING=0.0):
        await connected(bridge)
        bridge.closing = 1011
        began_at = asyncio.get_running_loop().time()
        bridge.drop()
        await eventually("the client has tried often", lambda: len(bridge.asked) > 8)
        assert asyncio.get_running_loop().time() - began_at >= 0.005 * 255


async def test_client_waits_longer_after_a_bridge_was_full(bridge: ScriptedBridge, following: Following) -> None:
    bridge.closing = 1013
    async with following(bridge.url, FIRST_PAUSE=0.1, LONGEST_PAUSE=LONG_S, LASTING=LONG_S) as follower:
        await reported(follower, "disconnected", 1013)
        bridge.closing = None
        await reported(follower, "connected")
        # The pause for a full bridge is at least four times FIRST_PAUSE.
        assert bridge.asked_at[1] - bridge.asked_at[0] >= 0.4


async def test_stopped_client_does_not_reconnect(bridge: ScriptedBridge, following: Following) -> None:
    async with following(bridge.url, SHORT_S) as follower:
        await connected(bridge)
        await follower.stop()
        await eventually("the client is gone", lambda: not bridge.connections)
        until = asyncio.get_running_loop().time() + 2 * SHORT_S
        await eventually("the silence limit has passed", lambda: asyncio.get_running_loop().time() > until)
        if isinstance(follower, InNode):
            assert await follower.ended() == 0
    assert len(bridge.asked) == 1


@pytest.mark.parametrize("status", [HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN])
async def test_refusal_ends_a_client_with_the_bridges_own_sentence(
    bridge: ScriptedBridge, following: Following, status: HTTPStatus
) -> None:
    bridge.refusal = status, "There is no member systemID: did you mean systemId?"
    async with following(bridge.url) as follower:
        if isinstance(follower, InBrowser):
            # A script in a browser sees neither the status nor the sentence of a refusal.
            await reported(follower, "disconnected", 1006)
            bridge.refusal = None
            await reported(follower, "connected")
        else:
            await reported(follower, "refused", f"{status.value} There is no member systemID: did you mean systemId?")
            assert len(bridge.asked) == 1


async def test_temporary_error_is_no_refusal(bridge: ScriptedBridge, following: Following) -> None:
    bridge.refusal = HTTPStatus.SERVICE_UNAVAILABLE, "No server is available to handle this request."
    async with following(bridge.url) as follower:
        await eventually("the client has tried again", lambda: len(bridge.asked) > 2)
        bridge.refusal = None
        await reported(follower, "connected")


async def test_first_of_several_failures_is_a_warning_in_python(bridge: ScriptedBridge) -> None:
    async with in_python(bridge.url, LONG_S, {}) as follower:
        for number in range(2):
            await reported(follower, "connected", f"{number}-{TAG}")
            bridge.emit("so that the next resume has another id")
            follower.levels.clear()
            bridge.refusal = HTTPStatus.SERVICE_UNAVAILABLE, "No server is available to handle this request."
            bridge.drop()
            await eventually("the client has tried again", lambda: follower.levels[2:])
            assert follower.levels[:3] == [logging.WARNING, logging.INFO, logging.INFO]
            bridge.refusal = None


async def test_quiet_connection_in_node_is_not_treated_as_dead(
    bridge: ScriptedBridge, node: str, tmp_path: Path
) -> None:
    async with in_node(node, tmp_path, bridge.url, SHORT_S, {}) as follower:
        await connected(bridge)
        until = asyncio.get_running_loop().time() + 3 * SHORT_S
        while asyncio.get_running_loop().time() < until:
            await (await bridge.connections[0].ping())
        await has(follower, bridge.emit(1))
        assert len(bridge.asked) == 1


async def test_updates_for_a_slow_program_in_node_wait_in_the_bridge(
    bridge: ScriptedBridge, node: str, tmp_path: Path
) -> None:
    async with in_node(node, tmp_path, bridge.url, SHORT_S, {}, "slow") as follower:
        await connected(bridge)
        texts = [bridge.emit("x" * 2**16) for _ in range(500)]
        transport = bridge.connections[0].transport
        until = asyncio.get_running_loop().time() + 3 * SHORT_S
        # The test waits longer than the silence limit, although the client reads no pings while its socket is paused.
        await eventually("the silence limit has passed", lambda: asyncio.get_running_loop().time() > until)
        assert transport.get_write_buffer_size() > 2**20
        assert len(await updates_of(follower)) == 1
        assert len(bridge.asked) == 1
        await follower.stop()
        await has(follower, *texts)


async def test_updates_for_a_slow_program_in_python_wait_in_the_bridge(bridge: ScriptedBridge) -> None:
    # The bridge has the updates before the client connects, because their encoding blocks the loop of the client too.
    texts = [bridge.emit("x" * 2**16) for _ in range(500)]
    client = python_client({}).updates(bridge.url, after="earliest", silence_s=SHORT_S)
    async with aclosing(client) as updates, asyncio.timeout(LIMIT_S):
        received = [await anext(updates)]
        until = asyncio.get_running_loop().time() + 3 * SHORT_S
        # The program is slower than the silence limit. This time does not count as silence.
        await eventually("the silence limit has passed", lambda: asyncio.get_running_loop().time() > until)
        assert bridge.connections[0].transport.get_write_buffer_size() > 2**20
        received += [await anext(updates) for _ in texts[1:]]
        assert received == [orjson.loads(text) for text in texts]
        assert len(bridge.asked) == 1
