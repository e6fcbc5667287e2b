"""The HTTP side: what a GET of anything but the WebSocket endpoint answers.

Pure but for what it is given to ask (readiness, metrics, schema files), and for the live page's files, which are read
once, at the start.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from http import HTTPStatus

import orjson

from bridge.contract import asyncapi
from bridge.fanout.paths import PARTS, SCHEMAS
from bridge.metrics import CONTENT_TYPE, Metrics

JSON = "application/json; charset=utf-8"
TEXT = "text/plain; charset=utf-8"

UPDATES_PATH = "@UPDATES_PATH@"
"""What stands in index.html for the path of the WebSocket endpoint, in a quoted attribute."""

NOT_IN_A_FRAME = "frame-ancestors 'none'"
"""The policy of everything that is no page for people: no page of somebody else's shows it as its own."""

LIVE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'; "
    f"{NOT_IN_A_FRAME}"
)
"""What the live page may do: load its own parts and connect to the bridge. Its script can make no markup or code of a
text, and markup that slipped in all the same runs nothing."""


@dataclass(frozen=True, slots=True)
class Page:
    """An HTTP response before it is written."""

    status: HTTPStatus
    body: bytes
    content_type: str = TEXT
    headers: tuple[tuple[str, str], ...] = ()
    policy: str = NOT_IN_A_FRAME
    """Its Content-Security-Policy."""


def sentence(status: HTTPStatus, text: str, *headers: tuple[str, str]) -> Page:
    """A refusal or an error: one plain sentence."""
    return Page(status, text.encode() + b"\n", TEXT, headers)


def _live(updates_path: str) -> dict[str, Page]:
    """The live page's parts by their paths. Raises OSError where one can't be read."""
    parts = {}
    for path, (file, media_type) in PARTS.items():
        body = file.read_bytes()
        if path == "/":
            body = body.replace(UPDATES_PATH.encode(), escape(updates_path).encode())
        parts[path] = Page(HTTPStatus.OK, body, media_type, (("Referrer-Policy", "no-referrer"),), LIVE_POLICY)
    return parts


class Pages:
    """Every page by its path."""

    def __init__(
        self,
        readiness: Callable[[], tuple[bool, dict[str, object]]],
        metrics: Metrics,
        schemas: Mapping[str, bytes],
        updates_path: str,
    ) -> None:
        """`readiness` says whether the bridge is ready, and what its JSON body is."""
        self._readiness = readiness
        self._metrics = metrics
        self._schemas = schemas
        self.asyncapi: bytes | None = None
        """The AsyncAPI document, once it is known which port it must name."""
        self._live = _live(updates_path)
        self._not_found = sentence(
            HTTPStatus.NOT_FOUND,
            f"There is nothing here. {updates_path} is the WebSocket endpoint; "
            "the pages are / (live), /healthz, /readyz, /metrics, /schemas/ and /asyncapi.json.",
        )

    def get(self, path: str) -> Page:
        """The page for a GET of `path` (without a query)."""
        match path:
            case "/healthz":
                return sentence(HTTPStatus.OK, "alive")
            case "/readyz":
                ready, body = self._readiness()
                status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
                return Page(status, orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE), JSON)
            case "/metrics":
                return Page(HTTPStatus.OK, self._metrics.exposition(), CONTENT_TYPE)
            case "/schemas/":
                return Page(HTTPStatus.OK, orjson.dumps(sorted(self._schemas)), JSON)
            case "/asyncapi.json" if self.asyncapi is not None:
                return Page(HTTPStatus.OK, self.asyncapi, asyncapi.MEDIA_TYPE)
        if (part := self._live.get(path)) is not None:
            return part
        if path.startswith(SCHEMAS) and (document := self._schemas.get(path.removeprefix(SCHEMAS))) is not None:
            return Page(HTTPStatus.OK, document, "application/schema+json; charset=utf-8")
        return self._not_found
