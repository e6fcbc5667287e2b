"""The browser example reports why no connection opens.

Each cause of a failure is provoked in Chromium, with a real bridge.
"""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from bridge.app import Bridge
from tests.support.broker.ports import free_port
from tests.support.browser import FOREIGN_SUFFIX, File, ForeignSite, chromium, foreign_site
from tests.support.certificates import certificate
from tests.support.clients import RawClient
from tests.support.followers import Follower, in_page, page_files
from tests.support.running import port_of, started
from tests.support.waiting import LIMIT_S, eventually

# All tests run in one event loop, so that one browser serves all of them.
pytestmark = pytest.mark.asyncio(loop_scope="module")

NO_BROKER = "amqp://127.0.0.1:1/"
"""A broker URL with a port on which nothing listens.

While the bridge waits for a broker, it accepts or refuses handshakes as usual.
"""

FAILURES_BEFORE_REASON = 2
PAUSES_S = {"FIRST_PAUSE": 0.5, "LONGEST_PAUSE": 1.0}
"""The pauses of a client, which are long enough for a diagnosis to end before the next attempt to connect."""

DIAGNOSIS_MS = "10_000"
"""The time limit for the requests of a diagnosis, as written in the example."""

PERMISSION = "local-network-access"
LONG_S = 60.0
"""A silence limit that no test reaches."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site() -> AsyncIterator[ForeignSite]:
    """A web site that serves the example for browsers."""
    async with foreign_site(page_files({})) as running:
        yield running


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """A certificate that a browser accepts only with `ignore_https_errors`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path_factory.mktemp("certificate"), "site"))
    return context


@pytest_asyncio.fixture(loop_scope="module")
async def bridge() -> AsyncIterator[Bridge]:
    async with started(NO_BROKER, host="localhost", max_connections=1) as running:
        yield running


def url_of(bridge: Bridge, query: str = "") -> str:
    return f"ws://localhost:{port_of(bridge)}/updates{query}"


async def is_connected(follower: Follower) -> bool:
    return "connected" in [words[0] for words in await follower.reports()]


async def diagnosis(follower: Follower, code: int = 1006) -> str:
    """Returns the first reason that the client reports for a lost connection with this close code."""

    async def reasons() -> list[str]:
        return [words[2] for words in await follower.reports() if words[:2] == ["disconnected", code] and words[2]]

    await eventually("a reason is reported", reasons)
    return (await reasons())[0]


def nothing_at(address: str) -> str:
    """Returns the reason that the example reports for an address from which no response comes."""
    return f"no bridge answers at http://{address}, or the path is wrong, or the bridge is full"


async def test_cause_is_reported_by_the_third_connection_that_never_opened(browser: Browser) -> None:
    address = f"localhost:{free_port()}"
    async with (
        foreign_site(page_files(PAUSES_S)) as site,
        in_page(browser, f"http://localhost:{site.port}/", f"ws://{address}/updates", LONG_S) as follower,
    ):
        assert await diagnosis(follower) == nothing_at(f"{address}/updates")
        reports = await follower.reports()
    assert reports[: FAILURES_BEFORE_REASON + 1] == [
        *[["disconnected", 1006, ""]] * FAILURES_BEFORE_REASON,
        ["disconnected", 1006, nothing_at(f"{address}/updates")],
    ]


async def test_refused_filter_is_reported_with_the_sentence_of_the_bridge(
    browser: Browser, site: ForeignSite, bridge: Bridge
) -> None:
    url = url_of(bridge, "?systemID=30000142")
    async with in_page(browser, f"http://localhost:{site.port}/", url, LONG_S) as follower:
        reason = await diagnosis(follower)
    assert reason.startswith("400: This query can't be answered: ")
    assert "systemId" in reason


async def test_user_and_password_in_the_url_do_not_hide_the_sentence_of_the_bridge(
    browser: Browser, site: ForeignSite, bridge: Bridge
) -> None:
    url = url_of(bridge, "?systemID=30000142").replace("ws://", "ws://user:password@")
    async with in_page(browser, f"http://localhost:{site.port}/", url, LONG_S) as follower:
        assert (await diagnosis(follower)).startswith("400: This query can't be answered: ")


@pytest.mark.parametrize("path", ["/update", "/"])
async def test_wrong_path_is_reported_as_a_possible_cause(
    browser: Browser, site: ForeignSite, bridge: Bridge, path: str
) -> None:
    address = f"localhost:{port_of(bridge)}{path}"
    async with in_page(browser, f"http://localhost:{site.port}/", f"ws://{address}", LONG_S) as follower:
        assert await diagnosis(follower) == nothing_at(address)


async def test_cookies_that_are_too_large_are_reported_as_a_possible_cause(browser: Browser, bridge: Bridge) -> None:
    """The browser sends the cookies of all applications on localhost with the handshake, but not with the diagnosis."""
    cookies = [f"Set-Cookie: application{number}={'x' * 3000}" for number in range(6)]
    async with (
        answering(RESET, *cookies) as page,
        in_page(browser, f"http://localhost:{page.port}/", url_of(bridge), LONG_S) as follower,
    ):
        assert "cookies are too large" in await diagnosis(follower)


async def test_origin_that_is_not_allowed_is_reported_as_a_possible_cause(
    browser: Browser, site: ForeignSite, bridge: Bridge
) -> None:
    page = f"http://board{FOREIGN_SUFFIX}:{site.port}"
    async with in_page(browser, f"{page}/", url_of(bridge), LONG_S, permissions=[PERMISSION]) as follower:
        reason = await diagnosis(follower)
    nothing = nothing_at(f"localhost:{port_of(bridge)}/updates")
    assert reason == f"{nothing}, or it refuses pages of {page} (BRIDGE_ALLOWED_ORIGINS)"


# The requests of a diagnosis

RESET = b""
"""The server closes the connection without a response."""

EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Server:
    """A server that is not a bridge.

    The server serves the example, and answers all other requests with one fixed response.
    """

    def __init__(self) -> None:
        self.port = 0
        self.handshakes: list[str] = []
        """The head of each WebSocket handshake."""
        self.requests: list[str] = []
        """The head of each request that is neither a handshake nor a request for the example's files."""
        self.gone = asyncio.Event()
        """Set when a client has closed the connection of a request in `requests`."""


@asynccontextmanager
async def answering(response: bytes, *page_headers: str, script: str = "") -> AsyncIterator[Server]:
    """Runs a server that answers with `response`.

    A response without `Connection: close` does not end until the client closes the connection.

    The example in the page has no time limit for its requests. `script` runs before the example.
    """
    files = page_files({})
    files["/"] = File("text/html", files["/"].body.replace("<script>", f"<script>{script};", 1))
    example = files["/browser.js"].body
    assert example.count(DIAGNOSIS_MS) == 1
    files["/browser.js"] = File("text/javascript", example.replace(DIAGNOSIS_MS, "1e9"))
    server = Server()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            if (file := files.get(head.split(" ", 2)[1])) is not None:
                lines = "HTTP/1.1 200 OK", f"Content-Type: {file.content_type}", "Connection: close", *page_headers
                writer.write("\r\n".join([*lines, "", file.body]).encode())
                await writer.drain()
                return
            is_handshake = "upgrade: websocket" in head.lower()
            (server.handshakes if is_handshake else server.requests).append(head)
            writer.write(response)
            await writer.drain()
            if response != RESET and b"Connection: close" not in response and not is_handshake:
                await reader.read()
                server.gone.set()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # A browser also opens connections that it does not use.
        finally:
            writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield server


async def test_diagnosis_sends_no_cookies(browser: Browser) -> None:
    """The diagnosis sends OPTIONS and GET requests to the page's own origin."""
    async with answering(EMPTY, "Set-Cookie: session=secret") as server:
        address = f"localhost:{server.port}"
        async with in_page(browser, f"http://{address}/", f"ws://{address}/updates", LONG_S) as follower:
            assert await diagnosis(follower) == nothing_at(f"{address}/updates")
    assert all("session=secret" in head for head in server.handshakes)
    assert {head.split()[0] for head in server.requests} == {"OPTIONS", "GET"}
    assert not [head for head in server.requests if "session=secret" in head]


async def test_diagnosis_follows_no_redirect(browser: Browser) -> None:
    response = b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    async with answering(response) as server:
        address = f"localhost:{server.port}"
        async with in_page(browser, f"http://{address}/", f"ws://{address}/updates", LONG_S) as follower:
            assert await diagnosis(follower) == nothing_at(f"{address}/updates")
    assert {head.split()[1] for head in server.requests} == {"/updates?after="}


async def test_diagnosis_does_not_read_a_response_without_an_error(browser: Browser) -> None:
    """The body of this response never ends."""
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n") as server:
        address = f"localhost:{server.port}"
        async with in_page(browser, f"http://{address}/", f"ws://{address}/updates", LONG_S) as follower:
            assert await diagnosis(follower) == nothing_at(f"{address}/updates")


async def test_client_that_stops_aborts_its_diagnosis(browser: Browser) -> None:
    """The body of this response never ends."""
    async with answering(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 1000000\r\n\r\n") as server:
        address = f"localhost:{server.port}"
        async with in_page(browser, f"http://{address}/", f"ws://{address}/updates", LONG_S) as follower:
            await eventually("the diagnosis has begun", lambda: server.requests)
            assert not server.gone.is_set()
            await follower.stop()
            async with asyncio.timeout(LIMIT_S):
                await server.gone.wait()


async def test_diagnosis_that_fails_is_no_error_of_the_page(browser: Browser) -> None:
    script = "navigator.permissions.query = () => { throw new Error('not supported') }; AbortSignal.timeout = undefined"
    async with answering(RESET, script=script) as server:
        address = f"localhost:{server.port}"
        async with in_page(browser, f"http://{address}/", f"ws://{address}/updates", LONG_S) as follower:
            await eventually("the client goes on", lambda: server.requests and len(server.handshakes) > 6)
            # `reports` fails if the page has an error.
            assert {tuple(words) for words in await follower.reports()} == {("disconnected", 1006, "")}


async def test_diagnoses_become_rare(browser: Browser, site: ForeignSite) -> None:
    """The client makes a diagnosis after 2, 4 and 8 failures. After 16 failures, Chromium itself delays handshakes."""
    async with answering(EMPTY) as server:
        page = f"http://localhost:{site.port}/"
        async with in_page(browser, page, f"ws://localhost:{server.port}/updates", LONG_S):
            await eventually("many connections have failed", lambda: len(server.handshakes) >= 14)
    assert len(server.requests) == 3


# Proxies


@asynccontextmanager
async def proxy(port: int, host: str, *, passes_upgrades: bool, begins: bool = False) -> AsyncIterator[int]:
    """Serves the example, and forwards all other requests to a bridge, with another host name.

    Yields the proxy's port. With `begins`, the proxy forwards upgrades only after the first request that is not a
    handshake.
    """
    passes = passes_upgrades
    files = page_files({})
    tasks = set[asyncio.Task[None]]()

    async def forward(head: bytes, writer: asyncio.StreamWriter) -> None:
        bridge_reader, bridge_writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            bridge_writer.write(head)
            # Forwards bytes only from the bridge to the client, because the client sends nothing after its handshake.
            while data := await bridge_reader.read(2**16):
                writer.write(data)
        finally:
            bridge_writer.close()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal passes
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            if (file := files.get(head.split(" ", 2)[1])) is not None:
                lines = "HTTP/1.1 200 OK", f"Content-Type: {file.content_type}", "Connection: close"
                writer.write("\r\n".join([*lines, "", file.body]).encode())
            else:
                head = re.sub("(?mi)^host: .*$", f"Host: {host}:{port}\r", head)
                if "upgrade: websocket" not in head.lower():
                    passes |= begins
                elif not passes:
                    head = re.sub("(?mi)^(upgrade|connection): .*\n", "", head)
                await forward(head.encode(), writer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # A browser also opens connections that it does not use.
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(answer(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
    # The forwarded WebSocket connections are still open.
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_origin_that_is_refused_behind_a_proxy_is_reported_with_the_sentence_of_the_bridge(
    browser: Browser, bridge: Bridge
) -> None:
    async with proxy(port_of(bridge), "localhost", passes_upgrades=True) as port:
        place = f"board{FOREIGN_SUFFIX}:{port}"
        async with in_page(browser, f"http://{place}/", f"ws://{place}/updates", LONG_S) as follower:
            assert await diagnosis(follower) == "403: Pages of this origin may not connect (BRIDGE_ALLOWED_ORIGINS)."


async def test_proxy_that_does_not_pass_upgrades_on_is_reported(browser: Browser, bridge: Bridge) -> None:
    async with proxy(port_of(bridge), "localhost", passes_upgrades=False) as port:
        place = f"localhost:{port}"
        async with in_page(browser, f"http://{place}/", f"ws://{place}/updates", LONG_S) as follower:
            assert "a proxy may not pass the upgrade on" in await diagnosis(follower)


async def test_bridge_that_is_back_during_the_diagnosis_is_not_reported_as_a_cause(
    browser: Browser, bridge: Bridge
) -> None:
    async with proxy(port_of(bridge), "localhost", passes_upgrades=False, begins=True) as port:
        place = f"localhost:{port}"
        async with in_page(browser, f"http://{place}/", f"ws://{place}/updates", LONG_S) as follower:
            await eventually("the client is connected", partial(is_connected, follower))
            assert not [words for words in await follower.reports() if words[0] == "disconnected" and words[2]]


async def test_ws_from_an_https_page_is_reported_as_mixed_content(
    browser: Browser, bridge: Bridge, tls: ssl.SSLContext
) -> None:
    url = f"ws://bridge{FOREIGN_SUFFIX}:{port_of(bridge)}/updates"
    async with (
        foreign_site(page_files({}), tls) as secure_site,
        in_page(browser, f"https://board{FOREIGN_SUFFIX}:{secure_site.port}/", url, LONG_S) as follower,
    ):
        assert "mixed content" in await diagnosis(follower)
        assert [words[:2] for words in await follower.reports()] == [["disconnected", 1006]]


async def test_connection_to_a_full_bridge_is_reported_with_its_close_reason(
    browser: Browser, site: ForeignSite, bridge: Bridge
) -> None:
    first = await RawClient.open(port_of(bridge))
    async with in_page(browser, f"http://localhost:{site.port}/", url_of(bridge), LONG_S) as follower:
        assert await diagnosis(follower, 1013) == "the bridge is full; reconnect later"
    await first.close()


def public(site: ForeignSite) -> AbstractAsyncContextManager[Browser]:
    """A browser that treats the site's address as public."""
    return chromium(f"--ip-address-space-overrides=127.0.0.1:{site.port}=public")


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_missing_permission_for_the_local_network_is_reported(
    bridge: Bridge, tls: ssl.SSLContext, scheme: str
) -> None:
    async with (
        foreign_site(page_files({}), tls if scheme == "https" else None) as site,
        public(site) as browser,
    ):
        page = f"{scheme}://board{FOREIGN_SUFFIX}:{site.port}/"
        async with in_page(browser, page, url_of(bridge), LONG_S, permissions=[]) as follower:
            assert await diagnosis(follower) == "the browser denies this page the permission Local Network Access"
        async with in_page(browser, page, url_of(bridge), LONG_S) as follower:
            assert "or this page needs https and the permission Local Network Access" in await diagnosis(follower)


async def test_permission_for_the_local_network_lets_a_public_page_connect(tls: ssl.SSLContext) -> None:
    async with foreign_site(page_files({}), tls) as site, public(site) as browser:
        page = f"https://board{FOREIGN_SUFFIX}:{site.port}"
        async with (
            started(NO_BROKER, host="localhost", allowed_origins=page) as bridge,
            in_page(browser, f"{page}/", url_of(bridge), LONG_S, permissions=[PERMISSION]) as follower,
        ):
            await eventually("the client is connected", partial(is_connected, follower))
