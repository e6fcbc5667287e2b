"""The live page in a real browser, with the browser's messages about the page."""

import re
from urllib.parse import urlsplit

from playwright.async_api import Page, expect

from tests.support.followers import CLIENTS, paused
from tests.support.waiting import LIMIT_S

LIMIT_MS = LIMIT_S * 1000
expect.set_options(timeout=LIMIT_MS)

CONNECTED = "Connected"
"""The text with which the page says that it is connected."""

NOT_REACHED = r"net::ERR_CONNECTION_|the server responded with a status of (503|426)"
"""The messages that Chromium itself writes to the console while the bridge is away or not ready.

A page can't suppress these messages.

The page asks over HTTP why its WebSocket connection failed. If the bridge has restarted before the page asks, the
status of the answer is 426."""

REFUSED = r"(Unexpected response code:|responded with a status of) 400"
"""The messages that Chromium itself writes to the console when the bridge refuses a filter."""


class Live:
    """The live page. `open` opens the page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.messages: list[str] = []
        """The lines in the browser's console (including policy violations), the page's script errors, and the failed
        requests."""
        self.requested_hosts: set[str] = set()
        """The host and the port of each request and WebSocket connection."""
        page.on("console", lambda message: self.messages.append(message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.on("requestfailed", lambda request: self.messages.append(f"{request.url}: {request.failure}"))
        page.on("request", lambda request: self.requested_hosts.add(urlsplit(request.url).netloc))
        page.on("websocket", lambda socket: self.requested_hosts.add(urlsplit(socket.url).netloc))
        self.state = page.locator("#state")
        self.rows = page.locator("tbody tr")
        self.more = page.locator("#more")

    def messages_except(self, pattern: str) -> list[str]:
        """Returns the messages that do not match the pattern."""
        return [line for line in self.messages if not re.search(pattern, line)]

    async def hurry(self) -> None:
        """Makes the page reconnect without long pauses."""
        script = paused((CLIENTS / "browser.js").read_text(), {})
        await self.page.route(
            "**/schemas/clients/browser.js", lambda route: route.fulfill(body=script, content_type="text/javascript")
        )

    async def open(self, port: int, host: str = "localhost", query: str = "") -> None:
        """Loads the page, and returns when it is connected."""
        await self.page.goto(f"http://{host}:{port}/{query}")
        await self.shows_state(CONNECTED)

    async def shows_state(self, state: str | re.Pattern[str]) -> None:
        """Waits until the page shows this state."""
        await expect(self.state).to_have_text(state, timeout=LIMIT_MS)

    async def has(self, rows: int) -> None:
        """Waits until the page shows this number of updates."""
        await expect(self.rows).to_have_count(rows, timeout=LIMIT_MS)

    async def kills(self) -> list[int]:
        """Returns the killmails that the page shows, in order."""
        links = await self.page.locator("tbody a[href*='/kill/']").all_inner_texts()
        return [int(link.removeprefix("kill ")) for link in links]

    async def shows(self, *kills: int) -> None:
        """Waits until the page shows exactly these killmails."""
        links = self.page.locator("tbody a[href*='/kill/']")
        await expect(links).to_have_text([f"kill {kill}" for kill in kills], timeout=LIMIT_MS)
