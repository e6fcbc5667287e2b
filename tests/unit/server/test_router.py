"""Tests whether a request is answered with an upgrade, a page or a refusal.

`test_handshake.py` tests what a client gets.
"""

from __future__ import annotations

from http import HTTPStatus

import pytest

from bridge.config.networks import DEFAULT_NETWORKS
from bridge.contract import catalog
from bridge.contract.filters import EARLIEST, FROM_NOW_ON, After, QueryParser, SubscribeRequest, UpdateFilter
from bridge.metrics import Metrics
from bridge.server.access.rules import Access, Rule
from bridge.server.http.pages import Pages
from bridge.server.http.request import BadRequest, Request, parse
from bridge.server.http.response import Response
from bridge.server.router import DEFAULT_LIMIT, OpenEventStream, Poll, Refused, Router
from bridge.server.websocket.upgrade import Upgrade
from tests.support.clients import request

ROUTER = Router(
    Access(DEFAULT_NETWORKS, frozenset(), frozenset({"https://kills.example"})),
    QueryParser(catalog.load([catalog.PACKAGED])),
    Pages(lambda: (True, {}), Metrics(), {}, "/updates"),
    "/updates",
)


def get(target: str = "/updates", *lines: str, method: str = "GET", version: str = "1.1") -> Request:
    return parse("\r\n".join([f"{method} {target} HTTP/{version}", "Host: localhost", *lines, "", ""]).encode())


def test_handshake_is_an_upgrade_with_the_filter_of_its_query() -> None:
    answer = ROUTER.route(parse(request(3000, "/updates?type=killmail&after=")))
    assert isinstance(answer, Upgrade)
    assert answer.response.startswith(b"HTTP/1.1 101 ")
    assert answer.subscribe == SubscribeRequest(UpdateFilter(frozenset({"killmail"}), ()), After.parse(""))


# Three ways

WEBSOCKET, SSE, JSON = Upgrade, OpenEventStream, Poll
UPGRADE = request(3000, "/updates@").decode().split("\r\n")[2:-2]


@pytest.mark.parametrize(
    ("query", "lines", "way"),
    [
        ("", UPGRADE, WEBSOCKET),
        ("", [*UPGRADE, "Accept: application/json", "Last-Event-ID: 1-00000000"], WEBSOCKET),
        ("?format=sse", [], SSE),
        ("?format=json", [], JSON),
        ("?format=json", ["Accept: text/event-stream"], JSON),
        ("?format=sse", ["Accept: text/event-stream;q=0, application/json"], SSE),
        ("", ["Accept: text/event-stream"], SSE),
        ("", ["Accept: application/json"], JSON),
        ("", ["Accept: text/html, application/json;q=0.9, text/event-stream;q=0.8"], JSON),
        ("", ["Accept: application/json;q=0.5", "Accept: text/event-stream"], SSE),
        ("", ["Accept: */*"], Refused),
        ("", ["Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"], Refused),
        ("", [], Refused),
    ],
)
def test_upgrade_then_format_then_accept_decide_the_way(query: str, lines: list[str], way: type[object]) -> None:
    assert isinstance(ROUTER.route(get(f"/updates{query}", *lines)), way)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_sse_and_json_need_only_http_1_0_and_may_be_head(version: str, method: str) -> None:
    for name, way in (("sse", SSE), ("json", JSON)):
        answer = ROUTER.route(get(f"/updates?format={name}", method=method, version=version))
        assert isinstance(answer, way)


def test_upgrade_in_http_1_0_is_no_upgrade() -> None:
    assert isinstance(ROUTER.route(get("/updates?format=json", *UPGRADE, version="1.0")), JSON)


@pytest.mark.parametrize("lines", [[], ["Accept: */*"], ["Accept: application/json;q=0"], ["Accept: a/b"]])
@pytest.mark.parametrize("query", ["", "?limit=5", "?wait=5", "?last=5"])
def test_request_without_a_way_is_refused_with_all_three(query: str, lines: list[str]) -> None:
    answer = ROUTER.route(get(f"/updates{query}", *lines))
    assert isinstance(answer, Refused)
    assert answer.response.status == HTTPStatus.UPGRADE_REQUIRED
    assert all(way in answer.refusal.text for way in ("WebSocket", "format=sse", "format=json"))
    assert ("Connection", "Upgrade, close") in answer.response.headers
    assert ("Vary", "Accept, Origin") in answer.response.headers


@pytest.mark.parametrize("lines", [[], ["Accept: application/json"], UPGRADE, ["Upgrade: websocket"]])
def test_query_is_checked_before_the_way(lines: list[str]) -> None:
    answer = ROUTER.route(get("/updates?nothing=1", *lines))
    assert isinstance(answer, Refused)
    assert answer.response.status == HTTPStatus.BAD_REQUEST


@pytest.mark.parametrize(
    ("query", "lines", "words"),
    [
        ("format=json", UPGRADE, "format is not for WebSocket"),
        ("format=sse", UPGRADE, "format is not for WebSocket"),
        ("limit=5", UPGRADE, "limit is only for JSON (format=json); last begins with the newest updates."),
        ("wait=0", UPGRADE, "wait is only for JSON (format=json); omit it."),
        ("limit=5&format=sse", [], "limit is only for JSON"),
        ("wait=5", ["Accept: text/event-stream"], "wait is only for JSON"),
    ],
)
def test_parameter_that_does_not_fit_the_way_is_refused(query: str, lines: list[str], words: str) -> None:
    answer = ROUTER.route(get(f"/updates?{query}", *lines))
    assert isinstance(answer, Refused)
    assert (answer.response.status, answer.refusal.rule) == (HTTPStatus.BAD_REQUEST, Rule.QUERY)
    assert words in answer.refusal.text


def test_poll_has_the_parameters_of_its_query() -> None:
    answer = ROUTER.route(get("/updates?limit=5&wait=30&last=7&type=killmail", "Accept: application/json"))
    assert answer == Poll(
        SubscribeRequest(UpdateFilter(frozenset({"killmail"}), ()), None, 7), 5, 30, (("Vary", "Accept, Origin"),)
    )
    answer = ROUTER.route(get("/updates?format=json&after=earliest"))
    assert answer == Poll(SubscribeRequest(None, EARLIEST), DEFAULT_LIMIT, 0, (("Vary", "Accept, Origin"),))


def test_event_stream_has_the_parameters_of_its_query() -> None:
    answer = ROUTER.route(get("/updates?format=sse&after=&last=7", "Origin: https://kills.example"))
    assert isinstance(answer, OpenEventStream)
    assert answer.subscribe == SubscribeRequest(None, FROM_NOW_ON, 7)
    assert ("Access-Control-Allow-Origin", "https://kills.example") in answer.headers


@pytest.mark.parametrize("name", ["sse", "json"])
@pytest.mark.parametrize(
    ("last_event_id", "expected"),
    [
        ("7-0000000a", SubscribeRequest(None, After.parse("7-0000000a"))),
        ("\xe9", SubscribeRequest(None, After("\xe9", None))),
        ("", SubscribeRequest(None, FROM_NOW_ON, 5)),
    ],
)
def test_last_event_id_replaces_after_and_last(name: str, last_event_id: str, expected: SubscribeRequest) -> None:
    asked = get(f"/updates?format={name}&after=&last=5")
    asked.headers["last-event-id"] = [last_event_id]
    answer = ROUTER.route(asked)
    assert isinstance(answer, OpenEventStream | Poll)
    assert answer.subscribe == expected


def test_last_event_id_makes_no_difference_to_an_upgrade() -> None:
    answer = ROUTER.route(get("/updates?after=&last=5", *UPGRADE, "Last-Event-ID: 7-0000000a"))
    assert isinstance(answer, Upgrade)
    assert answer.subscribe == SubscribeRequest(None, FROM_NOW_ON, 5)


@pytest.mark.parametrize(
    "asked",
    [
        get("/updates?format=json"),
        get("/updates?format=sse"),
        get("/updates?nothing=1"),
        get("/updates"),
        get("/updates", method="OPTIONS"),
        get("/updates", method="POST"),
        get("/updates", "X-Real-IP: 8.8.8.8"),
        get("/updates", *UPGRADE),
    ],
)
def test_every_response_of_the_endpoint_varies_and_can_be_read_by_an_allowed_origin(asked: Request) -> None:
    asked.headers["origin"] = ["https://kills.example"]
    answer = ROUTER.route(asked)
    headers = answer.response.headers if isinstance(answer, Refused) else answer.headers
    assert ("Vary", "Accept, Origin") in headers
    assert ("Access-Control-Allow-Origin", "https://kills.example") in headers
    assert ("Access-Control-Expose-Headers", "Retry-After") in headers


@pytest.mark.parametrize(
    ("target", "method", "status"),
    [
        ("/healthz", "GET", HTTPStatus.OK),
        ("/healthz", "HEAD", HTTPStatus.OK),
        ("/healthz", "OPTIONS", HTTPStatus.OK),
        ("/updates", "OPTIONS", HTTPStatus.NO_CONTENT),
        ("*", "OPTIONS", HTTPStatus.NO_CONTENT),
        ("/updates", "POST", HTTPStatus.METHOD_NOT_ALLOWED),
        ("/healthz", "POST", HTTPStatus.METHOD_NOT_ALLOWED),
        ("/", "OPTIONS", HTTPStatus.METHOD_NOT_ALLOWED),
        ("/nothing", "GET", HTTPStatus.NOT_FOUND),
    ],
)
def test_other_request_is_answered_with_a_response(target: str, method: str, status: HTTPStatus) -> None:
    answer = ROUTER.route(get(target, method=method))
    assert isinstance(answer, Response)
    assert answer.status == status


@pytest.mark.parametrize(
    ("target", "lines", "rule"),
    [
        ("/updates", ("Origin: https://evil.example",), Rule.ORIGIN),
        ("/healthz", ("X-Real-IP: 8.8.8.8",), Rule.FORWARDED),
        ("/updates?nothing=1", (), Rule.QUERY),
        ("/updates", (), Rule.UPGRADE),
    ],
)
def test_refusal_has_its_rule_and_its_text_is_the_body(target: str, lines: tuple[str, ...], rule: Rule) -> None:
    answer = ROUTER.route(get(target, *lines))
    assert isinstance(answer, Refused)
    assert answer.refusal.rule is rule
    assert answer.response.status == answer.refusal.status
    assert answer.response.body == answer.refusal.text.encode() + b"\n"


@pytest.mark.parametrize(
    ("lines", "host", "echoed"),
    [
        (("Origin: https://kills.example",), "localhost", True),
        (("Origin: http://bridge",), "bridge", True),
        (("Origin: https://evil.example",), "localhost", False),
        ((), "localhost", False),
    ],
)
def test_allowed_origin_is_echoed(lines: tuple[str, ...], host: str, *, echoed: bool) -> None:
    asked = get("/schemas/", *lines)
    asked.headers["host"] = [host]
    answer = ROUTER.route(asked)
    assert isinstance(answer, Response)
    assert ("Access-Control-Allow-Origin" in dict(answer.headers)) is echoed
    assert dict(answer.headers).get("Access-Control-Expose-Headers") == ("ETag" if echoed else None)
    assert ("Vary", "Origin") in answer.headers


def test_request_that_cannot_be_parsed_trusts_no_host() -> None:
    with pytest.raises(BadRequest) as caught:
        get("/updates", "Origin: http://bridge", "Content-Length: 1")
    error = caught.value
    assert error.request is not None
    error.request.headers["host"] = ["bridge"]
    answer = ROUTER.refuse(error)
    assert answer.refusal is error.refusal
    assert "Access-Control-Allow-Origin" not in dict(answer.response.headers)


def test_request_without_readable_parts_has_no_cors_headers() -> None:
    with pytest.raises(BadRequest) as caught:
        parse(b"\x16")
    assert ROUTER.refuse(caught.value).response.headers == ()
