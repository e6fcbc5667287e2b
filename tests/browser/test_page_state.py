"""What the live page says of its connection and of the bridge, and that it misses nothing while either is away."""

import re

import orjson
import pytest
from aio_pika.abc import AbstractConnection
from playwright.async_api import Route, expect

from bridge import __version__
from bridge.app import Bridge
from bridge.demo.broker import Broker
from tests.support.killmail import killmail
from tests.support.live import CONNECTED, LIMIT_MS, NOT_REACHED, Live
from tests.support.proxy import proxy
from tests.support.publishing import publish
from tests.support.running import port_of, running, sample, unique
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

WITHHELD = r"the server responded with a status of 404"
"""What Chromium writes of what a proxy keeps for the operator."""

# How often what a screen reader says of the state has changed: whatever is there but for what is hidden from it.
SPOKEN = """() => {
    window.spoken = 0
    const state = document.getElementById("state")
    new MutationObserver((changes) => {
        spoken += changes.filter(({ target }) => !target.parentElement.closest("[aria-hidden]")
            && !(target.nodeType === Node.ELEMENT_NODE && target.closest("[aria-hidden]"))).length
    }).observe(state, { childList: true, characterData: true, subtree: true })
}"""


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
            await live.says(re.compile("^Broker lost [0-9]+ s ago; trying again. No updates come.$"))
            # How long ago is not read out each time that it is another.
            spoken = live.page.locator("header").get_by_role("status")
            await expect(spoken).to_match_aria_snapshot("- status: Broker lost; trying again. No updates come.")
            await live.page.evaluate(SPOKEN)
            await live.says(re.compile("^Broker lost ([3-9]|[1-9][0-9]+) s ago;"))
            assert await live.page.evaluate("spoken") == 0
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


async def test_page_says_that_the_broker_refuses_the_bridge_and_why(live: Live, watched: Bridge) -> None:
    words = "NOT_ALLOWED - access to vhost 'kills' refused"

    async def refused(route: Route) -> None:
        body = orjson.loads(await (await route.fetch()).body())
        body |= {"ready": False, "missing": ["the broker is not being consumed from"]}
        body["broker"] |= {"state": "refused", "last_error": words}
        await route.fulfill(status=503, json=body)

    await live.page.route("**/readyz", refused)
    await live.page.goto(f"http://localhost:{port_of(watched)}/")
    await live.says("The broker refuses the bridge; trying again. No updates come.")
    await expect(live.page.locator("#why")).to_have_text(words)


async def test_page_counts_itself_among_the_connections_from_the_first(live: Live, watched: Bridge) -> None:
    await live.page.add_init_script("""addEventListener("DOMContentLoaded", () => {
        window.figures = []
        const connections = document.getElementById("connections")
        new MutationObserver(() => figures.push(connections.innerText)).observe(connections, { childList: true })
    })""")
    await live.open(port_of(watched))
    await expect(live.page.locator("#connections")).to_have_text(re.compile("[0-9]"), timeout=LIMIT_MS)
    assert "0" not in [figure.strip() for figure in await live.page.evaluate("figures")]


@pytest.mark.parametrize(
    ("withheld", "shown"),
    [
        (("readyz", "metrics"), []),
        (("readyz",), ["Updates sent", "Rejected", "Evicted", "Duplicates"]),
        (("metrics",), ["Broker", "Connections"]),
    ],
)
async def test_page_shows_what_a_proxy_lets_it_have_and_asks_no_more_for_the_rest(
    withheld: tuple[str, ...], shown: list[str], live: Live, watched: Bridge
) -> None:
    asked: list[str] = []
    await live.page.clock.install()
    for path in withheld:
        await live.page.route(f"**/{path}", lambda route: route.fulfill(status=404))
    live.page.on("response", lambda response: asked.append(response.url.rpartition("/")[2]))
    await live.open(port_of(watched))
    await eventually("it has asked", lambda: {"readyz", "metrics"} <= set(asked))
    panel = live.page.get_by_role("region", name="Bridge")
    await expect(panel).to_be_visible(visible=bool(shown))
    terms = live.page.locator("#figures dt:visible")
    await expect(terms).to_have_text(shown)
    links = ["readyz", "metrics", "schemas", "asyncapi.json"]
    await expect(live.page.locator("footer a:visible")).to_have_text([link for link in links if link not in withheld])
    for times in range(2, 6):
        await live.page.clock.run_for(3_500)
        # What is let through is asked for as ever.
        for path in {"readyz", "metrics"} - set(withheld):
            await eventually("it asks again", lambda path=path, times=times: asked.count(path) >= times)  # type: ignore[misc]  # a lambda's default has no type
    await live.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    await live.page.evaluate("fetch('healthz').then((answer) => answer.text())")
    assert {path: asked.count(path) for path in withheld} == dict.fromkeys(withheld, 1)
    await expect(live.page.locator("#figures-note")).to_be_hidden()
    await live.says(CONNECTED)
    assert live.said_beside(WITHHELD) == []


async def test_page_asks_again_for_what_was_withheld_once_it_is_connected_anew(
    live: Live, broker: Broker, exchange: str
) -> None:
    await live.hurry()
    await live.page.route("**/readyz", lambda route: route.fulfill(status=404))
    await live.page.route("**/metrics", lambda route: route.fulfill(status=404))
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        await live.open(port_of(bridge))
        panel = live.page.get_by_role("region", name="Bridge")
        await expect(panel).to_be_hidden()
        await live.page.unroute_all()
    async with running(broker.url, exchanges=f"{exchange}=killmail", port=port_of(bridge)):
        await live.says(CONNECTED)
        await expect(panel).to_be_visible()


async def test_page_says_which_bridge_it_is_and_leads_to_its_pages(live: Live, broker: Broker, exchange: str) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", instance="kills-2") as bridge:
        await live.open(port_of(bridge))
        footer = live.page.get_by_role("contentinfo")
        await expect(footer).to_contain_text(f"edk-bridge {__version__}, instance kills-2", timeout=LIMIT_MS)
        await expect(footer.get_by_role("link")).to_have_count(4)
        for link in await footer.get_by_role("link").evaluate_all("links => links.map((link) => link.href)"):
            assert (await live.page.request.get(link)).ok


async def test_reason_is_broken_over_no_two_lines(live: Live, watched: Bridge) -> None:
    reasons = ("not-json", "schema-violation", "unsupported-encoding", "internal-error")
    figures = "".join(f'bridge_rejects_total{{reason="{reason}"}} 8\n' for reason in reasons)
    await live.page.route("**/metrics", lambda route: route.fulfill(body=figures))
    await live.open(port_of(watched))
    parts = live.page.locator("#rejects small span")
    await expect(parts).to_have_text([f"{reason} 8{',' * (reason != reasons[-1])}" for reason in reasons])
    for width in (320, 360, 800, 1280):
        await live.page.set_viewport_size({"width": width, "height": 640})
        await live.page.evaluate("document.getElementById('overview').open = true")
        # Where one is longer than a line it must be.
        broken = """parts => parts.filter((part) => part.offsetHeight > 25 && part.textContent.length < 14)"""
        assert await parts.evaluate_all(f"{broken}.map((part) => part.textContent)") == []
        assert await live.page.evaluate("document.documentElement.scrollWidth") == width


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
    await live.page.clock.install(time="2026-01-02T12:30:10Z")
    await live.open(port_of(watched))
    chart = live.page.get_by_role("img")
    unknown = "Unknown before this page was opened (12:30 UTC)"
    await expect(chart).to_have_accessible_name(f"Now 0 a second, average 0, peak 0 {unknown}")
    await publish(amqp, exchange, *map(killmail, range(4001, 4051)))
    await eventually("all have come", lambda: _came(live, 50))
    await live.page.clock.run_for(1_000)
    bars = live.page.locator("#rate-bars")
    # At the full height, 10 or 20 a second, whether they came in one bar or two.
    assert re.search("v-[0-9.]+h4v[0-9.]+z", str(await bars.get_attribute("d")))
    await live.page.clock.run_for(60_000)
    await expect(chart).to_have_accessible_name(
        re.compile(rf"Now 0 a second, average 0\.[678][0-9]?, peak [0-9.]+ {re.escape(unknown)}$")
    )
    await live.page.clock.run_for(300_000)
    # All is known, and nothing has come.
    await expect(chart).to_have_accessible_name("Now 0 a second, average 0, peak 0")
    await expect(live.page.locator("#unseen")).to_be_hidden()
    assert not re.search("v-[1-9]", str(await bars.get_attribute("d")))


async def test_peak_is_never_below_average_or_now(
    live: Live, watched: Bridge, amqp: AbstractConnection, exchange: str
) -> None:
    await live.page.clock.install()
    await live.open(port_of(watched))
    for second in range(14):
        await publish(amqp, exchange, killmail(4100 + second))
        await eventually("it has come", lambda second=second: _came(live, second + 1))  # type: ignore[misc]  # a lambda's default has no type
        await live.page.clock.run_for(1_000)
        words = await live.page.locator("#rate-words").inner_text()
        now, average, peak = (float(figure) for figure in re.findall(r"[0-9.]+", words))
        assert 0 < max(now, average) <= peak, words
        assert await live.page.locator("#rate-short").text_content() == f"{now:g} a second"


async def test_time_before_the_page_was_opened_has_no_bars_but_a_ground_of_its_own(live: Live, watched: Bridge) -> None:
    await live.page.clock.install()
    await live.open(port_of(watched))
    unseen = live.page.locator("#unseen")
    chart = await live.page.locator("svg").bounding_box()
    assert chart is not None
    widths = []
    for _ in range(4):
        box = await unseen.bounding_box()
        widths.append(round(box["width"] / chart["width"], 1) if box else 0.0)
        await live.page.clock.run_for(75_000)
    assert widths == sorted(widths, reverse=True)
    assert (widths[0], widths[2]) == (1.0, 0.5)
    await live.page.clock.run_for(10_000)
    await expect(unseen).to_be_hidden()


async def _came(live: Live, rows: int) -> bool:
    await live.page.clock.run_for(400)
    return await live.rows.count() == rows
