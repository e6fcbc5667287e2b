"""The live page in a real browser, and whatever the browser had to say of it meanwhile."""

import re
from urllib.parse import urlsplit

from playwright.async_api import Page, expect

from tests.support.followers import CLIENTS, paused
from tests.support.waiting import LIMIT_S

LIMIT_MS = LIMIT_S * 1000
expect.set_options(timeout=LIMIT_MS)

CONNECTED = "Connected"
"""What the page says of its state."""

NOT_REACHED = r"net::ERR_CONNECTION_|the server responded with a status of 503"
"""What Chromium itself writes of requests while the bridge is away, or is not ready. A page can't keep it from that."""

REFUSED = r"(Unexpected response code:|responded with a status of) 400"
"""Likewise of a filter that the bridge refuses."""


class Live:
    """The page, to be opened."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.said: list[str] = []
        """Lines in the console (violations of its policy are some), errors of its script, requests that failed."""
        self.asked: set[str] = set()
        """Host and port of everything that was asked for, sockets too."""
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("requestfailed", lambda request: self.said.append(f"{request.url}: {request.failure}"))
        page.on("request", lambda request: self.asked.add(urlsplit(request.url).netloc))
        page.on("websocket", lambda socket: self.asked.add(urlsplit(socket.url).netloc))
        self.state = page.locator("#state")
        self.rows = page.locator("tbody tr")
        self.more = page.locator("#more")

    def said_beside(self, pattern: str) -> list[str]:
        """What was said but for what matches."""
        return [line for line in self.said if not re.search(pattern, line)]

    async def hurry(self) -> None:
        """Has it connect again without long pauses."""
        script = paused((CLIENTS / "browser.js").read_text(), {})
        await self.page.route(
            "**/schemas/clients/browser.js", lambda route: route.fulfill(body=script, content_type="text/javascript")
        )

    async def open(self, port: int, host: str = "localhost", query: str = "") -> None:
        """Loads it, and returns when it is connected."""
        await self.page.goto(f"http://{host}:{port}/{query}")
        await self.says(CONNECTED)

    async def says(self, state: str | re.Pattern[str]) -> None:
        """Returns when that is the state."""
        await expect(self.state).to_have_text(state, timeout=LIMIT_MS)

    async def has(self, rows: int) -> None:
        """Returns when it shows that many updates."""
        await expect(self.rows).to_have_count(rows, timeout=LIMIT_MS)

    async def kills(self) -> list[int]:
        """The killmails that it shows, in order."""
        links = await self.page.locator("tbody a[href*='/kill/']").all_inner_texts()
        return [int(link.removeprefix("kill ")) for link in links]

    async def shows(self, *kills: int) -> None:
        """Returns when these are the killmails that it shows."""
        links = self.page.locator("tbody a[href*='/kill/']")
        await expect(links).to_have_text([f"kill {kill}" for kill in kills], timeout=LIMIT_MS)
