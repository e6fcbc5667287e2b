"""Tests what the live page shows about the bridge itself, even if a proxy blocks some of the bridge's paths."""

import re

import pytest
from aio_pika.abc import AbstractConnection
from playwright.async_api import expect

from bridge import __version__
from bridge.app import Bridge
from tests.support.broker.find import Broker
from tests.support.killmail import killmail
from tests.support.live import CONNECTED, LIMIT_MS, Live
from tests.support.publishing import publish
from tests.support.running import port_of, running, sample
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")
WITHHELD = r"the server responded with a status of 404"
"""Chromium's console message about a path that a proxy blocks."""


async def test_page_shows_the_bridges_figures(
    live: Live, broker: Broker, exchange: str, amqp: AbstractConnection
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        await publish(amqp, exchange, *map(killmail, (31, 32, 33, 33)), b"no JSON", {"no": "killmail"}, {})
        await eventually("all events are counted", lambda: sample(bridge, "bridge_deliveries_total") == 7)
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
        assert live.messages == []


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
async def test_page_shows_what_a_proxy_passes_and_stops_requesting_the_rest(
    withheld: tuple[str, ...], shown: list[str], live: Live, watched: Bridge
) -> None:
    requests: list[str] = []
    await live.page.clock.install()
    for path in withheld:
        await live.page.route(f"**/{path}", lambda route: route.fulfill(status=404))
    live.page.on("response", lambda response: requests.append(response.url.rpartition("/")[2]))
    await live.open(port_of(watched))
    await eventually("the page has requested both paths", lambda: {"readyz", "metrics"} <= set(requests))
    panel = live.page.get_by_role("region", name="Bridge")
    await expect(panel).to_be_visible(visible=bool(shown))
    terms = live.page.locator("#figures dt:visible")
    await expect(terms).to_have_text(shown)
    links = ["readyz", "metrics", "schemas", "asyncapi.json", "openapi.json"]
    await expect(live.page.locator("footer a:visible")).to_have_text([link for link in links if link not in withheld])
    for times in range(2, 6):
        await live.page.clock.run_for(3_500)
        # The page still requests a path that the proxy lets through.
        for path in {"readyz", "metrics"} - set(withheld):
            await eventually("a path is requested again", lambda path=path, times=times: requests.count(path) >= times)  # type: ignore[misc]  # a lambda's default has no type
    await live.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    await live.page.evaluate("fetch('healthz').then((answer) => answer.text())")
    assert {path: requests.count(path) for path in withheld} == dict.fromkeys(withheld, 1)
    await expect(live.page.locator("#figures-note")).to_be_hidden()
    await live.shows_state(CONNECTED)
    assert live.messages_except(WITHHELD) == []


async def test_page_requests_withheld_paths_again_after_a_reconnect(live: Live, broker: Broker, exchange: str) -> None:
    await live.hurry()
    await live.page.route("**/readyz", lambda route: route.fulfill(status=404))
    await live.page.route("**/metrics", lambda route: route.fulfill(status=404))
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        await live.open(port_of(bridge))
        panel = live.page.get_by_role("region", name="Bridge")
        await expect(panel).to_be_hidden()
        await live.page.unroute_all()
    async with running(broker.url, exchanges=f"{exchange}=killmail", port=port_of(bridge)):
        await live.shows_state(CONNECTED)
        await expect(panel).to_be_visible()


async def test_page_names_the_bridge_and_links_to_its_pages(live: Live, broker: Broker, exchange: str) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", instance="kills-2") as bridge:
        await live.open(port_of(bridge))
        footer = live.page.get_by_role("contentinfo")
        await expect(footer).to_contain_text(f"edk-bridge {__version__}, instance kills-2", timeout=LIMIT_MS)
        await expect(footer.get_by_role("link")).to_have_count(5)
        for link in await footer.get_by_role("link").evaluate_all("links => links.map((link) => link.href)"):
            assert (await live.page.request.get(link)).ok


async def test_reason_that_fits_into_a_line_is_not_broken(live: Live, watched: Bridge) -> None:
    reasons = ("not-json", "schema-violation", "unsupported-encoding", "internal-error")
    figures = "".join(f'bridge_rejects_total{{reason="{reason}"}} 8\n' for reason in reasons)
    await live.page.route("**/metrics", lambda route: route.fulfill(body=figures))
    await live.open(port_of(watched))
    parts = live.page.locator("#rejects small span")
    await expect(parts).to_have_text([f"{reason} 8{',' * (reason != reasons[-1])}" for reason in reasons])
    for width in (320, 360, 800, 1280):
        await live.page.set_viewport_size({"width": width, "height": 640})
        await live.page.evaluate("document.getElementById('overview').open = true")
        # Returns the parts of the text that would fit into one line but take several lines.
        broken = """parts => parts.filter((part) => {
            const range = document.createRange()
            range.selectNodeContents(part)
            const lines = new Set([...range.getClientRects()].map((line) => Math.round(line.top)))
            const room = part.closest("dd").clientWidth
            part.style.whiteSpace = "nowrap"
            const fits = range.getBoundingClientRect().width <= room
            part.style.whiteSpace = ""
            return fits && lines.size > 1
        }).map((part) => part.textContent)"""
        assert await parts.evaluate_all(broken) == []
        assert await live.page.evaluate("document.documentElement.scrollWidth") == width


async def test_page_shows_that_the_figures_are_unavailable(live: Live, watched: Bridge) -> None:
    await live.page.route("**/metrics", lambda route: route.abort())
    await live.page.route("**/readyz", lambda route: route.fulfill(body="no JSON"))
    await live.open(port_of(watched))
    await expect(live.page.locator("#figures-note")).to_have_text(
        "The state of the bridge is unavailable.", timeout=LIMIT_MS
    )
    await expect(live.page.locator("#rejects")).to_have_text("unknown")


async def test_page_requests_less_often_while_the_bridge_does_not_answer(live: Live, watched: Bridge) -> None:
    failed: list[str] = []
    answered: list[str] = []
    # The page's clock advances only while the test calls `run_for`.
    await live.page.clock.install(time=0)
    await live.page.clock.pause_at(1000)
    await live.page.route("**/metrics", lambda route: route.abort())
    live.page.on("requestfailed", lambda request: failed.append(request.url))
    live.page.on("requestfinished", lambda request: answered.append(request.url.rpartition("/")[2]))
    await live.page.goto(f"http://localhost:{port_of(watched)}/")
    # After 75 seconds of the page's clock, the page would connect again, because the bridge's clock does not advance.
    for times, pause_s in enumerate((3, 6, 12, 24, 30), 1):
        await eventually(
            "both requests have ended",
            lambda times=times: len(failed) >= times and answered.count("readyz") >= times,  # type: ignore[misc]  # a lambda's default has no type
        )
        # The page's script handles responses in order, so it has handled all earlier responses when this one arrives.
        await live.page.evaluate("fetch('healthz').then((answer) => answer.text())")
        await live.page.clock.run_for(pause_s * 1000 - 500)
        assert len(failed) == times
        await live.page.clock.run_for(1000)


async def test_hidden_page_requests_nothing(live: Live, watched: Bridge) -> None:
    requests: list[str] = []
    await live.page.clock.install()
    await live.open(port_of(watched))
    await expect(live.page.locator("#connections")).to_have_text(re.compile("[0-9]"), timeout=LIMIT_MS)
    await live.page.evaluate("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
    await live.page.clock.run_for(4_000)
    live.page.on("request", lambda request: requests.append(request.url))
    await live.page.clock.run_for(60_000)
    # If the page had sent any other request, that request would have been answered before this one.
    await live.page.evaluate("fetch('healthz').then((answer) => answer.text())")
    assert [url for url in requests if not url.endswith("/healthz") and "/updates" not in url] == []
    await live.page.evaluate("""() => {
        Object.defineProperty(document, 'hidden', { value: false })
        document.dispatchEvent(new Event('visibilitychange'))
    }""")
    await eventually("the page requests at once", lambda: any(url.endswith("/readyz") for url in requests))
