"""`python -m tests.support.picture`: takes the pictures of the live page that README.md shows.

The updates in the pictures come from the demo, which needs no broker. One picture is light, the other is dark, and each
has 1280 x 640 pixels.
"""

import asyncio
import sys
from pathlib import Path
from typing import Literal

from playwright.async_api import Browser, expect

from tests.support.browser import chromium

FOLDER = Path(__file__).parents[2] / ".github"
WIDTH, HEIGHT = 1280, 640
PORT = 3900
URL = f"http://localhost:{PORT}/"
RATE = 1
"""The number of killmails per second."""
CHART_S = 300
"""The length of time that the chart of the live page covers."""


async def take(browser: Browser, url: str, scheme: Literal["dark", "light"]) -> None:
    """Takes one picture as soon as the page's chart is full."""
    page = await browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)
    await page.goto(url)
    await expect(page.locator("#unseen")).to_be_hidden(timeout=2 * CHART_S * 1000)
    await page.screenshot(path=FOLDER / f"live-page-{scheme}.png")
    await page.close()


async def main() -> None:
    """Runs the demo, and takes both pictures."""
    FOLDER.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "bridge", "demo", "--without-broker", f"--rate={RATE}", f"--port={PORT}"]
    demo = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        assert demo.stdout is not None
        async for line in demo.stdout:
            if b"live page" in line:
                break
        async with chromium() as browser, asyncio.TaskGroup() as tasks:
            tasks.create_task(take(browser, URL, "light"))
            tasks.create_task(take(browser, URL, "dark"))
    finally:
        demo.terminate()
        await demo.communicate()


if __name__ == "__main__":
    asyncio.run(main())
