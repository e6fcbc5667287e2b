"""The files of the live page by their paths, and which paths other origins may read."""

from pathlib import Path

from bridge.config.paths import ASYNCAPI, PAGE_FILES, SCHEMAS
from bridge.contract.catalog import PACKAGED

FOLDER = Path(__file__).parents[2] / "page"
"""The live page's files."""

_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

_FILES = {
    "/": FOLDER / "index.html",
    **{f"/{name}": FOLDER / name for name in PAGE_FILES},
    # The example for people to copy is what the page itself connects with.
    f"{SCHEMAS}clients/browser.js": PACKAGED / "clients" / "browser.js",
}

PARTS = {path: (file, _MEDIA_TYPES[file.suffix]) for path, file in _FILES.items()}
"""The live page and the files that it loads: path, file, media type."""


def is_shared(path: str) -> bool:
    """Whether pages of other origins may read what is there, if they may connect: the contract's documents."""
    return path == ASYNCAPI or path.startswith(SCHEMAS)
