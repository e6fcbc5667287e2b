"""Tests whether a request is answered with an upgrade, a page or a refusal.

`test_handshake.py` tests what a client gets.
"""

from __future__ import annotations

from http import HTTPStatus

import pytest

from bridge.config.networks import DEFAULT_NETWORKS
from bridge.contract import catalog
from bridge.contract.filters import After, QueryParser, SubscribeRequest, UpdateFilter
from bridge.metrics import Metrics
from bridge.server.access.rules import Access, Rule
from bridge.server.http.pages import Pages
from bridge.server.http.request import BadRequest, Request, parse
from bridge.server.http.response import Response
from bridge.server.router import Refused, Router
from bridge.server.websocket.upgrade import Upgrade
from tests.support.clients import request

ROUTER = Router(
    Access(DEFAULT_NETWORKS, frozenset(), frozenset({"https://kills.example"})),
    QueryParser(catalog.load([catalog.PACKAGED])),
    Pages(lambda: (True, {}), Metrics(), {}, "/updates"),
    "/updates",
)


def get(target: str = "/updates", *lines: str, method: str = "GET") -> Request:
    return parse("\r\n".join([f"{method} {target} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode())


def test_handshake_is_an_upgrade_with_the_filter_of_its_query() -> None:
    answer = ROUTER.route(parse(request(3000, "/updates?type=killmail&after=")))
    assert isinstance(answer, Upgrade)
    assert answer.response.startswith(b"HTTP/1.1 101 ")
    assert answer.subscribe == SubscribeRequest(UpdateFilter(frozenset({"killmail"}), ()), After.parse(""))


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
