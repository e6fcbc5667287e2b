"""The HTTP side: what a GET of anything but the WebSocket endpoint answers.

Pure but for what it is given to ask: readiness, metrics, schema files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

import orjson

from bridge.contract import asyncapi
from bridge.metrics import CONTENT_TYPE, Metrics

JSON = "application/json; charset=utf-8"
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Page:
    """An HTTP response before it is written."""

    status: HTTPStatus
    body: bytes
    content_type: str = TEXT
    headers: tuple[tuple[str, str], ...] = ()


def sentence(status: HTTPStatus, text: str, *headers: tuple[str, str]) -> Page:
    """A refusal or an error: one plain sentence."""
    return Page(status, text.encode() + b"\n", TEXT, headers)


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
        self._not_found = sentence(
            HTTPStatus.NOT_FOUND,
            f"There is nothing here. {updates_path} is the WebSocket endpoint; "
            "the pages are /healthz, /readyz, /metrics, /schemas/ and /asyncapi.json.",
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
        if path.startswith("/schemas/") and (document := self._schemas.get(path.removeprefix("/schemas/"))) is not None:
            return Page(HTTPStatus.OK, document, "application/schema+json; charset=utf-8")
        return self._not_found
