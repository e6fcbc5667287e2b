"""The live page in a real browser: it connects, shows updates, reconnects, and shows hostile content safely."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress

import orjson
import pytest
from aio_pika.abc import AbstractConnection
from playwright.async_api import Error, Page, Route, expect

from bridge.app import Bridge
from tests.support.broker.find import Broker
from tests.support.broker.ports import free_port
from tests.support.browser import File, foreign_site
from tests.support.clients import RawClient
from tests.support.killmail import killmail
from tests.support.live import CONNECTED, LIMIT_MS, NOT_REACHED, Live
from tests.support.publishing import publish
from tests.support.running import port_of, running, sample
from tests.support.waiting import LIMIT_S

pytestmark = pytest.mark.asyncio(loop_scope="session")

MARKUP = '</code><img src=x onerror="harmed = 1"><script>harmed = 2</script>\u202e{{7*7}}'

FOREIGN_URL = "foreign"
"""A placeholder for a URL of a foreign site."""

# A promise that resolves to the first violation of the page's policy.
VIOLATED = """() => { window.violated = new Promise((resolve) =>
    addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective))) }"""


@pytest.mark.parametrize(("host", "number"), [("localhost", 1), ("127.0.0.1", 2), ("[::1]", 3)])
async def test_page_shows_a_killmail_with_links(
    host: str, number: int, live: Live, watched: Bridge, amqp: AbstractConnection, exchange: str
) -> None:
    if host == "[::1]" and "::1" not in dict(watched.addresses):
        pytest.skip("this machine has no IPv6")
    await live.open(port_of(watched), host)
    nothing = live.page.get_by_text("No updates since")
    await expect(nothing).to_be_visible()
    await publish(amqp, exchange, killmail(number, systemId=30000142, shipTypeId=587, attackerCount=15))
    await live.has(1)
    await expect(live.rows).to_contain_text("15 attackers")
    links = live.rows.get_by_role("link")
    assert await links.evaluate_all("links => links.map(link => [link.innerText, link.href, link.rel])") == [
        [f"kill {number}", f"https://zkillboard.com/kill/{number}/", "noreferrer noopener"],
        ["system 30000142", "https://zkillboard.com/system/30000142/", "noreferrer noopener"],
        ["ship 587", "https://zkillboard.com/ship/587/", "noreferrer noopener"],
        ["corporation 98765432", "https://zkillboard.com/corporation/98765432/", "noreferrer noopener"],
        ["alliance 99999999", "https://zkillboard.com/alliance/99999999/", "noreferrer noopener"],
    ]
    await expect(nothing).to_be_hidden()
    assert (live.messages, live.requested_hosts) == ([], {f"{host}:{port_of(watched)}"})


async def test_page_shows_since_when_there_are_no_updates(live: Live, watched: Bridge) -> None:
    page, nothing = live.page, live.page.locator("#empty")
    await page.clock.install(time="2026-01-02T12:30:10Z")
    await live.open(port_of(watched))
    await expect(nothing).to_have_text("No updates since this page was opened (12:30 UTC).")
    await page.clock.run_for(120_000)
    await page.locator("#filter-words").click()
    await page.get_by_label("event").check()
    await expect(nothing).to_have_text("No matching updates since the filter was changed (12:32 UTC).")
    await page.get_by_label("event").uncheck()
    await expect(nothing).to_have_text("No updates since the filter was changed (12:32 UTC).")
    await live.open(port_of(watched), query="?type=event")
    await expect(nothing).to_have_text("No matching updates since this page was opened (12:32 UTC).")


@pytest.mark.parametrize("path", ["/kills/live", "/updates.example/kills/"])
async def test_page_connects_to_an_endpoint_at_any_path(path: str, live: Live, broker: Broker, exchange: str) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", path=path) as bridge:
        await live.open(port_of(bridge))
        assert (sample(bridge, "bridge_connections", transport="websocket"), live.messages) == (1, [])


@asynccontextmanager
async def prefix_proxy(prefix: str, port: int) -> AsyncIterator[int]:
    """Removes the prefix from each request's path and forwards the request to `port` on loopback.

    Drops requests without the prefix.

    Yields the port of the proxy.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            line = await reader.readuntil(b"\n")
            before, found, after = line.partition(f" {prefix}/".encode())
            if found:
                up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
                up_writer.write(before + b" /" + after)
                await asyncio.gather(_pump(reader, up_writer), _pump(up_reader, writer))
        writer.transport.abort()

    async with tcp_server(serve) as proxy_port:
        yield proxy_port


@asynccontextmanager
async def tcp_server(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[object, object, None]],
) -> AsyncIterator[int]:
    """Accepts connections on loopback, and calls `serve` for each connection.

    Yields the port. At the end, aborts the open connections.
    """
    serving: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Browsers also open connections on which they send no request.
        try:
            await serve(reader, writer)
        finally:
            writer.transport.abort()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(handle(reader, writer))
        serving.add(task)
        task.add_done_callback(serving.discard)

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tuple(serving):
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await asyncio.sleep(0)  # an aborted transport closes its socket in the next turn of the loop


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copies data from the reader to the writer until the reader ends, and then closes the writer."""
    try:
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


async def test_page_works_in_a_folder_of_a_proxy(live: Live, watched: Bridge) -> None:
    async with prefix_proxy("/intern/kills", port_of(watched)) as port:
        await live.open(port, query="intern/kills/?type=event")
        await expect(live.page.locator("#broker")).to_contain_text("consuming", timeout=LIMIT_MS)
        await live.page.get_by_label("event").uncheck()
        await expect(live.page).to_have_url(f"http://localhost:{port}/intern/kills/")
        await live.shows_state(CONNECTED)
        assert live.messages == []


HOST_LINE = re.compile(rb"\r\nHost: [^\r]*\r\n", re.IGNORECASE)


@asynccontextmanager
async def renaming_proxy(port: int) -> AsyncIterator[int]:
    """Forwards requests with the Host of their target, as nginx does by default. Yields the port of the proxy."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                up_writer.write(HOST_LINE.sub(b"\r\nHost: 127.0.0.1:%d\r\n" % port, head))
                await asyncio.gather(_pump(reader, up_writer), _pump(up_reader, writer))
            finally:
                up_writer.transport.abort()

    async with tcp_server(serve) as proxy_port:
        yield proxy_port


async def test_page_behind_a_proxy_that_rewrites_host_loads_and_shows_which_origin_to_allow(
    live: Live, broker: Broker, exchange: str
) -> None:
    """When the browser requests the page's scripts, its Origin differs from the Host that the proxy sends."""
    flags: dict[str, object] = {"exchanges": f"{exchange}=killmail", "port": free_port()}
    await live.hurry()
    async with renaming_proxy(int(str(flags["port"]))) as port:
        origin = f"http://board.example:{port}"
        async with running(broker.url, **flags) as bridge:
            await live.page.goto(f"{origin}/")
            await live.shows_state(f"This address may not connect. Add {origin} to BRIDGE_ALLOWED_ORIGINS.")
            assert sample(bridge, "bridge_connections_opened_total", transport="websocket") == 0
        async with running(broker.url, **flags, allowed_origins=origin):
            # Until now, the page has tried again and again to connect.
            await live.shows_state(CONNECTED)


async def test_page_begins_with_the_newest_updates_that_match_and_counts_only_later_ones(
    live: Live, watched: Bridge, amqp: AbstractConnection, exchange: str
) -> None:
    client = await RawClient.open(port_of(watched))
    await publish(amqp, exchange, *(killmail(number, systemId=30000142 + number % 2) for number in range(1, 131)))
    while orjson.loads(await client.text())["data"]["killmailId"] < 130:
        pass
    await client.close()
    await live.open(port_of(watched))
    await live.has(50)
    assert await live.kills() == list(range(130, 80, -1))
    await expect(live.page.locator("#rate-words")).to_contain_text("Now 0 a second")
    await live.open(port_of(watched), query="?systemId=30000143")
    await live.has(50)
    assert await live.kills() == list(range(129, 29, -2))
    await publish(amqp, exchange, killmail(131, systemId=30000143))
    await live.has(51)
    await expect(live.page.locator("#rate-words")).not_to_contain_text("Now 0 a second", timeout=LIMIT_MS)
    assert live.messages == []


async def test_page_keeps_the_newest_hundred_updates_newest_first(
    live: Live, watched: Bridge, amqp: AbstractConnection, exchange: str
) -> None:
    await live.open(port_of(watched))
    await publish(amqp, exchange, *(killmail(number) for number in range(1001, 1131)))
    await live.rows.first.get_by_role("link", name="kill 1130", exact=True).wait_for(timeout=LIMIT_MS)
    assert await live.kills() == list(range(1130, 1030, -1))
    assert live.messages == []


async def test_page_shows_markup_in_updates_as_text(
    live: Live, watched: Bridge, amqp: AbstractConnection, exchange: str
) -> None:
    event = {
        "eventId": MARKUP,
        "timestamp": "2024-10-22T10:30:00Z",
        "kind": "battle",
        "title": MARKUP,
        "url": "http://a.example/<script>harmed=3</script>",
        "__proto__": {"innerHTML": MARKUP},
        MARKUP: [MARKUP],
    }
    await live.open(port_of(watched))
    await publish(amqp, exchange, event, type="event")
    await live.has(1)
    nobody = {"victimCorporationId": 0, "victimAllianceId": None}
    await publish(amqp, exchange, killmail(4, systemId=0, **nobody, victimName=MARKUP, innerHTML=MARKUP))
    await live.has(2)
    # The page shows exactly the published content.
    shown = zip(
        await live.rows.locator("b").all_text_contents(),
        await live.rows.locator("code").all_text_contents(),
        strict=True,
    )
    assert dict(shown) == {
        name: value if isinstance(value, str) else orjson.dumps(value).decode() for name, value in event.items()
    }
    words = await live.rows.first.locator("a, span").all_inner_texts()
    assert words == ["kill 4", "system 0", "ship 587", "15 attackers"]
    elements = await live.page.evaluate("[...document.querySelectorAll('tbody *')].map(element => element.localName)")
    assert set(elements) == {"tr", "td", "time", "b", "code", "a", "span"}
    assert await live.page.evaluate("typeof harmed") == "undefined"
    assert (live.messages, live.requested_hosts) == ([], {f"localhost:{port_of(watched)}"})


async def test_page_shows_only_the_beginning_of_a_large_update(
    live: Live, watched: Bridge, amqp: AbstractConnection, exchange: str
) -> None:
    event = {"eventId": "large", "timestamp": "2024-10-22T10:30:00Z", "kind": "battle", "title": "x"}
    await live.open(port_of(watched))
    await publish(amqp, exchange, {**event, "much": "x" * 1_000_000}, type="event")
    await live.has(1)
    text = await live.rows.inner_text()
    assert len(text) < 1000
    assert text.endswith(" more characters)")


async def test_page_shows_the_day_of_a_kill_on_another_day(
    live: Live, watched: Bridge, amqp: AbstractConnection, exchange: str
) -> None:
    await live.open(port_of(watched))
    await publish(amqp, exchange, killmail(6, killmailTime="2024-10-22T10:28:11Z"))
    await live.has(1)
    await expect(live.rows.first).to_contain_text("at 2024-10-22 10:28:11")
    sent = await live.page.locator("time").get_attribute("datetime")
    await publish(amqp, exchange, killmail(7, killmailTime=sent))
    await live.has(2)
    assert sent is not None
    # If midnight was between the two updates, their dates differ.
    day = await live.page.locator("time").first.get_attribute("datetime")
    before = "" if str(day).startswith(sent[:10]) else f"{sent[:10]} "
    await expect(live.rows.first).to_contain_text(f"15 attackers at {before}{sent[11:19]}")


async def test_page_without_a_script_reports_it(live: Live, watched: Bridge) -> None:
    await live.page.route("**/row.js", lambda route: route.abort())
    await live.page.goto(f"http://localhost:{port_of(watched)}/")
    late = live.page.get_by_text("A part of this page could not be loaded. Reload it.")
    visibility = "element => getComputedStyle(element).visibility"
    assert await late.evaluate(visibility) == "hidden"
    # The next line moves the animation to its tenth second.
    await late.evaluate("element => element.getAnimations().forEach((animation) => { animation.currentTime = 10_000 })")
    assert await late.evaluate(visibility) == "visible"
    assert (await late.bounding_box() or {"height": 0})["height"] > 0


async def test_loaded_page_reports_no_missing_script(live: Live, watched: Bridge) -> None:
    await live.open(port_of(watched))
    await expect(live.page.locator("#late")).to_be_hidden()


async def test_page_connects_again_when_the_bridge_is_back(
    live: Live, broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    exchanges = f"{exchange}=killmail"
    async with running(broker.url, exchanges=exchanges) as bridge:
        await live.open(port_of(bridge))
        # The page shows the state of the stopping bridge for only half a second.
        await live.page.evaluate("""() => {
            window.states = []
            const state = document.querySelector("#state")
            const keep = () => states.push(state.textContent.trim())
            new MutationObserver(keep).observe(state, { childList: true, characterData: true, subtree: true })
        }""")
    # The page shows this state only after it has tried to reconnect.
    await live.shows_state("Disconnected: the bridge can't be reached. Retrying")
    assert "Disconnected: the bridge is stopping. Retrying" in await live.page.evaluate("states")
    async with running(broker.url, exchanges=exchanges, port=port_of(bridge)):
        await live.shows_state(CONNECTED)
        await publish(amqp, exchange, killmail(5))
        await live.shows(5)
        assert live.messages_except(NOT_REACHED) == []


async def test_page_shows_that_the_bridge_is_full_and_reconnects(live: Live, broker: Broker, exchange: str) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", max_connections=1) as bridge:
        other = await RawClient.open(port_of(bridge))
        await live.hurry()
        await live.page.goto(f"http://localhost:{port_of(bridge)}/")
        await live.shows_state("Disconnected: the bridge is full. Retrying")
        await other.close()
        await live.shows_state(CONNECTED)
        assert live.messages == []


async def without_trusted_types(route: Route) -> None:
    """Fulfills a request with the bridge's response, but removes Trusted Types from its policy."""
    answer = await route.fetch()
    policy = answer.headers["content-security-policy"]
    without = policy.replace("require-trusted-types-for 'script'; ", "")
    assert without != policy
    await route.fulfill(response=answer, headers={**answer.headers, "content-security-policy": without})


def append(element: str, **properties: str) -> str:
    """Returns a script that adds an element to the page."""
    made = f"document.createElement('{element}')"
    return f"document.body.append(Object.assign({made}, {orjson.dumps(properties).decode()}))"


@pytest.mark.parametrize(
    ("script", "directive"),
    [
        pytest.param(append("p", innerHTML="<img src=icon.svg onload='harmed = 1'>"), "script-src-attr", id="handler"),
        pytest.param(append("script", text="harmed = 1"), "script-src-elem", id="script"),
        pytest.param(append("script", src=FOREIGN_URL), "script-src-elem", id="foreign-script"),
        pytest.param("open('javascript:harmed = 1', '_self')", "script-src-elem", id="address"),
        pytest.param("setTimeout('harmed = 1')", "script-src", id="text"),
        pytest.param(append("p", innerHTML="<style>p { color: red }</style>"), "style-src-elem", id="style"),
        pytest.param(append("p", innerHTML="<i style='color: red'>"), "style-src-attr", id="style-of-an-element"),
        pytest.param(append("img", src=FOREIGN_URL), "img-src", id="image"),
        pytest.param(append("iframe", src=FOREIGN_URL), "frame-src", id="frame"),
        pytest.param(append("object", data=FOREIGN_URL), "object-src", id="object"),
        pytest.param(append("base", href=FOREIGN_URL), "base-uri", id="base"),
        pytest.param(append("form", action=FOREIGN_URL) + ", document.forms[0].submit()", "form-action", id="form"),
        pytest.param(f"fetch('{FOREIGN_URL}').catch(() => 0)", "connect-src", id="fetch"),
        pytest.param(f"navigator.sendBeacon('{FOREIGN_URL}')", "connect-src", id="beacon"),
        pytest.param(f"new WebSocket('{FOREIGN_URL}')", "connect-src", id="socket"),
    ],
)
async def test_injected_markup_neither_runs_nor_sends_data(
    script: str, directive: str, tab: Page, watched: Bridge
) -> None:
    # For browsers without Trusted Types, this test checks the rest of the policy.
    await tab.route(f"http://localhost:{port_of(watched)}/", without_trusted_types)
    async with foreign_site({"/x": File("text/javascript", "harmed = 2")}) as foreign:
        await tab.goto(f"http://localhost:{port_of(watched)}/")
        await tab.evaluate(VIOLATED)
        await tab.evaluate(f"() => {{ {script.replace(FOREIGN_URL, f'http://foreign.example:{foreign.port}/x')} }}")
        async with asyncio.timeout(LIMIT_S):
            assert await tab.evaluate("violated") == directive
        assert await tab.evaluate("typeof harmed") == "undefined"
        assert foreign.asked == []


@pytest.mark.parametrize(
    "script",
    [
        append("p", innerHTML="plain"),
        append("script", text="harmed = 1"),
        append("script", src="/page.js"),
        "setTimeout('harmed = 1')",
        "new DOMParser().parseFromString('', 'text/html')",
        "trustedTypes.createPolicy('own', {})",
    ],
)
async def test_script_turns_no_text_into_markup_or_code(script: str, tab: Page, watched: Bridge) -> None:
    await tab.unroute_all()
    await tab.goto(f"http://localhost:{port_of(watched)}/")
    await tab.evaluate(VIOLATED)
    with pytest.raises(Error, match=r"TrustedTypePolicy|Trusted"):
        await tab.evaluate(f"() => {{ {script} }}")
    async with asyncio.timeout(LIMIT_S):
        assert "trusted-types" in await tab.evaluate("violated")
