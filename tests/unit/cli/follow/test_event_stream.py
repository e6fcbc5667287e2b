"""Tests of the request for Server-Sent Events."""

from __future__ import annotations

import pytest

from bridge.cli.common.endpoint import endpoint
from bridge.cli.follow.event_stream import request_bytes


@pytest.mark.parametrize(
    ("url", "line", "host"),
    [
        ("ws://localhost:3000/updates", "GET /updates HTTP/1.1", "localhost:3000"),
        ("http://127.0.0.1", "GET / HTTP/1.1", "127.0.0.1"),
        ("https://[::1]:3000/a?type=event", "GET /a?type=event HTTP/1.1", "[::1]:3000"),
        ("http://bücher.example:80/ü b?kind=a%20b&x=ß", None, "xn--bcher-kva.example:80"),
    ],
)
def test_request_is_ascii_and_names_the_host(url: str, line: str | None, host: str) -> None:
    first, *headers = request_bytes(endpoint(url, [], [], sse=True)).decode("ascii").split("\r\n")
    assert first == (line or "GET /%C3%BC%20b?kind=a%20b&x=%C3%9F HTTP/1.1")
    assert headers[:2] == [f"Host: {host}", "Accept: text/event-stream"]
    assert headers[-2:] == ["", ""]
    assert not any(header.startswith("Authorization") for header in headers)


def test_user_and_password_of_the_url_are_sent_to_the_proxy() -> None:
    request = request_bytes(endpoint("http://Aladdin:open%20sesame@localhost/", [], [], sse=True))
    # The example of RFC 7617, section 2.
    assert b"\r\nAuthorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n" in request
    assert b"\r\nHost: localhost\r\n" in request
