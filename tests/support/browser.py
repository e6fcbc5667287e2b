"""A real browser for tests: Debian's Chromium, driven by Playwright, cut off from everything but loopback."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import Browser, async_playwright

from tests.support.broker import unavailable
from tests.support.prepare import CHROMIUM

STRANGERS = ".example"
"""Names that end so are this machine to the browser, and nothing that it knows to be local."""

# Literal addresses go through these rules too.
_RULES = [
    f"MAP *{STRANGERS} 127.0.0.1",
    "MAP * ~NOTFOUND",
    *(
        f"EXCLUDE {host}"
        for host in ("localhost", "localhost.", "*.localhost", "127.0.0.1", "0.0.0.0", "::1", "::ffff:7f00:1")
    ),
]

_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    f"--host-resolver-rules={', '.join(_RULES)}",
]


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """The browser; each of its contexts is a fresh profile."""
    command = shutil.which(CHROMIUM)
    if command is None:
        unavailable("chromium is not installed; `python -m tests.support.prepare` installs it")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=command, args=_FLAGS)
        try:
            yield browser
        finally:
            await browser.close()
