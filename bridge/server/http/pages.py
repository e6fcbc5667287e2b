"""The HTTP side: what a GET of anything but the WebSocket endpoint answers.

Pure but for what it is given to ask (readiness, metrics, schema files), and for the live page's files, which are read
once, at the start.
"""

from collections.abc import Callable, Mapping
from html import escape
from http import HTTPStatus

import orjson

from bridge.config.paths import ASYNCAPI, SCHEMAS
from bridge.contract.documents import asyncapi
from bridge.metrics import CONTENT_TYPE, Metrics
from bridge.server.http.paths import PARTS
from bridge.server.http.responses import JSON, NOT_IN_A_FRAME, Response, document, sentence

SCHEMA_JSON = "application/schema+json"
"""As JSON Schema registers it (draft 2020-12, core, section 14). Like every JSON it has no parameter for a charset."""

UPDATES_PATH = "@UPDATES_PATH@"
"""What stands in index.html for the path of the WebSocket endpoint, in a quoted attribute."""

LIVE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'; "
    f"{NOT_IN_A_FRAME}"
)
"""What the live page may do: load its own parts and connect to the bridge. Its script can make no markup or code of a
text, and markup that slipped in all the same runs nothing."""


def _live(updates_path: str) -> dict[str, Response]:
    """The live page's parts by their paths. Raises OSError where one can't be read."""
    parts = {}
    for path, (file, media_type) in PARTS.items():
        body = file.read_bytes()
        if path == "/":
            body = body.replace(UPDATES_PATH.encode(), escape(updates_path).encode())
        parts[path] = Response(HTTPStatus.OK, body, media_type, (("Referrer-Policy", "no-referrer"),), LIVE_POLICY)
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
        self._documents = {f"{SCHEMAS}{name}": document(body, SCHEMA_JSON) for name, body in schemas.items()}
        self._documents[SCHEMAS] = document(orjson.dumps(sorted(schemas)), JSON)
        self._live = _live(updates_path)
        self._not_found = sentence(
            HTTPStatus.NOT_FOUND,
            f"There is nothing here. {updates_path} is the WebSocket endpoint; "
            "the pages are / (live), /healthz, /readyz, /metrics, /schemas/ and /asyncapi.json.",
        )

    def describe(self, asyncapi_document: bytes) -> None:
        """Serves the AsyncAPI document from now on. It names the port, which is not known at the start."""
        self._documents[ASYNCAPI] = document(asyncapi_document, asyncapi.MEDIA_TYPE)

    def get(self, path: str) -> Response:
        """The page for a GET of `path` (without a query)."""
        match path:
            case "/healthz":
                return sentence(HTTPStatus.OK, "alive")
            case "/readyz":
                ready, body = self._readiness()
                status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
                return Response(
                    status, orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE), JSON
                )
            case "/metrics":
                return Response(HTTPStatus.OK, self._metrics.exposition(), CONTENT_TYPE)
        return self._live.get(path) or self._documents.get(path) or self._not_found
