"""Tests what the live page shows about its connection and the bridge.

The page misses no update while it has no connection or the bridge does not run.
"""

import re

import orjson
import pytest
from aio_pika.abc import AbstractConnection
from playwright.async_api import Route, expect

from bridge.app import Bridge
from tests.support.broker.find import Broker
from tests.support.killmail import killmail
from tests.support.live import CONNECTED, LIMIT_MS, NOT_REACHED, Live
from tests.support.proxy import proxy
from tests.support.publishing import publish
from tests.support.running import port_of, running, unique

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Counts how often a screen reader would read out a change of the page's state. Changes of hidden parts do not count.
SPOKEN = """() => {
    window.spoken = 0
    const state = document.getElementById("state")
    new MutationObserver((changes) => {
        spoken += changes.filter(({ target }) => !target.parentElement.closest("[aria-hidden]")
            && !(target.nodeType === Node.ELEMENT_NODE && target.closest("[aria-hidden]"))).length
    }).observe(state, { childList: true, characterData: true, subtree: true })
}"""


async def test_page_misses_and_repeats_nothing_during_a_restart_of_the_bridge(
    live: Live, broker: Broker, amqp: AbstractConnection
) -> None:
    exchange, stream = unique("exchange"), unique("stream")
    flags = {"exchanges": f"{exchange}=killmail", "history": "stream", "history_stream": stream}
    await live.hurry()
    try:
        async with running(broker.url, **flags) as bridge:
            await live.open(port_of(bridge))
            await publish(amqp, exchange, *map(killmail, range(1, 4)))
            await live.shows(3, 2, 1)
        await live.shows_state(re.compile("Disconnected: the bridge .*. Retrying"))
        await publish(amqp, exchange, *map(killmail, range(4, 7)))
        async with running(broker.url, **flags, port=port_of(bridge)):
            await live.shows_state(CONNECTED)
            await publish(amqp, exchange, killmail(7))
            await live.shows(7, 6, 5, 4, 3, 2, 1)
            await live.has(7)
        assert live.messages_except(NOT_REACHED) == []
    finally:
        channel = await amqp.channel()
        await channel.queue_delete(stream)
        await channel.exchange_delete(exchange)
        await channel.close()


async def test_page_shows_what_may_be_missing_after_a_restart_without_a_history(
    live: Live, broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    await live.hurry()
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        await live.open(port_of(bridge))
        await publish(amqp, exchange, killmail(1))
        await live.shows(1)
    async with running(broker.url, exchanges=f"{exchange}=killmail", port=port_of(bridge)):
        await live.has(2)
        words = "the bridge does not have all updates since the last one; it has 0."
        await expect(live.rows.first).to_contain_text(words)
        assert await live.kills() == [1]


async def test_page_shows_that_the_bridge_does_not_consume_and_what_may_be_missing(
    live: Live, broker: Broker, exchange: str, amqp: AbstractConnection
) -> None:
    async with proxy(broker.url) as line:
        await line.open()
        async with running(line.url, exchanges=f"{exchange}=killmail", reject_exchange="off") as bridge:
            await live.open(port_of(bridge))
            await line.close()
            await live.shows_state(re.compile("^Broker lost [0-9]+ s ago; trying again. No updates come.$"))
            # The text changes every second, but a screen reader does not read these changes out.
            spoken = live.page.locator("header").get_by_role("status")
            await expect(spoken).to_match_aria_snapshot("- status: Broker lost; trying again. No updates come.")
            await live.page.evaluate(SPOKEN)
            await live.shows_state(re.compile("^Broker lost ([3-9]|[1-9][0-9]+) s ago;"))
            assert await live.page.evaluate("spoken") == 0
            # The text of the error may be different after each attempt to reconnect, so the test only checks that there
            # is a text.
            await expect(live.page.locator("#why")).not_to_be_empty()
            await expect(live.page.locator("#broker")).to_contain_text("lost for", timeout=LIMIT_MS)
            await line.open()
            await live.shows_state(CONNECTED)
            await expect(live.page.locator("#why")).to_be_hidden()
            await expect(live.rows.first).to_contain_text("Updates may be missing from")
            # The list of updates has one row for the gap.
            await publish(amqp, exchange, killmail(21))
            await live.has(2)
            assert live.messages_except(NOT_REACHED) == []


async def test_page_shows_that_and_why_the_broker_refuses_the_bridge(live: Live, watched: Bridge) -> None:
    words = "NOT_ALLOWED - access to vhost 'kills' refused"

    async def refused(route: Route) -> None:
        body = orjson.loads(await (await route.fetch()).body())
        body |= {"ready": False, "missing": ["the bridge does not consume from the broker"]}
        body["broker"] |= {"state": "refused", "last_error": words}
        await route.fulfill(status=503, json=body)

    await live.page.route("**/readyz", refused)
    await live.page.goto(f"http://localhost:{port_of(watched)}/")
    await live.shows_state("The broker refuses the bridge; trying again. No updates come.")
    await expect(live.page.locator("#why")).to_have_text(words)
