"""The browser example reports why no connection opens. Each cause is provoked with a real bridge in Chromium."""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from bridge.app import Bridge
from tests.support.broker.ports import free_port
from tests.support.browser import FOREIGN_SUFFIX, ForeignSite, chromium, foreign_site
from tests.support.certificates import certificate
from tests.support.clients import RawClient
from tests.support.followers import Follower, in_page, page_files
from tests.support.running import port_of, started
from tests.support.waiting import eventually

# All tests run in one event loop, so that one browser serves all of them.
pytestmark = pytest.mark.asyncio(loop_scope="module")

NO_BROKER = "amqp://127.0.0.1:1/"
"""A broker's URL at which nothing listens. The bridge waits for its broker, and judges handshakes meanwhile."""

FAILURES_BEFORE_DIAGNOSIS = 3
PERMISSION = "local-network-access"
LONG_S = 60.0
"""A silence limit that no test reaches."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site() -> AsyncIterator[ForeignSite]:
    """A site that serves the example."""
    async with foreign_site(page_files({})) as running:
        yield running


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """A certificate that only a browser with `ignore_https_errors` trusts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path_factory.mktemp("certificate"), "site"))
    return context


@pytest_asyncio.fixture(loop_scope="module")
async def bridge() -> AsyncIterator[Bridge]:
    async with started(NO_BROKER, host="localhost", max_connections=1) as running:
        yield running


def url_of(bridge: Bridge, query: str = "") -> str:
    return f"ws://localhost:{port_of(bridge)}/updates{query}"


async def diagnosis(follower: Follower, code: int = 1006) -> str:
    """Returns the first reason that the client reports, with the close code of the lost connection."""

    async def reasons() -> list[str]:
        return [words[2] for words in await follower.reports() if words[:2] == ["disconnected", code] and words[2]]

    await eventually("a reason is reported", reasons)
    return (await reasons())[0]


async def test_cause_is_reported_after_the_third_connection_that_never_opened(
    browser: Browser, site: ForeignSite
) -> None:
    address = f"localhost:{free_port()}"
    async with in_page(browser, f"http://localhost:{site.port}/", f"ws://{address}/updates", LONG_S) as follower:
        assert await diagnosis(follower) == f"no bridge answers at http://{address}/updates"
        reports = await follower.reports()
    unknown = ["disconnected", 1006, ""]
    assert reports[: FAILURES_BEFORE_DIAGNOSIS + 1] == [
        *[unknown] * FAILURES_BEFORE_DIAGNOSIS,
        ["disconnected", 1006, f"no bridge answers at http://{address}/updates"],
    ]


async def test_refused_filter_is_reported_with_the_sentence_of_the_bridge(
    browser: Browser, site: ForeignSite, bridge: Bridge
) -> None:
    url = url_of(bridge, "?systemID=30000142")
    async with in_page(browser, f"http://localhost:{site.port}/", url, LONG_S) as follower:
        reason = await diagnosis(follower)
    assert reason.startswith("400: This query can't be answered: ")
    assert "systemId" in reason


async def test_wrong_path_is_reported(browser: Browser, site: ForeignSite, bridge: Bridge) -> None:
    address = f"localhost:{port_of(bridge)}/update"
    async with in_page(browser, f"http://localhost:{site.port}/", f"ws://{address}", LONG_S) as follower:
        assert await diagnosis(follower) == f"no bridge answers at http://{address}"


async def test_origin_that_is_not_allowed_is_reported_as_a_possible_cause(
    browser: Browser, site: ForeignSite, bridge: Bridge
) -> None:
    page = f"http://board{FOREIGN_SUFFIX}:{site.port}"
    async with in_page(browser, f"{page}/", url_of(bridge), LONG_S, permissions=[PERMISSION]) as follower:
        reason = await diagnosis(follower)
    nothing = f"no bridge answers at http://localhost:{port_of(bridge)}/updates"
    assert reason == f"{nothing}, or it refuses pages of {page} (BRIDGE_ALLOWED_ORIGINS)"


@asynccontextmanager
async def proxy(port: int, host: str, *, passes_upgrades: bool) -> AsyncIterator[int]:
    """Serves the example, and forwards all other requests to a bridge under another host name.

    Yields the proxy's port.
    """
    files = page_files({})

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            if (file := files.get(head.split(" ", 2)[1])) is not None:
                lines = "HTTP/1.1 200 OK", f"Content-Type: {file.content_type}", "Connection: close"
                writer.write("\r\n".join([*lines, "", file.body]).encode())
            else:
                head = re.sub("(?mi)^host: .*$", f"Host: {host}:{port}\r", head)
                if not passes_upgrades:
                    head = re.sub("(?mi)^(upgrade|connection): .*\n", "", head)
                bridge_reader, bridge_writer = await asyncio.open_connection("127.0.0.1", port)
                bridge_writer.write(head.encode())
                # The bridge ends the connection after its response.
                writer.write(await bridge_reader.read())
                bridge_writer.close()
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # A browser also opens connections that it does not use.
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


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
    """A browser to which the site has a public address."""
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

            async def is_connected() -> bool:
                return "connected" in [words[0] for words in await follower.reports()]

            await eventually("the client is connected", is_connected)
