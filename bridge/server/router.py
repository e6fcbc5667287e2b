"""Decides whether the response to a request is an upgrade, an event stream, updates as JSON, a page, or a refusal.

The module has no sockets and no timers. The module is pure, except that the pages read readiness and metrics.
"""

from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeAlias

from bridge.config.paths import PROBED
from bridge.contract.filters import BadQuery, Format, Query, QueryParser, SubscribeRequest
from bridge.server.access.rules import Access, Refusal, Rule
from bridge.server.http.negotiation import preferred
from bridge.server.http.pages import Pages, allows_cross_origin
from bridge.server.http.request import BadRequest, Request
from bridge.server.http.response import (
    EVENT_STREAM,
    JSON,
    Header,
    Response,
    refusal_response,
    revalidated,
    text_response,
)
from bridge.server.websocket import upgrade
from bridge.server.websocket.upgrade import Upgrade

READ_METHODS = frozenset({"GET", "HEAD"})

PREFLIGHT = (
    ("Access-Control-Allow-Methods", "GET"),
    ("Access-Control-Allow-Headers", "Last-Event-ID, Cache-Control"),
    ("Access-Control-Max-Age", "7200"),
)
"""The CORS headers that say what a page of another origin is allowed to send to the endpoint. Chromium remembers CORS
headers for at most two hours."""

DEFAULT_LIMIT = 100
"""The maximum number of updates in a JSON response if the query names no limit."""

# Requests that wait for their response share these headers.
_VARY_OF_ENDPOINT: tuple[Header, ...] = (("Vary", "Accept, Origin"),)
_VARY_OF_DOCUMENTS: tuple[Header, ...] = (("Vary", "Origin"),)

_FORMATS = {EVENT_STREAM: Format.SSE, JSON: Format.JSON}

_WITH_OPTIONS, _WITHOUT_OPTIONS = "GET, HEAD, OPTIONS", "GET, HEAD"


@dataclass(frozen=True, slots=True)
class Refused:
    """The request is refused."""

    response: Response
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class OpenEventStream:
    """The request is answered with a stream of Server-Sent Events."""

    subscribe: SubscribeRequest
    headers: tuple[Header, ...]
    """The additional headers of the response."""


@dataclass(frozen=True, slots=True)
class Poll:
    """The request is answered with updates as JSON."""

    subscribe: SubscribeRequest
    limit: int
    """The maximum number of updates in the response."""
    wait_s: int
    """How long the response waits for the first update, in seconds."""
    headers: tuple[Header, ...]
    """The additional headers of the response."""


Opening: TypeAlias = Upgrade | OpenEventStream | Poll
"""An answer that begins a connection, which gets updates."""

Answer: TypeAlias = Opening | Response | Refused


class Router:
    """Applies the access rules to a request, and finds the answer for its path and method."""

    def __init__(self, access: Access, queries: QueryParser, pages: Pages, endpoint: str) -> None:
        """`endpoint` is the path to which clients connect for updates."""
        self._access = access
        self._queries = queries
        self._pages = pages
        self._endpoint = endpoint

    def route(self, request: Request) -> Answer:
        """Returns the answer to a request."""
        path, headers = request.path, request.headers
        requires_host = not (request.version == "1.0" and path in PROBED)
        refusal = self._access.check_request(headers, request.target, requires_host=requires_host)
        cors = self._cors_headers(request, path, trusts_host=refusal is None)
        if refusal is None and path == self._endpoint:
            refusal = self._access.check_origin(headers)
        if refusal is not None:
            return _refused(refusal, cors)
        if path == self._endpoint:
            return self._route_endpoint(request, cors)
        return self._route_page(request, path).with_headers(*cors)

    def refuse(self, error: BadRequest) -> Refused:
        """Returns the answer to a request that can't be parsed."""
        request = error.request
        # `trusts_host` is False, because the request's Host header has not been checked.
        cors = () if request is None else self._cors_headers(request, request.path, trusts_host=False)
        return _refused(error.refusal, cors)

    def _route_endpoint(self, request: Request, cors: tuple[Header, ...]) -> Answer:
        if request.method == "OPTIONS":
            return _no_content(_WITH_OPTIONS, *PREFLIGHT, *cors)
        if request.method not in READ_METHODS:
            return _method_not_allowed(_WITH_OPTIONS).with_headers(*cors)
        is_upgrade = upgrade.is_upgrade(request)
        try:
            query = self._queries.parse(request.query)
            wanted = None if is_upgrade else query.format or _negotiated(request)
            _check_parameters(query, wanted, is_upgrade=is_upgrade)
        except BadQuery as error:
            # If an error text ends with a hint that is a question, no period is added.
            end = "" if str(error).endswith("?") else "."
            text = f"This query can't be answered: {error}{end}"
            return _refused(Refusal(HTTPStatus.BAD_REQUEST, text, Rule.QUERY, text), cors)
        if wanted is Format.SSE:
            return OpenEventStream(query.resume_after(request.last_event_id), cors)
        if wanted is Format.JSON:
            limit = DEFAULT_LIMIT if query.limit is None else query.limit
            return Poll(query.resume_after(request.last_event_id), limit, query.wait_s or 0, cors)
        if (refusal := upgrade.check(request, self._endpoint)) is not None:
            return _refused(refusal, cors)
        [key] = request.headers["sec-websocket-key"]
        return Upgrade(upgrade.switching_protocols(key, cors), query.subscribe, cors)

    def _route_page(self, request: Request, path: str) -> Response:
        if request.method in READ_METHODS:
            return revalidated(self._pages.get(path), request.headers.get("if-none-match", ()))
        if request.method == "OPTIONS" and path in PROBED:
            # `OPTIONS /` is the default health check of older HAProxy versions. The bridge answers a health check with
            # the status that a GET of the same path would get.
            return Response(self._pages.get(path).status, b"", headers=(("Allow", _WITH_OPTIONS),))
        if path == "*":
            # `OPTIONS *` asks about the server as a whole, and is the health check in HAProxy's manual.
            return _no_content(_WITH_OPTIONS)
        return _method_not_allowed(_WITH_OPTIONS if path in PROBED else _WITHOUT_OPTIONS)

    def _cors_headers(self, request: Request, path: str, *, trusts_host: bool) -> tuple[Header, ...]:
        """Returns the headers that allow a page of an allowed origin to read the response.

        The returned headers never allow credentials. `trusts_host` is False if the header `Host` has not passed its
        check.
        """
        is_endpoint = path == self._endpoint
        if not (is_endpoint or allows_cross_origin(path)):
            return ()
        vary = _VARY_OF_ENDPOINT if is_endpoint else _VARY_OF_DOCUMENTS
        origin = self._access.allowed_origin(request.headers, trusts_host=trusts_host)
        if origin is None:
            return vary
        exposed = "Retry-After" if is_endpoint else "ETag"
        return *vary, ("Access-Control-Allow-Origin", origin), ("Access-Control-Expose-Headers", exposed)


def _negotiated(request: Request) -> Format | None:
    """Returns the format that the header `Accept` names, if any."""
    media_type = preferred(request.lists("accept"), _FORMATS)
    return None if media_type is None else _FORMATS[media_type]


def _check_parameters(query: Query, wanted: Format | None, *, is_upgrade: bool) -> None:
    """Raises BadQuery if the query has a parameter that does not fit the way in which the client gets its updates."""
    if is_upgrade and query.format is not None:
        raise BadQuery("format is not for WebSocket; omit it, or send the request without an upgrade")
    if is_upgrade or wanted is Format.SSE:
        for name, value, hint in (
            ("limit", query.limit, "last begins with the newest updates"),
            ("wait", query.wait_s, "omit it"),
        ):
            if value is not None:
                raise BadQuery(f"{name} is only for JSON (format=json); {hint}")


def _refused(refusal: Refusal, cors: tuple[Header, ...]) -> Refused:
    return Refused(refusal_response(refusal, *cors), refusal)


def _no_content(allowed: str, *headers: Header) -> Response:
    return Response(HTTPStatus.NO_CONTENT, b"", headers=(("Allow", allowed), *headers))


def _method_not_allowed(allowed: str) -> Response:
    text = f"Only {allowed} are allowed for this path."
    return text_response(HTTPStatus.METHOD_NOT_ALLOWED, text, ("Allow", allowed))
