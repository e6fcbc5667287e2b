"""Tests how the live page shows the rate of updates: in a chart, and in words that agree with the chart."""

import re

import pytest
from aio_pika.abc import AbstractConnection
from playwright.async_api import expect

from bridge.app import Bridge
from tests.support.killmail import killmail
from tests.support.live import Live
from tests.support.publishing import publish
from tests.support.running import port_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_page_shows_the_rate_in_words_and_as_a_chart(
    live: Live, watched: Bridge, amqp: AbstractConnection, exchange: str
) -> None:
    await _stopped_clock(live)
    await live.open(port_of(watched))
    chart = live.page.get_by_role("img")
    unknown = "Unknown before this page was opened (12:30 UTC)"
    await expect(chart).to_have_accessible_name(f"Now 0 a second, average 0, peak 0 {unknown}")
    await publish(amqp, exchange, *map(killmail, range(4001, 4051)))
    await eventually("all updates are shown", lambda: _received(live, 50))
    await live.page.clock.run_for(1_000)
    bars = live.page.locator("#rate-bars")
    # The updates may fall into one bar of the chart or into two, so the top of the chart stands for 20 or for 10
    # updates a second.
    assert re.search("v-[0-9.]+h4v[0-9.]+z", str(await bars.get_attribute("d")))
    await live.page.clock.run_for(60_000)
    await expect(chart).to_have_accessible_name(
        re.compile(rf"Now 0 a second, average 0\.[678][0-9]?, peak [0-9.]+ {re.escape(unknown)}$")
    )
    await live.page.clock.run_for(300_000)
    # The page has now observed the whole period of the chart, and no update arrived in it.
    await expect(chart).to_have_accessible_name("Now 0 a second, average 0, peak 0")
    await expect(live.page.locator("#unseen")).to_be_hidden()
    assert not re.search("v-[1-9]", str(await bars.get_attribute("d")))


async def test_peak_is_never_below_average_or_now(
    live: Live, watched: Bridge, amqp: AbstractConnection, exchange: str
) -> None:
    await _stopped_clock(live)
    await live.open(port_of(watched))
    for second in range(14):
        await publish(amqp, exchange, killmail(4100 + second))
        await eventually("the update is shown", lambda second=second: _received(live, second + 1))  # type: ignore[misc]  # a lambda's default has no type
        await live.page.clock.run_for(1_000)
        words = await live.page.locator("#rate-words").inner_text()
        now, average, peak = (float(figure) for figure in re.findall(r"[0-9.]+", words))
        assert 0 < max(now, average) <= peak, words
        assert await live.page.locator("#rate-short").text_content() == f"{now:g} a second"


async def test_time_before_the_page_was_opened_is_marked_and_has_no_bars(live: Live, watched: Bridge) -> None:
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


async def _stopped_clock(live: Live) -> None:
    """Stops the page's clock, which then advances only while the test calls `run_for`."""
    await live.page.clock.install(time="2026-01-02T12:30:09Z")
    await live.page.clock.pause_at("2026-01-02T12:30:10Z")


async def _received(live: Live, rows: int) -> bool:
    await live.page.clock.run_for(20)
    return await live.rows.count() == rows
