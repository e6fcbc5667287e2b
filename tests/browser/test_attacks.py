"""Web pages of other sites get nothing from a bridge that runs on the same machine as the browser.

Each attack is a function in `attacks.js`, which runs in a page like any script. The table `CASES` has the result of
each attack, and the rule by which the bridge refuses it. No attack gets a connection. Most requests that a browser
sends without the header Origin are not refused by any rule. For requests that no rule refuses, the headers of the
bridge's response tell the browser not to let the page read the response.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio
from playwright.async_api import Page

from bridge.app import Bridge
from tests.support.broker.find import Broker
from tests.support.browser import REDIRECT, File, ForeignSite, foreign_site
from tests.support.running import port_of, running, sample
from tests.support.waiting import LIMIT_S, eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

ATTACKER = "attacker.example"
FILES = {
    "/": File(
        "text/html",
        '<!doctype html><title>Kittens</title><link rel="icon" href="data:,"><body><script src="attacks.js"></script>',
    ),
    "/attacks.js": File("text/javascript", Path(__file__).with_name("attacks.js").read_text()),
}
RULES = ("peer", "forwarded", "host", "origin")
METRICS = "http://localhost:{port}/metrics"
SOCKET = "ws://localhost:{port}/updates"


class Case(NamedTuple):
    """An attack, the place in which it runs, its expected result, and the rule by which the bridge refuses it."""

    attack: str
    url: str
    saw: str
    rule: str | None = "origin"
    place: str = "page"

    @property
    def name(self) -> str:
        """The name of the case, for the id of the test."""
        return f"{self.attack}-{self.url.replace(':{port}', '')}-{self.place}"


def sockets(rule: str, *hosts: str) -> list[Case]:
    """Returns a case for each host name, all with the same WebSocket attack."""
    return [Case("socket", f"ws://{host}:{{port}}/updates", "closed 1006", rule) for host in hosts]


CASES = [
    # A page opens a WebSocket to each name of this machine.
    *sockets("origin", "localhost", "127.0.0.1", "[::1]", "127.1", "2130706433", "[::ffff:127.0.0.1]"),
    *sockets("origin", "kills.localhost", "LOCALHOST."),
    # A page opens a WebSocket to the unspecified address, and to host names of the attacker that now resolve to the
    # bridge's address.
    *sockets("host", ATTACKER, f"localhost.{ATTACKER}", f"127.0.0.1.{ATTACKER}", "0.0.0.0"),
    # The WebSocket is opened in a frame or worker whose origin is null, or is the origin of the page that created it.
    *(
        Case(attack, url, saw, rule, place)
        for place in (
            "sandboxedFrame",
            "dataFrame",
            "blobFrame",
            "worker",
            "sharedWorker",
            "blobWorker",
            "dataWorker",
        )
        for attack, url, saw, rule in (
            ("socket", SOCKET, "closed 1006", "origin"),
            ("fetch", METRICS, "TypeError", None),
        )
    ),
    # A script tries to read responses.
    *(
        Case("fetch", f"http://localhost:{{port}}{path}", "TypeError", rule)
        for path, rule in (
            ("/readyz", None),
            ("/schemas/killmail.json", None),
            ("/asyncapi.json", None),
            ("/openapi.json", None),
            ("/updates", "origin"),
            ("/nothing", None),
        )
    ),
    Case("fetch", METRICS, "TypeError", None),
    Case("fetch", f"http://{ATTACKER}:{{port}}/metrics", "TypeError", "host"),
    Case("fetch", f"{REDIRECT}{METRICS}", "TypeError", None),
    Case("fetch", f"{REDIRECT}http://localhost:{{port}}/updates", "TypeError"),
    Case("fetchWithCredentials", METRICS, "TypeError", None),
    Case("fetchWithCredentials", "http://localhost:{port}/updates", "TypeError"),
    # The browser sends a preflight request (OPTIONS).
    Case("fetchWithWords", METRICS, "TypeError", None),
    Case("fetchWithWords", "http://localhost:{port}/updates", "TypeError"),
    # The bridge answers every POST with 405, whatever its origin is.
    Case("fetchPost", METRICS, "TypeError", None),
    *(
        Case("fetchOpaque", f"http://localhost:{{port}}{path}", "TypeError", rule)
        for path, rule in (
            ("/metrics", None),
            ("/readyz", None),
            ("/schemas/killmail.json", None),
            # The browser sends the header Sec-Fetch-Site with the value cross-site, but no Origin.
            ("/updates", "origin"),
            ("/nothing", None),
        )
    ),
    Case("request", METRICS, "error 0", None),
    Case("events", METRICS, "error 2", None),
    Case("events", "http://localhost:{port}/updates", "error 2"),
    # A page embeds a file of the bridge.
    Case("script", "http://localhost:{port}/page.js", "error", None),
    Case("script", f"{REDIRECT}http://localhost:{{port}}/page.js", "error", None),
    Case("scriptWithCors", "http://localhost:{port}/page.js", "error", None),
    Case("module", "http://localhost:{port}/page.js", "TypeError", None),
    Case("module", "http://localhost:{port}/schemas/clients/browser.js", "TypeError", None),
    Case("importScripts", "http://localhost:{port}/page.js", "NetworkError", None, "worker"),
    Case("image", "http://localhost:{port}/icon.svg", "error", None),
    Case("style", "http://localhost:{port}/page.css", "error", None),
    # The browser shows an error page in the frame instead of the bridge's page. In an `object` element, the browser
    # shows an empty page.
    *(
        Case("iframe", f"http://localhost:{{port}}{path}", "SecurityError", rule)
        for path, rule in (
            ("/", None),
            ("/metrics", None),
            ("/readyz", None),
            ("/updates", "origin"),
            ("/nothing", None),
        )
    ),
    Case("embed", METRICS, "SecurityError", None),
    Case("object", METRICS, "read", None),
]


def refusals(bridge: Bridge) -> dict[str, float]:
    """Returns the number of clients that each rule of access has refused."""
    return {rule: sample(bridge, "bridge_clients_refused_total", rule=rule) for rule in RULES}


class Watch:
    """What the bridge has counted since this object was created."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._before = refusals(bridge)
        self._opened = sample(bridge, "bridge_connections_opened_total", transport="websocket")

    @property
    def refused(self) -> dict[str, float]:
        """The number of refused clients by rule, without the rules that refused no client."""
        now = refusals(self._bridge)
        return {rule: now[rule] - before for rule, before in self._before.items() if now[rule] > before}

    @property
    def opened(self) -> float:
        """The number of opened connections."""
        return sample(self._bridge, "bridge_connections_opened_total", transport="websocket") - self._opened


async def attack(page: Page, name: str, url: str, place: str = "page") -> str:
    """Runs an attack, and returns its result. Raises TimeoutError if the attack does not end in time."""
    async with asyncio.timeout(LIMIT_S):
        saw = await page.evaluate("([place, attack, url]) => places[place](attack, url)", [place, name, url])
    assert isinstance(saw, str)
    return saw


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def attacked(broker: Broker, exchange: str) -> AsyncIterator[Bridge]:
    """A bridge with default settings."""
    async with running(broker.url, exchanges=f"{exchange}=killmail", host="localhost") as bridge:
        yield bridge


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def site() -> AsyncIterator[ForeignSite]:
    """The attacker's site."""
    async with foreign_site(FILES) as running_site:
        yield running_site


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_page_of_another_origin_gets_nothing(case: Case, attacked: Bridge, site: ForeignSite, tab: Page) -> None:
    if "[::1]" in case.url and "::1" not in dict(attacked.addresses):
        pytest.skip("this machine has no IPv6")
    port = port_of(attacked)
    # For each place, the page has a different host name and so runs in a different process, because after a dozen
    # failed connections, Chromium delays all sockets of a process.
    await tab.goto(f"http://{case.place}-{ATTACKER}:{site.port}/")
    watch = Watch(attacked)
    saw = await attack(tab, case.attack, case.url.format(port=port), case.place)
    assert (saw, watch.refused) == (case.saw, {case.rule: 1} if case.rule else {})
    assert (watch.opened, sample(attacked, "bridge_connections", transport="websocket")) == (0, 0)
    # No frame of the tab shows a page of the bridge.
    assert [frame.url for frame in tab.frames if f":{port}" in frame.url and not frame.url.startswith("data:")] == []


@pytest.mark.parametrize(
    ("path", "words", "connections"), [("/metrics", "bridge_consuming", 0), ("/", "Connected", 1)], ids=["text", "live"]
)
async def test_window_that_a_page_opens_of_the_bridge_is_not_readable(
    path: str, words: str, connections: int, attacked: Bridge, site: ForeignSite, page: Page
) -> None:
    await page.goto(f"http://{ATTACKER}:{site.port}/")
    watch = Watch(attacked)
    async with page.expect_popup() as opening:
        assert await attack(page, "popup", f"http://localhost:{port_of(attacked)}{path}") == "a window"
    popup = await opening.value
    # The opened window shows a page of the bridge to the user. If the window shows the live page, the live page has its
    # own connection.
    await popup.get_by_text(words).first.wait_for(timeout=LIMIT_S * 1000)
    assert await page.evaluate("inside(window.opened)") == "SecurityError"
    assert (watch.opened, watch.refused) == (connections, {})
    await popup.close()
    await eventually(
        "the page's connection is closed", lambda: sample(attacked, "bridge_connections", transport="websocket") == 0
    )


@pytest.mark.parametrize("form", ["form", "formWithWords"])
@pytest.mark.parametrize(
    ("path", "status", "words", "refused"),
    [("/updates", 403, "BRIDGE_ALLOWED_ORIGINS", {"origin": 1}), ("/metrics", 405, "Only GET", {})],
)
async def test_form_of_another_origin_is_refused(
    path: str,
    form: str,
    status: int,
    words: str,
    refused: dict[str, float],
    attacked: Bridge,
    site: ForeignSite,
    page: Page,
) -> None:
    await page.goto(f"http://{ATTACKER}:{site.port}/")
    watch = Watch(attacked)
    async with page.expect_navigation() as sending:
        await attack(page, form, f"http://localhost:{port_of(attacked)}{path}")
    answer = await sending.value
    assert answer is not None
    assert (answer.status, words in await answer.text()) == (status, True)
    assert (watch.refused, watch.opened) == (refused, 0)


@pytest.mark.parametrize("name", [ATTACKER, f"localhost.{ATTACKER}", f"127.0.0.1.{ATTACKER}"])
async def test_attackers_name_that_resolves_to_the_bridge_shows_a_refusal(
    name: str, attacked: Bridge, page: Page
) -> None:
    watch = Watch(attacked)
    answer = await page.goto(f"http://{name}:{port_of(attacked)}/")
    assert answer is not None
    assert (answer.status, "BRIDGE_ALLOWED_HOSTS" in await answer.text()) == (403, True)
    # Some browsers also request an icon, so more than one request may be refused.
    assert set(watch.refused) == {"host"}
    assert watch.opened == 0


HOSTS = "403 The Host header must name localhost"


@pytest.mark.parametrize(
    ("allowed", "saw"),
    [
        ("", {"socket": "closed 1006", "fetch": f"basic {HOSTS}", "request": HOSTS, "events": "error 2"}),
        # If the name is allowed, the bridge answers the same requests. This proves that the refused requests reached
        # the bridge, too.
        (ATTACKER, {"socket": "open", "fetch": "basic 200 # HELP", "request": "200 # HELP", "events": "error 2"}),
    ],
    ids=["attacker", "allowed"],
)
async def test_page_gets_nothing_if_its_name_moves_to_the_bridge_unless_the_name_is_allowed(
    allowed: str, saw: dict[str, str], broker: Broker, exchange: str, page: Page
) -> None:
    async with foreign_site(FILES) as moving:
        here = f"{ATTACKER}:{moving.port}"
        await page.goto(f"http://{here}/")
    # The page stays open. From now on, the bridge has the page's name and port, and therefore the page's origin.
    flags = {"exchanges": f"{exchange}=killmail", "port": moving.port, "allowed_hosts": allowed}
    async with running(broker.url, **flags) as bridge:
        watch = Watch(bridge)
        for name, expected in saw.items():
            got = await attack(page, name, f"ws://{here}/updates" if name == "socket" else f"http://{here}/metrics")
            assert got.startswith(expected), name
        refused, opened = ({}, 1) if allowed else ({"host": len(saw)}, 0)
        assert (watch.refused, watch.opened) == (refused, opened)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "board.localhost", "board.example"])
async def test_page_of_an_allowed_origin_gets_only_the_socket_and_the_documents(
    host: str, broker: Broker, exchange: str, site: ForeignSite, page: Page
) -> None:
    flags = {"exchanges": f"{exchange}=killmail", "allowed_origins": f"http://board.example:{site.port}"}
    async with running(broker.url, **flags) as bridge:
        await page.goto(f"http://{host}:{site.port}/")
        watch = Watch(bridge)
        port = port_of(bridge)
        assert await attack(page, "socket", SOCKET.format(port=port)) == "open"
        for path in ("schemas/killmail.json", "asyncapi.json", "openapi.json"):
            assert (await attack(page, "fetch", f"http://localhost:{port}/{path}")).startswith("cors 200 {"), path
        assert (await attack(page, "fetch", f"http://localhost:{port}/updates")).startswith("cors 426 ")
        assert await attack(page, "fetch", METRICS.format(port=port)) == "TypeError"
        assert await attack(page, "script", f"http://localhost:{port}/page.js") == "error"
        assert (watch.refused, watch.opened) == ({}, 1)


@pytest.mark.parametrize("place", ["sandboxedFrame", "dataFrame"])
async def test_allowed_null_origin_admits_frames_of_any_site(
    place: str, broker: Broker, exchange: str, site: ForeignSite, page: Page
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", allowed_origins="null") as bridge:
        await page.goto(f"http://{ATTACKER}:{site.port}/")
        assert await attack(page, "socket", SOCKET.format(port=port_of(bridge)), place) == "open"


async def test_local_file_has_the_origin_null(broker: Broker, exchange: str, tmp_path: Path, page: Page) -> None:
    (tmp_path / "page.html").write_text('<!doctype html><script src="attacks.js"></script>')
    (tmp_path / "attacks.js").write_text(FILES["/attacks.js"].body)
    async with running(broker.url, exchanges=f"{exchange}=killmail", allowed_origins="null") as bridge:
        await page.goto((tmp_path / "page.html").as_uri())
        assert await page.evaluate("self.origin") == "null"
        assert await attack(page, "socket", SOCKET.format(port=port_of(bridge))) == "open"
