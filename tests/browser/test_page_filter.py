"""The live page shows only the updates that its filter selects, in the form or in the page's address."""

import re
from urllib.parse import urlsplit

import pytest
from aio_pika.abc import AbstractConnection
from playwright.async_api import Page, expect

from bridge.app import Bridge
from tests.support.killmail import killmail
from tests.support.live import CONNECTED, LIMIT_MS, REFUSED, Live
from tests.support.publishing import publish
from tests.support.running import port_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

JITA, AMARR, HEK = 30000142, 30002187, 30002053


def event(event_id: str) -> dict[str, object]:
    return {"eventId": event_id, "timestamp": "2024-10-22T10:30:00Z", "kind": "battle", "title": "x"}


async def test_page_applies_the_filter_in_its_address(
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
    assert live.messages == []


async def test_page_is_filtered_by_its_form_and_goes_back(
    live: Live, watched: Bridge, amqp: AbstractConnection, exchange: str
) -> None:
    page = live.page
    await live.open(port_of(watched))
    await publish(amqp, exchange, killmail(10))
    await live.has(1)
    await page.locator("#filter-words").click()
    await page.get_by_label("event").check()
    # Updates that do not match the filter disappear.
    await live.has(0)
    await live.shows_state(CONNECTED)
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
    await live.shows_state(CONNECTED)
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
    await live.shows_state(CONNECTED)
    # The page shows again what the filters hid.
    await publish(amqp, exchange, killmail(14))
    await live.shows(14, 13, 12, 11, 10)
    # When the page goes back twice, a connection ends before it is open, and the browser logs this.
    assert live.messages_except("closed before the connection is established") == []


async def test_page_suggests_the_existing_types_and_members(live: Live, watched: Bridge) -> None:
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
async def test_page_shows_why_a_filter_is_refused_until_it_is_fixed(
    query: str, sentence: str, live: Live, watched: Bridge
) -> None:
    await live.page.goto(f"http://localhost:{port_of(watched)}/{query}")
    await live.shows_state("Not connected: the filter is refused")
    refusal = live.page.locator("#refusal")
    await expect(refusal).to_contain_text(f"This query can't be answered: {sentence}")
    # The filter's form is open, so that the user can correct the filter.
    mend = live.page.locator(".wrong input") if "type" in query else live.page.get_by_role("button", name="Remove")
    await mend.click()
    await live.shows_state(CONNECTED)
    await expect(refusal).to_be_empty()
    assert live.messages_except(REFUSED) == []
    # As soon as the page knew why the filter was refused, it stopped reconnecting.
    assert len([line for line in live.messages if re.search("WebSocket", line)]) == 1


async def test_page_can_be_filtered_without_a_description(live: Live, watched: Bridge) -> None:
    await live.page.route("**/asyncapi.json", lambda route: route.fulfill(status=404))
    await live.open(port_of(watched), query="?type=event")
    await live.page.get_by_label("Member").fill("title")
    await live.page.get_by_label("Value", exact=True).fill("a & b")
    await live.page.get_by_role("button", name="Add").click()
    await live.shows_state(CONNECTED)
    assert urlsplit(live.page.url).query == "type=event&title=a+%26+b"
    await expect(live.page.locator("#types label")).to_have_text(["event"])


async def test_page_shows_that_after_is_not_a_member(live: Live, watched: Bridge) -> None:
    """The page itself adds `after` to each query.

    If the page can't read which members updates have, it accepts `after` as a member, and so sends `after` twice.
    """
    await live.page.route("**/asyncapi.json", lambda route: route.fulfill(status=404))
    await live.open(port_of(watched), query=f"?systemId={HEK}")
    await live.page.get_by_label("Member").fill("after")
    await live.page.get_by_role("button", name="Add").click()
    await expect(live.page.locator("#refusal")).to_contain_text("after is given more than once", timeout=LIMIT_MS)
    await live.shows_state("Not connected: the filter is refused")
    # The page marks only the condition that was refused.
    await expect(live.page.locator("#conditions .wrong")).to_have_text("after = Remove this is refused")
    await live.page.get_by_role("button", name="Remove after").click()
    await live.shows_state(CONNECTED)
    await expect(live.page.locator(".wrong")).to_have_count(0)
    assert live.messages_except(REFUSED + "|404") == []


@pytest.mark.parametrize(
    ("member", "value", "wrong", "words"),
    [
        ("sytemId", "5", "Member", "there is no member 'sytemId' to filter by; did you mean systemId?"),
        ("SYSTEMID", "5", "Member", "there is no member 'SYSTEMID' to filter by; did you mean systemId?"),
        ("pilot", "5", "Member", "there is no member 'pilot' to filter by"),
        ("after", "", "Member", "there is no member 'after' to filter by"),
        ("attackerCount", "many", "Value", "attackerCount must be an integer (30000142); got 'many'"),
        ("attackerCount", "1.5", "Value", "attackerCount must be an integer (30000142); got '1.5'"),
        ("attackerCount", "", "Value", "attackerCount must be an integer (30000142); got ''"),
        ("iskLost", "0x1", "Value", "iskLost must be a number (0.5); got '0x1'"),
        ("victimId", "none", "Value", "victimId must be an integer (30000142) or null; got 'none'"),
        ("type", "kilmail", "Value", "there is no update type 'kilmail'; did you mean killmail?"),
    ],
)
async def test_invalid_condition_is_not_added(
    member: str, value: str, wrong: str, words: str, tab: Page, watched: Bridge
) -> None:
    live = Live(tab)
    await live.open(port_of(watched), query="?type=killmail")
    await expect(tab.locator("#types label")).to_have_count(5, timeout=LIMIT_MS)
    await tab.get_by_label("Member").fill(member)
    await tab.get_by_label("Value", exact=True).fill(value)
    await tab.get_by_role("button", name="Add").click()
    await expect(tab.locator("#mistake")).to_have_text(words)
    field = tab.get_by_label(wrong, exact=True)
    await expect(field).to_be_focused()
    await expect(field).to_have_accessible_description(words)
    await expect(tab.locator("[aria-invalid=true]")).to_have_count(1)
    assert urlsplit(tab.url).query == "type=killmail"
    # The next typed letter clears the message and the mark.
    await field.press("1")
    await expect(tab.locator("#mistake")).to_be_empty()
    await expect(tab.locator("[aria-invalid=true]")).to_have_count(0)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("systemId", "30000142"),
        ("systemId", "3e7"),
        ("iskLost", "-0.5"),
        ("victimId", "null"),
        ("title", ""),
        ("type", "event"),
    ],
)
async def test_valid_condition_is_added(member: str, value: str, tab: Page, watched: Bridge) -> None:
    live = Live(tab)
    await live.open(port_of(watched), query="?type=killmail")
    await expect(tab.locator("#types label")).to_have_count(5, timeout=LIMIT_MS)
    await tab.get_by_label("Member").fill(member)
    await tab.get_by_label("Value", exact=True).fill(value)
    await tab.get_by_role("button", name="Add").click()
    assert urlsplit(tab.url).query == f"type=killmail&{member}={value}"
    await live.shows_state(CONNECTED)
    await expect(tab.locator("#refusal")).to_be_empty()


async def test_page_marks_all_mistakes_of_a_filter(live: Live, watched: Bridge) -> None:
    query = f"?sytemId=5&attackerCount=many&type=kilmail&systemId={HEK}&type=event"
    await live.page.goto(f"http://localhost:{port_of(watched)}/{query}")
    await live.shows_state("Not connected: the filter is refused")
    await expect(live.page.locator(".wrong")).to_have_text(
        [
            "kilmail there is no update type 'kilmail'; did you mean killmail?",
            "sytemId = 5 Remove there is no member 'sytemId' to filter by; did you mean systemId?",
            "attackerCount = many Remove attackerCount must be an integer (30000142); got 'many'",
        ]
    )
