"""The live page shows only what is asked for, in its form or in its own address."""

import re
from urllib.parse import urlsplit

import pytest
from aio_pika.abc import AbstractConnection
from playwright.async_api import expect

from bridge.app import Bridge
from tests.support.killmail import killmail
from tests.support.live import CONNECTED, LIMIT_MS, REFUSED, Live
from tests.support.publishing import publish
from tests.support.running import port_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

JITA, AMARR, HEK = 30000142, 30002187, 30002053


def event(event_id: str) -> dict[str, object]:
    return {"eventId": event_id, "timestamp": "2024-10-22T10:30:00Z", "kind": "battle", "title": "x"}


async def test_page_asks_for_what_its_address_says(
    live: Live, watched: Bridge, amqp: AbstractConnection, exchange: str
) -> None:
    await live.open(port_of(watched), query=f"?type=killmail&systemId={JITA}&systemId={AMARR}&after=1-2")
    await expect(live.page.locator("#filter-words")).to_have_text(
        f"Filter: killmail, systemId = {JITA} or {AMARR}", timeout=LIMIT_MS
    )
    await expect(live.page.get_by_label("killmail")).to_be_checked()
    await publish(amqp, exchange, event("a"), type="event")
    await publish(amqp, exchange, *(killmail(n, systemId=s) for n, s in enumerate((HEK, JITA, HEK, AMARR), 1)))
    await live.shows(4, 2)
    assert live.said == []


async def test_page_is_filtered_by_its_form_and_goes_back(
    live: Live, watched: Bridge, amqp: AbstractConnection, exchange: str
) -> None:
    page = live.page
    await live.open(port_of(watched))
    await publish(amqp, exchange, killmail(10))
    await live.has(1)
    await page.locator("summary").click()
    await page.get_by_label("event").check()
    # What does not fit is not shown any more.
    await live.has(0)
    await live.says(CONNECTED)
    await publish(amqp, exchange, killmail(11))
    await publish(amqp, exchange, event("b"), type="event")
    await live.has(1)
    await expect(live.rows).to_contain_text("eventId b")
    assert urlsplit(page.url).query == "type=event"
    await page.get_by_label("event").uncheck()
    await page.get_by_label("Member").fill("systemId")
    await page.get_by_label("Value", exact=True).fill(str(HEK))
    await page.keyboard.press("Enter")
    assert urlsplit(page.url).query == f"systemId={HEK}"
    await live.says(CONNECTED)
    await publish(amqp, exchange, killmail(12), killmail(13, systemId=HEK))
    await live.shows(13)
    await page.go_back()
    await page.go_back()
    await expect(page.get_by_label("event")).to_be_checked()
    await page.go_forward()
    await page.go_forward()
    await page.get_by_role("button", name=f"Remove systemId = {HEK}").click()
    await expect(page.locator("#filter-words")).to_have_text("Filter: everything")
    assert urlsplit(page.url).query == ""
    await live.says(CONNECTED)
    await publish(amqp, exchange, killmail(14))
    await live.shows(14)
    # Who goes back twice ends a connection that is not there yet, of which the browser itself has a line.
    assert live.said_beside("closed before the connection is established") == []


async def test_page_suggests_the_types_and_members_that_there_are(live: Live, watched: Bridge) -> None:
    await live.open(port_of(watched))
    types = live.page.locator("#types label")
    await expect(types).to_have_text(["entity-activity", "event", "killmail", "price-update", "statistics"])
    options = await live.page.locator("datalist option").evaluate_all("all => all.map(o => [o.value, o.label])")
    assert ["attackerCount", "integer"] in options
    assert ["victimAllianceId", "integer or null"] in options
    assert {"type", "after"} & {name for name, _ in options} == set()


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("?sytemId=5", "there is no member 'sytemId' to filter by; did you mean systemId?"),
        ("?attackerCount=many", "attackerCount must be an integer (30000142); got 'many'"),
        ("?type=kilmail", "there is no update type 'kilmail'"),
    ],
)
async def test_page_says_why_a_filter_is_refused_until_it_is_mended(
    query: str, sentence: str, live: Live, watched: Bridge
) -> None:
    await live.page.goto(f"http://localhost:{port_of(watched)}/{query}")
    await live.says("Not connected: the filter is refused")
    refusal = live.page.get_by_role("alert")
    await expect(refusal).to_contain_text(f"This query can't be answered: {sentence}")
    # Mended in the form, which is open.
    mend = live.page.get_by_label("kilmail") if "type" in query else live.page.get_by_role("button", name="Remove")
    await mend.click()
    await live.says(CONNECTED)
    await expect(refusal).to_be_empty()
    assert live.said_beside(REFUSED) == []
    # It has stopped to ask once it knew.
    assert len([line for line in live.said if re.search("WebSocket", line)]) == 1


async def test_page_can_be_filtered_where_the_bridge_describes_nothing(live: Live, watched: Bridge) -> None:
    await live.page.route("**/asyncapi.json", lambda route: route.fulfill(status=404))
    await live.open(port_of(watched), query="?type=event")
    await live.page.get_by_label("Member").fill("title")
    await live.page.get_by_label("Value", exact=True).fill("a & b")
    await live.page.get_by_role("button", name="Add").click()
    await live.says(CONNECTED)
    assert urlsplit(live.page.url).query == "type=event&title=a+%26+b"
    await expect(live.page.locator("#types label")).to_have_text(["event"])


async def test_page_says_that_where_to_go_on_is_no_member(live: Live, watched: Bridge) -> None:
    """The page itself asks for that, so that the bridge finds it twice."""
    await live.open(port_of(watched))
    await live.page.locator("summary").click()
    await live.page.get_by_label("Member").fill("after")
    await live.page.get_by_role("button", name="Add").click()
    await expect(live.page.get_by_role("alert")).to_contain_text("after is there twice", timeout=LIMIT_MS)
    await live.says("Not connected: the filter is refused")
    await live.page.get_by_role("button", name="Remove").click()
    await live.says(CONNECTED)
    assert live.said_beside(REFUSED) == []
