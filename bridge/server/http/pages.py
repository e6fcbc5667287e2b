"""The pages are the responses to GET requests for all paths except the endpoint.

The files of the live page and the documents are read only at the bridge's start. Readiness and metrics are read at each
request.
"""

from collections.abc import Callable, Mapping
from html import escape
from http import HTTPStatus
from pathlib import Path

import orjson

from bridge.config.paths import ASYNCAPI, OPENAPI, PAGE_FILES, SCHEMAS
from bridge.contract.catalog import PACKAGED
from bridge.contract.documents import asyncapi, openapi
from bridge.metrics import CONTENT_TYPE, Metrics
from bridge.server.http.response import JSON, NOT_IN_A_FRAME, Response, document_response, text_response

SCHEMA_JSON = "application/schema+json"
"""The media type of JSON Schema (draft 2020-12, core, section 14). The media type of JSON Schema has no parameter
`charset`."""

FOLDER = Path(__file__).parents[2] / "page"
"""The folder that contains the files of the live page."""

_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

_FILES = {
    "/": FOLDER / "index.html",
    **{f"/{name}": FOLDER / name for name in PAGE_FILES},
    # The live page connects with the same example code that developers copy.
    f"{SCHEMAS}clients/browser.js": PACKAGED / "clients" / "browser.js",
}

PARTS = {path: (file, _MEDIA_TYPES[file.suffix]) for path, file in _FILES.items()}
"""The file and the media type for each path of the live page."""

UPDATES_PATH = "@UPDATES_PATH@"
"""The placeholder for the endpoint's path, which is in a quoted attribute in index.html."""

LIVE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'; "
    f"{NOT_IN_A_FRAME}"
)
"""The Content-Security-Policy of the live page. This policy allows the live page to load its own files and to connect
to the bridge.

With this policy, the page's scripts can't turn text into markup or code, and injected markup can't run code.
"""


def allows_cross_origin(path: str) -> bool:
    """Whether pages of other origins may read this path.

    Pages of other origins may read only the documents of the contract.
    """
    return path in {ASYNCAPI, OPENAPI} or path.startswith(SCHEMAS)


def _live(updates_path: str) -> dict[str, Response]:
    """Returns the files of the live page by their paths. Raises OSError if a file can't be read."""
    parts = {}
    for path, (file, media_type) in PARTS.items():
        body = file.read_bytes()
        if path == "/":
            body = body.replace(UPDATES_PATH.encode(), escape(updates_path).encode())
        parts[path] = Response(HTTPStatus.OK, body, media_type, (("Referrer-Policy", "no-referrer"),), LIVE_POLICY)
    return parts


class Pages:
    """Chooses the response for each path."""

    def __init__(
        self,
        readiness: Callable[[], tuple[bool, dict[str, object]]],
        metrics: Metrics,
        schemas: Mapping[str, bytes],
        updates_path: str,
    ) -> None:
        """`readiness` returns whether the bridge is ready, and the JSON object for `/readyz`.

        `schemas` maps the names of schema files to their content.
        """
        self._readiness = readiness
        self._metrics = metrics
        self._documents = {f"{SCHEMAS}{name}": document_response(body, SCHEMA_JSON) for name, body in schemas.items()}
        self._documents[SCHEMAS] = document_response(orjson.dumps(sorted(schemas)), JSON)
        self._live = _live(updates_path)
        self._not_found = text_response(
            HTTPStatus.NOT_FOUND,
            f"There is nothing here. {updates_path} is the endpoint for updates; "
            "the pages are / (live), /healthz, /readyz, /metrics, /schemas/, /asyncapi.json and /openapi.json.",
        )

    def describe(self, asyncapi_document: bytes, openapi_document: bytes) -> None:
        """Sets the documents that are served.

        The documents contain the port, which is known only after `listen`.
        """
        self._documents[ASYNCAPI] = document_response(asyncapi_document, asyncapi.MEDIA_TYPE)
        self._documents[OPENAPI] = document_response(openapi_document, openapi.MEDIA_TYPE)

    def get(self, path: str) -> Response:
        """Returns the response to a GET of `path`, which has no query."""
        match path:
            case "/healthz":
                return text_response(HTTPStatus.OK, "alive")
            case "/readyz":
                ready, body = self._readiness()
                status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
                return Response(
                    status, orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE), JSON
                )
            case "/metrics":
                return Response(HTTPStatus.OK, self._metrics.exposition(), CONTENT_TYPE)
        return self._live.get(path) or self._documents.get(path) or self._not_found
