"""Tests that the live page holds still, stays responsive and is accessible on every screen."""

import asyncio

import pytest
from aio_pika.abc import AbstractConnection
from playwright.async_api import Browser, expect

from bridge.app import Bridge
from tests.support.killmail import killmail
from tests.support.live import LIMIT_MS, Live
from tests.support.publishing import publish
from tests.support.running import port_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

EVENT = {"eventId": "e", "timestamp": "2024-10-22T10:30:00Z", "kind": "battle", "title": "x" * 200}

# Collects the tasks that blocked the page for more than 50 ms, and counts the changes of the list.
OBSERVED = """() => {
    window.longMs = []
    window.changes = 0
    new PerformanceObserver((list) => longMs.push(...list.getEntries().map((entry) => entry.duration)))
        .observe({ entryTypes: ["longtask"] })
    new MutationObserver(() => { changes += 1 }).observe(document.querySelector("tbody"), { childList: true })
}"""

# Returns the contrast of each visible text with its background (WCAG 2.2, relative luminance), the lowest first.
CONTRASTS = """() => {
    const channels = (color) => color.match(/[0-9.]+/g).map(Number)
    const luminance = (color) => {
        const [r, g, b] = channels(color).slice(0, 3).map((value) => {
            const part = value / 255
            return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4
        })
        return 0.2126 * r + 0.7152 * g + 0.0722 * b
    }
    const behind = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const color = getComputedStyle(at).backgroundColor
            if (channels(color)[3] !== 0) return color
        }
        return "rgb(255, 255, 255)"
    }
    const seen = [...document.querySelectorAll("body *")].filter((element) => element.checkVisibility()
        && [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim()))
    return seen.map((element) => {
        const [one, other] = [luminance(getComputedStyle(element).color), luminance(behind(element))]
        const [less, more] = [Math.min(one, other), Math.max(one, other)]
        return [(more + 0.05) / (less + 0.05), element.outerHTML.slice(0, 80)]
    }).sort(([one], [other]) => one - other)
}"""


async def test_paused_page_counts_updates_and_shows_them_on_request(
    live: Live, watched: Bridge, amqp: AbstractConnection, exchange: str
) -> None:
    await live.open(port_of(watched))
    await publish(amqp, exchange, killmail(1))
    await live.shows(1)
    await live.page.keyboard.press("p")
    await expect(live.page.locator("#held")).to_have_text("Paused")
    await publish(amqp, exchange, *map(killmail, range(2, 39)))
    await expect(live.more).to_have_text("37 new: show", timeout=LIMIT_MS)
    assert await live.kills() == [1]
    await live.more.click()
    await live.shows(*range(38, 0, -1))
    # The page is still paused, and the keyboard focus has moved to the button "Resume".
    await expect(live.more).to_be_hidden()
    await expect(live.page.get_by_role("button", name="Resume")).to_be_focused()
    await publish(amqp, exchange, killmail(39))
    await expect(live.more).to_have_text("1 new: show", timeout=LIMIT_MS)
    await live.page.keyboard.press("p")
    await live.shows(*range(39, 0, -1))
    await expect(live.page.locator("#held")).to_be_empty()
    assert live.messages == []


async def test_paused_page_keeps_the_newest_hundred_and_counts_all(
    live: Live, watched: Bridge, amqp: AbstractConnection, exchange: str
) -> None:
    await live.open(port_of(watched))
    await live.page.get_by_role("button", name="Pause").click()
    await publish(amqp, exchange, *map(killmail, range(1001, 1251)))
    await expect(live.more).to_have_text("250 new: show 100", timeout=LIMIT_MS)
    await live.has(0)
    await live.page.get_by_role("button", name="Resume").click()
    await live.shows(*range(1250, 1150, -1))


async def test_key_that_pauses_is_a_letter_in_a_field(live: Live, watched: Bridge) -> None:
    await live.open(port_of(watched))
    await live.page.locator("#filter-words").click()
    await live.page.get_by_label("Member").press("p")
    await live.page.keyboard.press("Control+p")
    await expect(live.page.get_by_label("Member")).to_have_value("p")
    await expect(live.page.get_by_role("button", name="Pause")).to_be_visible()


@pytest.mark.parametrize(("width", "first"), [(1280, 3001), (320, 3501)])
async def test_page_holds_still_while_it_is_scrolled_down(
    width: int, first: int, live: Live, watched: Bridge, amqp: AbstractConnection, exchange: str
) -> None:
    await live.page.set_viewport_size({"width": width, "height": 640})
    await live.open(port_of(watched))
    await publish(amqp, exchange, *map(killmail, range(first, first + 100)))
    await live.has(100)
    row = live.rows.nth(60)
    await row.evaluate("row => row.scrollIntoView({ block: 'center' })")
    await expect(live.page.locator("#held")).to_have_text("Held: scrolled down")
    before = await row.bounding_box()
    await publish(amqp, exchange, *map(killmail, range(first + 100, first + 130)))
    await expect(live.more).to_have_text("30 new: show", timeout=LIMIT_MS)
    await expect(live.more).to_be_in_viewport()
    assert await row.bounding_box() == before
    assert (await live.kills())[60] == first + 39
    await live.more.click()
    await live.shows(*range(first + 129, first + 29, -1))
    # The page is at the top again, so the list changes again.
    await publish(amqp, exchange, killmail(first + 130))
    await live.shows(*range(first + 130, first + 30, -1))


async def test_page_can_be_used_with_the_keyboard_alone(
    live: Live, watched: Bridge, amqp: AbstractConnection, exchange: str
) -> None:
    page = live.page
    await live.open(port_of(watched))
    await publish(amqp, exchange, killmail(41))
    await live.shows(41)
    stops = []
    for _ in range(7):
        await page.keyboard.press("Tab")
        stops.append(await page.evaluate("document.activeElement.innerText.split('\\n')[0].trim()"))
        assert await page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    links = ["kill 41", "system 30000142", "ship 587", "corporation 98765432", "alliance 99999999"]
    assert stops == ["Filter: everything", "Pause p", *links]
    # The list does not change while it has the keyboard focus.
    await publish(amqp, exchange, killmail(42))
    await expect(live.more).to_have_text("1 new: show", timeout=LIMIT_MS)
    assert await live.kills() == [41]
    for _ in links:
        await page.keyboard.press("Shift+Tab")
    await live.shows(42, 41)
    await page.keyboard.press("Shift+Tab")
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Space")
    await expect(page.locator("#filter-words")).to_have_text("Filter: event")


@pytest.mark.slow
async def test_page_keeps_no_more_of_a_large_update_than_it_shows(
    live: Live, watched: Bridge, amqp: AbstractConnection, exchange: str
) -> None:
    """While paused or hidden, the page may hold 200 updates.

    If the page kept all data of such large updates, 200 updates would take too much memory.
    """
    await live.open(port_of(watched))
    await live.page.locator("#pause").click()
    large = [{**EVENT, "eventId": f"large{number}", "much": [[]] * 300_000} for number in range(10)]
    await publish(amqp, exchange, *large, type="event")
    await expect(live.more).to_have_text("10 new: show", timeout=LIMIT_MS)
    devtools = await live.page.context.new_cdp_session(live.page)
    await devtools.send("HeapProfiler.collectGarbage")
    used = (await devtools.send("Runtime.getHeapUsage"))["usedSize"]
    # Each of the large updates takes 6 MB.
    assert used < 10_000_000
    await live.more.click()
    await live.has(10)
    await expect(live.rows.first).to_contain_text("eventId large9")


async def test_list_is_not_read_out_and_the_state_is(live: Live, watched: Bridge) -> None:
    await live.open(port_of(watched))
    spoken = "[aria-live], [role=status], [role=alert], [role=log]"
    found = await live.page.locator(spoken).evaluate_all("all => all.map((element) => element.id)")
    assert sorted(found) == ["held", "mistake", "refusal", "state"]


async def test_first_updates_are_seen_on_a_phone_without_scrolling(
    live: Live, watched: Bridge, amqp: AbstractConnection, exchange: str
) -> None:
    await live.page.set_viewport_size({"width": 360, "height": 640})
    await live.open(port_of(watched))
    await publish(amqp, exchange, killmail(61), killmail(62), killmail(63))
    await live.has(3)
    await expect(live.rows.nth(2)).to_be_in_viewport(ratio=1)
    chart = live.page.get_by_role("img")
    await expect(chart).to_be_hidden()
    await live.page.get_by_text("Rate and bridge").click()
    await expect(chart).to_be_visible()
    await expect(live.page.locator("#connections")).to_be_visible()
    # The test rotates the phone, and then rotates it back.
    await live.page.get_by_text("Rate and bridge").click()
    await live.page.set_viewport_size({"width": 800, "height": 360})
    await expect(chart).to_be_visible()
    await live.page.set_viewport_size({"width": 360, "height": 640})
    await expect(chart).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_page_fits_and_can_be_read_in_every_color_scheme(
    scheme: str, browser: Browser, watched: Bridge, amqp: AbstractConnection, exchange: str
) -> None:
    context = await browser.new_context(color_scheme="dark" if scheme == "dark" else "light")
    live = Live(await context.new_page())
    await live.page.set_viewport_size({"width": 320, "height": 640})
    await live.open(port_of(watched))
    await live.page.locator("#filter-words").click()
    await live.page.get_by_label("Member").fill("victimCorporationId")
    await publish(amqp, exchange, killmail(51 if scheme == "dark" else 52, killmailTime="2024-10-22T10:28:11Z"))
    await publish(amqp, exchange, {**EVENT, "eventId": scheme}, type="event")
    await live.has(2)
    await live.page.keyboard.press("Escape")
    await expect(live.page.locator("#connections")).not_to_have_text("unknown", timeout=LIMIT_MS)
    # The test's script shows the elements that otherwise appear only if there is a problem.
    await live.page.evaluate("""() => {
        for (const id of ["why", "figures-note", "more"]) document.getElementById(id).hidden = false
        for (const id of ["why", "figures-note", "refusal", "mistake"])
            document.getElementById(id).textContent = "amqp://guest@broker.example:5672/".repeat(4)
        document.getElementById("more").textContent = "1,350 new: show 100"
        document.getElementById("held").textContent = "Held: keyboard in list"
        document.querySelector("tbody tr:last-child").className = "missed"
        document.querySelector("#types label").append(Object.assign(document.createElement("span"),
            { className: "mistake", textContent: "there is no update type ".repeat(4) }))
    }""")
    for width in (320, 360, 800, 1280):
        await live.page.set_viewport_size({"width": width, "height": 640})
        assert await live.page.evaluate("document.documentElement.scrollWidth") == width
        if width < 576:
            # The bar must not change its height, because the list is below the bar and would move.
            assert await live.page.evaluate("document.getElementById('bar').offsetHeight") == 72
    contrasts = await live.page.evaluate(CONTRASTS)
    assert len(contrasts) > 30
    assert contrasts[0][0] >= 4.5, contrasts[:3]
    ground = await live.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 24, 28)" if scheme == "dark" else "rgb(255, 255, 255)")
    await context.close()


async def test_page_changes_rarely_at_a_high_rate(
    live: Live, watched: Bridge, amqp: AbstractConnection, exchange: str
) -> None:
    await live.open(port_of(watched))
    await _publish_at_rate(live, amqp, exchange, first=5001, a_second=50, updates=150)


@pytest.mark.alone  # the test measures how long the browser is busy
async def test_page_changes_rarely_and_is_rarely_busy_at_a_thousand_updates_a_second(
    live: Live, watched: Bridge, amqp: AbstractConnection, exchange: str
) -> None:
    await live.open(port_of(watched))
    # A browser needs several times as long for the first updates as for later ones.
    await publish(amqp, exchange, *map(killmail, range(5501, 5801)))
    await live.page.locator("tbody tr:first-child a[href$='/kill/5800/']").wait_for(timeout=LIMIT_MS)
    took_s = await _publish_at_rate(live, amqp, exchange, first=6001, a_second=1000, updates=600)
    long_ms = await live.page.evaluate("longMs")
    # Even on a slow machine, the browser spends less than a quarter of the time on changes of the list.
    assert sum(long_ms) / 1000 < took_s / 4, long_ms


async def _publish_at_rate(
    live: Live, amqp: AbstractConnection, exchange: str, *, first: int, a_second: int, updates: int
) -> float:
    """Publishes updates at a constant rate.

    Checks that the list has not changed too often, and returns how many seconds it took until the last update was
    shown.
    """
    await live.page.evaluate(OBSERVED)
    loop = asyncio.get_running_loop()
    began = loop.time()
    piece = max(1, a_second // 4)
    for start in range(first, first + updates, piece):
        await publish(amqp, exchange, *map(killmail, range(start, min(start + piece, first + updates))))
        # The sleep only sets the rate at which the updates are published.
        await asyncio.sleep(max(0.0, began + (start + piece - first) / a_second - loop.time()))
    newest = live.page.locator(f"tbody tr:first-child a[href$='/kill/{first + updates - 1}/']")
    await newest.wait_for(timeout=LIMIT_MS)
    took_s = loop.time() - began
    changes = await live.page.evaluate("changes")
    # The list may change once every 300 ms, and in addition at the start and at the end.
    assert 1 <= changes <= took_s / 0.3 + 2
    await eventually("100 updates are shown", lambda: _is_full(live))
    assert live.messages == []
    return took_s


async def _is_full(live: Live) -> bool:
    return await live.rows.count() == 100
