"""Which paths are the bridge's own: its pages, and what the live page is made of.

Apart from the pages themselves, so that a setting can be held against them without loading any.
"""

from pathlib import Path

from bridge.contract.catalog import PACKAGED

SCHEMAS = "/schemas/"
"""Everything below it is a page as well."""

ASYNCAPI = "/asyncapi.json"

PROBED = ("/healthz", "/readyz", "/metrics")
"""For programs that watch over the bridge. Some of them send HTTP/1.0 without Host (HAProxy's check)."""

NAMED = (*PROBED, SCHEMAS, ASYNCAPI)

RESERVED = ("/openapi.json",)
"""Nothing is there yet. If the endpoint took one, a later version would have to move one of the two."""

FOLDER = Path(__file__).parents[2] / "page"
"""The live page's files."""

_SCRIPT = "text/javascript; charset=utf-8"

PARTS = {
    "/": (FOLDER / "index.html", "text/html; charset=utf-8"),
    **{f"/{name}.js": (FOLDER / f"{name}.js", _SCRIPT) for name in ("page", "filter", "health", "list", "rate", "row")},
    # The example for people to copy is what the page itself connects with.
    f"{SCHEMAS}clients/browser.js": (PACKAGED / "clients" / "browser.js", _SCRIPT),
    "/page.css": (FOLDER / "page.css", "text/css; charset=utf-8"),
    "/icon.svg": (FOLDER / "icon.svg", "image/svg+xml"),
}
"""The live page and what it loads: path, file, media type."""


def is_shared(path: str) -> bool:
    """Whether pages of other origins may read what is there, if they may connect: the contract's documents."""
    return path == ASYNCAPI or path.startswith(SCHEMAS)


def is_own(path: str) -> bool:
    """Whether a page is there, or may be, so that nothing else can be."""
    return path in PARTS or path in NAMED or path in RESERVED or path.startswith(SCHEMAS)
