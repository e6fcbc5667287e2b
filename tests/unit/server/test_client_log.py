"""Tests of the debug lines of handshakes and connections.

`test_server.py` tests the other log lines, and the metrics.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

import pytest
from structlog.testing import capture_logs

from bridge.contract.filters import EARLIEST, After, SubscribeRequest, UpdateFilter
from bridge.metrics import Metrics, Transport
from bridge.server.access.rules import Refusal, Rule
from bridge.server.client_log import LOGGER, ClientLog, Decision
from bridge.server.http.request import parse
from bridge.server.http.response import refusal_response, text_response
from bridge.server.router import OpenEventStream, Poll, Refused
from bridge.server.websocket.upgrade import Upgrade
from tests.support.clients import request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.server.connection.client_connection import ClientConnection

REFUSAL = Refusal(HTTPStatus.FORBIDDEN, "No.", Rule.HOST, "evil.example")
FILTER = UpdateFilter(frozenset({"killmail", "a"}), (("systemId", frozenset({1, 2}), frozenset()),))


@pytest.fixture
def debug() -> Iterator[None]:
    logger = logging.getLogger(LOGGER)
    before = logger.level
    logger.setLevel(logging.DEBUG)
    yield
    logger.setLevel(before)


def make_log() -> ClientLog:
    return ClientLog(Metrics(), lambda: 1000.0)


class StubConnection:
    """A stub of a connection, with only the attributes that the log reads."""

    peer = "10.0.0.7 port 54321"
    opened_at = 990.0
    transport_label = Transport.WEBSOCKET
    close_code = 1001


CONNECTION = cast("ClientConnection", StubConnection())


@pytest.mark.parametrize(
    ("decision", "fields"),
    [
        (Upgrade(b"", SubscribeRequest(None, None), ()), {"outcome": "101"}),
        (
            Upgrade(b"", SubscribeRequest(FILTER, After.parse("7-0000000a")), ()),
            {
                "outcome": "101",
                "types": ["a", "killmail"],
                "filter": "systemId=1,2",
                "after": "7-0000000a",
            },
        ),
        (
            Upgrade(b"", SubscribeRequest(UpdateFilter(None, FILTER.members), After.parse("")), ()),
            {"outcome": "101", "filter": "systemId=1,2", "after": ""},
        ),
        (
            Upgrade(b"", SubscribeRequest(UpdateFilter(frozenset({"a"}), ()), None), ()),
            {"outcome": "101", "types": ["a"]},
        ),
        (
            OpenEventStream(SubscribeRequest(None, After.parse(""), 5), ()),
            {"outcome": "event-stream", "after": "", "last": 5},
        ),
        (
            Poll(SubscribeRequest(FILTER, EARLIEST), 7, 30, ()),
            {
                "outcome": "poll",
                "types": ["a", "killmail"],
                "filter": "systemId=1,2",
                "after": "earliest",
                "limit": 7,
                "wait_s": 30,
            },
        ),
        (text_response(HTTPStatus.NOT_FOUND, "Nothing."), {"outcome": "response", "status": 404}),
        (Refused(refusal_response(REFUSAL), REFUSAL), {"outcome": "refused", "status": 403, "rule": "host"}),
        (Rule.ADDRESS_LIMIT, {"outcome": "refused", "rule": "address-limit"}),
    ],
    ids=["all", "everything", "members", "types", "event stream", "poll", "response", "refused", "refused unread"],
)
@pytest.mark.usefixtures("debug")
def test_decision_of_a_handshake_is_one_debug_line(decision: Decision, fields: dict[str, object]) -> None:
    log = make_log()
    assert log.tracing
    with capture_logs() as logged:
        log.handshake("10.0.0.7", parse(request(3000, "/updates?x")), decision, 0.0123456)
    expected = {"peer": "10.0.0.7", "method": "GET", "path": "/updates", "duration_ms": 12, **fields}
    assert logged == [{"event": "handshake", "log_level": "debug", **expected}]


@pytest.mark.usefixtures("debug")
def test_request_that_cannot_be_parsed_has_neither_method_nor_path() -> None:
    with capture_logs() as logged:
        make_log().handshake("10.0.0.7", None, Refused(refusal_response(REFUSAL), REFUSAL), 0.0)
    assert logged[0].keys().isdisjoint({"method", "path"})


@pytest.mark.usefixtures("debug")
def test_path_in_a_line_is_printable_and_bounded() -> None:
    path = "/" + "a" * 5000
    with capture_logs() as logged:
        make_log().handshake("10.0.0.7", parse(request(3000, path)), text_response(HTTPStatus.NOT_FOUND, ""), 0.0)
    assert len(logged[0]["path"]) < 300


@pytest.mark.usefixtures("debug")
def test_opening_and_closing_of_a_connection_are_one_debug_line_each() -> None:
    log = make_log()
    with capture_logs() as logged:
        log.opened(CONNECTION)
        log.closed(CONNECTION)
    assert logged == [
        {"event": "connection opened", "log_level": "debug", "peer": CONNECTION.peer},
        {
            "event": "connection closed",
            "log_level": "debug",
            "peer": CONNECTION.peer,
            "code": 1001,
            "connected_s": 10,
        },
    ]


def test_without_the_level_debug_nothing_is_traced() -> None:
    log = make_log()
    assert not log.tracing
    with capture_logs() as logged:
        log.opened(CONNECTION)
        log.closed(CONNECTION)
    assert logged == []
