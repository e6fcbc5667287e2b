"""What the live page says of its connection and of the bridge, and that it misses nothing while either is away."""

import re

import pytest
from aio_pika.abc import AbstractConnection
from playwright.async_api import expect

from bridge.app import Bridge
from bridge.demo.broker import Broker
from tests.support.killmail import killmail
from tests.support.live import CONNECTED, LIMIT_MS, NOT_REACHED, Live
from tests.support.proxy import proxy
from tests.support.publishing import publish
from tests.support.running import port_of, running, sample, unique
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_page_misses_nothing_and_doubles_nothing_while_the_bridge_is_restarted(
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
        await live.says(re.compile("Disconnected: the bridge .*. Retrying"))
        await publish(amqp, exchange, *map(killmail, range(4, 7)))
        async with running(broker.url, **flags, port=port_of(bridge)):
            await live.says(CONNECTED)
            await publish(amqp, exchange, killmail(7))
            await live.shows(7, 6, 5, 4, 3, 2, 1)
            await live.has(7)
        assert live.said_beside(NOT_REACHED) == []
    finally:
        channel = await amqp.channel()
        await channel.queue_delete(stream)
        await channel.exchange_delete(exchange)
        await channel.close()


async def test_page_says_what_may_be_missing_after_a_restart_without_a_history(
    live: Live, broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    await live.hurry()
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        await live.open(port_of(bridge))
        await publish(amqp, exchange, killmail(1))
        await live.shows(1)
    async with running(broker.url, exchanges=f"{exchange}=killmail", port=port_of(bridge)):
        await live.has(2)
        words = "the bridge does not know or keep all that came after the last one; 0 that are kept follow."
        await expect(live.rows.first).to_contain_text(words)
        assert await live.kills() == [1]


async def test_page_says_that_the_bridge_does_not_consume_and_what_may_be_missing_then(
    live: Live, broker: Broker, exchange: str, amqp: AbstractConnection
) -> None:
    async with proxy(broker.url) as line:
        await line.open()
        async with running(line.url, exchanges=f"{exchange}=killmail", reject_exchange="off") as bridge:
            await live.open(port_of(bridge))
            await line.close()
            await live.says("Connected, but the broker is not being consumed from")
            # What the broker, or the line to it, says of that changes from one attempt to the next.
            await expect(live.page.locator("#why")).not_to_be_empty()
            await expect(live.page.locator("#broker")).to_contain_text("lost for", timeout=LIMIT_MS)
            await line.open()
            await live.says(CONNECTED)
            await expect(live.page.locator("#why")).to_be_hidden()
            await expect(live.rows.first).to_contain_text("Updates may be missing from")
            # There is one row for it, among what comes.
            await publish(amqp, exchange, killmail(21))
            await live.has(2)
            assert live.said_beside(NOT_REACHED) == []


async def test_page_shows_the_bridges_figures(
    live: Live, broker: Broker, exchange: str, amqp: AbstractConnection
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        await publish(amqp, exchange, *map(killmail, (31, 32, 33, 33)), b"no JSON", {"no": "killmail"}, {})
        await eventually("all are counted", lambda: sample(bridge, "bridge_deliveries_total") == 7)
        await live.open(port_of(bridge))
        figures = live.page.locator("#figures")
        shown: dict[str, str | re.Pattern[str]] = {
            "#broker": re.compile("consuming for [0-9]+ s"),
            "#updates-sent": "3 killmail 3",
            "#rejects": re.compile("3 (not-json 1, schema-violation 2|schema-violation 2, not-json 1)"),
            "#evictions": "0",
            "#duplicates": "1 killmail 1",
            "#connections": "1",
        }
        for figure, words in shown.items():
            await expect(figures.locator(figure)).to_have_text(words, timeout=LIMIT_MS)
        assert live.said == []


async def test_page_says_calmly_that_the_figures_can_not_be_had(live: Live, watched: Bridge) -> None:
    await live.page.route("**/metrics", lambda route: route.abort())
    await live.page.route("**/readyz", lambda route: route.fulfill(body="no JSON"))
    await live.open(port_of(watched))
    await expect(live.page.locator("#figures-note")).to_have_text(
        "The bridge does not say how it is.", timeout=LIMIT_MS
    )
    await expect(live.page.locator("#rejects")).to_have_text("unknown")


async def test_page_asks_less_and_less_of_a_bridge_that_does_not_answer(live: Live, watched: Bridge) -> None:
    asked: list[str] = []
    await live.page.clock.install()
    await live.page.route("**/metrics", lambda route: route.abort())
    live.page.on("requestfailed", lambda request: asked.append(request.url))
    await live.page.goto(f"http://localhost:{port_of(watched)}/")
    for times, pause_s in enumerate((3, 6, 12, 24, 30, 30), 1):
        await eventually("it has asked", lambda times=times: len(asked) >= times)  # type: ignore[misc]  # a lambda's default has no type
        # When the pause begins is the page's to know: once both of its answers are there.
        await live.page.evaluate("new Promise((resolve) => requestIdleCallback(resolve))")
        await live.page.clock.run_for(pause_s * 1000 - 500)
        assert len(asked) == times
        await live.page.clock.run_for(1000)


async def test_page_asks_nothing_while_nobody_sees_it(live: Live, watched: Bridge) -> None:
    asked: list[str] = []
    await live.page.clock.install()
    await live.open(port_of(watched))
    await expect(live.page.locator("#connections")).to_have_text(re.compile("[0-9]"), timeout=LIMIT_MS)
    await live.page.evaluate("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
    await live.page.clock.run_for(4_000)
    live.page.on("request", lambda request: asked.append(request.url))
    await live.page.clock.run_for(60_000)
    # Whatever it asked would have been answered before this.
    await live.page.evaluate("fetch('healthz').then((answer) => answer.text())")
    assert [url for url in asked if not url.endswith("/healthz") and "/updates" not in url] == []
    await live.page.evaluate("""() => {
        Object.defineProperty(document, 'hidden', { value: false })
        document.dispatchEvent(new Event('visibilitychange'))
    }""")
    await eventually("it asks at once", lambda: any(url.endswith("/readyz") for url in asked))


async def test_page_shows_the_rate_in_words_and_as_a_chart(
    live: Live, watched: Bridge, amqp: AbstractConnection, exchange: str
) -> None:
    await live.page.clock.install(time=0)
    await live.open(port_of(watched))
    chart = live.page.get_by_role("img")
    await expect(chart).to_have_accessible_name("Now 0 a second, average 0, peak 0")
    await publish(amqp, exchange, *map(killmail, range(4001, 4051)))
    # With a clock that stands still but when it is told to go on, all come in one bar.
    await eventually("all have come", lambda: _came(live, 50))
    await live.page.clock.run_for(1_000)
    await expect(chart).to_have_accessible_name(re.compile(r"Now [0-9.]+ a second, average [0-9.]+, peak 10$"))
    bars = live.page.locator("#rate-bars")
    assert "v-60h4v60z" in str(await bars.get_attribute("d"))
    await live.page.clock.run_for(60_000)
    await expect(chart).to_have_accessible_name(re.compile(r"Now 0 a second, average 0\.[78][0-9]?, peak 10$"))
    await live.page.clock.run_for(300_000)
    await expect(chart).to_have_accessible_name("Now 0 a second, average 0, peak 0")
    assert "v-60h" not in str(await bars.get_attribute("d"))


async def _came(live: Live, rows: int) -> bool:
    await live.page.clock.run_for(400)
    return await live.rows.count() == rows
