"""Tests of the bytes of an HTTP response."""

from __future__ import annotations

import time
from http import HTTPStatus

import pytest

from bridge.server.http.response import (
    Response,
    body_head,
    document_response,
    revalidated,
    serialize,
    stream_head,
    text_response,
)

DOCUMENT = document_response(b"{}", "application/json")


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that does not move."""
    monkeypatch.setattr(time, "time", lambda: 784_111_777.5)


def test_response_has_its_headers_and_ends_the_connection() -> None:
    assert serialize(text_response(HTTPStatus.OK, "alive")) == (
        b"HTTP/1.1 200 OK\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: 6\r\n"
        b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
        b"Cache-Control: no-store\r\n"
        b"X-Content-Type-Options: nosniff\r\n"
        b"Cross-Origin-Resource-Policy: same-origin\r\n"
        b"Content-Security-Policy: frame-ancestors 'none'\r\n"
        b"Connection: close\r\n"
        b"\r\n"
        b"alive\n"
    )


def test_response_to_head_is_the_same_without_its_body() -> None:
    for response in (text_response(HTTPStatus.OK, "alive"), DOCUMENT, text_response(HTTPStatus.NOT_FOUND, "no")):
        assert serialize(response, has_body=False) + response.body == serialize(response)


def test_connection_of_a_response_itself_is_there_once() -> None:
    written = serialize(text_response(HTTPStatus.UPGRADE_REQUIRED, "ws", ("Connection", "Upgrade, close")))
    assert written.count(b"Connection: ") == 1
    assert b"\r\nConnection: Upgrade, close\r\n" in written


def test_response_without_content_has_no_length() -> None:
    written = serialize(Response(HTTPStatus.NO_CONTENT, b"", headers=(("Allow", "GET"),)))
    assert written.startswith(b"HTTP/1.1 204 No Content\r\nDate")
    assert b"Content-Length" not in written
    assert b"\r\nAllow: GET\r\n" in written


def test_head_of_a_body_has_its_length_unless_there_is_no_body() -> None:
    head = body_head("application/json", 5, ("Vary", "Accept, Origin"))
    assert head == (
        b"HTTP/1.1 200 OK\r\n"
        b"Content-Type: application/json\r\n"
        b"Content-Length: 5\r\n"
        b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
        b"Cache-Control: no-store\r\n"
        b"X-Content-Type-Options: nosniff\r\n"
        b"Cross-Origin-Resource-Policy: same-origin\r\n"
        b"Content-Security-Policy: frame-ancestors 'none'\r\n"
        b"Connection: close\r\n"
        b"Vary: Accept, Origin\r\n"
        b"\r\n"
    )
    without = body_head("application/json", None, ("Vary", "Accept, Origin"))
    assert without == head.replace(b"Content-Length: 5\r\n", b"")


def test_stream_has_no_length_and_is_neither_stored_nor_changed_nor_collected() -> None:
    assert stream_head("text/event-stream", ("Vary", "Accept, Origin")) == (
        b"HTTP/1.1 200 OK\r\n"
        b"Content-Type: text/event-stream\r\n"
        b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
        b"Cache-Control: no-store, no-transform\r\n"
        b"X-Accel-Buffering: no\r\n"
        b"X-Content-Type-Options: nosniff\r\n"
        b"Cross-Origin-Resource-Policy: same-origin\r\n"
        b"Content-Security-Policy: frame-ancestors 'none'\r\n"
        b"Connection: close\r\n"
        b"Vary: Accept, Origin\r\n"
        b"\r\n"
    )


def test_document_has_a_tag_of_its_body_and_may_be_kept() -> None:
    assert (
        DOCUMENT.etag
        == document_response(b"{}", "text/plain").etag
        != document_response(b"[]", "application/json").etag
    )
    written = serialize(DOCUMENT)
    assert f"\r\nETag: {DOCUMENT.etag}\r\n".encode() in written
    assert b"\r\nCache-Control: no-cache\r\n" in written


@pytest.mark.parametrize(
    "given", [["{}"], ["W/{}"], ['"a", {} ,"b"'], ['"a"', "{}"], ["*"], [" * "]], ids=lambda given: given[0]
)
def test_document_that_the_client_has_is_not_sent_again(given: list[str]) -> None:
    found = revalidated(DOCUMENT, [each.format(DOCUMENT.etag) for each in given])
    written = serialize(found)
    assert written.startswith(b"HTTP/1.1 304 Not Modified\r\n")
    assert written.endswith(b"\r\n\r\n")
    assert f"\r\nETag: {DOCUMENT.etag}\r\n".encode() in written
    assert b"Content-Length" not in written


@pytest.mark.parametrize("given", [[], [""], ['"a"'], ['"*"'], ["a*"]])
def test_document_that_the_client_does_not_have_is_sent(given: list[str]) -> None:
    assert revalidated(DOCUMENT, [each.format(DOCUMENT.etag) for each in given]) == DOCUMENT


def test_response_that_is_not_a_document_is_always_sent() -> None:
    alive = text_response(HTTPStatus.OK, "alive")
    assert revalidated(alive, ["*"]) == alive


def test_headers_are_added_after_the_existing_ones() -> None:
    response = text_response(HTTPStatus.OK, "alive", ("A", "1"))
    assert response.with_headers(("B", "2")).headers == (("A", "1"), ("B", "2"))
    assert response.with_headers() is response
