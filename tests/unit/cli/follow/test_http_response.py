"""Tests of the parser of an HTTP response."""

from __future__ import annotations

import pytest

from bridge.cli.follow.http_response import MAX_HEAD_BYTES, Head, ResponseParser

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


def parsed(response: bytes, size: int) -> tuple[ResponseParser, bytes]:
    """Parses a response in pieces of `size` bytes. Returns the parser and the body."""
    parser = ResponseParser()
    return parser, b"".join(parser.feed(response[at : at + size]) for at in range(0, len(response), size))


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    ("response", "body", "is_complete", "ends_with_connection"),
    [
        (HEAD + b"Connection: close\r\n\r\n:\ndata", b":\ndata", False, True),
        (b"HTTP/1.0 200 OK\r\n\r\n:\n", b":\n", False, True),
        (HEAD + b"Content-Length: 2\r\n\r\n:\n", b":\n", True, False),
        (HEAD + b"Content-Length: 2\r\n\r\n:", b":", False, False),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n:\n\r\n3;x=y\r\nabc\r\n", b":\nabc", False, False),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n:\n\r\n0\r\nVia: 1.1 x\r\n\r\n", b":\n", True, False),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + HEAD + b"Content-Length: 0\r\n\r\n", b"", True, False),
    ],
)
def test_body_and_its_end_do_not_depend_on_the_pieces(
    response: bytes, body: bytes, is_complete: bool, ends_with_connection: bool, size: int
) -> None:
    parser, found = parsed(response, size)
    assert found == body
    assert (parser.is_complete, parser.ends_with_connection) == (is_complete, ends_with_connection)
    assert parser.head is not None
    assert not {"link", "via"} & parser.head.headers.keys()


def test_head_has_the_version_the_status_and_the_headers() -> None:
    parser, _ = parsed(b"HTTP/1.0 503 No\r\nVia: 1.1 a\r\nvia: 1.0 b\r\nServer: \xe9\r\nContent-Length: 0\r\n\r\n", 5)
    assert parser.head == Head("1.0", 503, {"via": "1.1 a, 1.0 b", "server": "é", "content-length": "0"})


def test_nothing_ends_with_the_connection_before_the_head_is_there() -> None:
    parser, _ = parsed(HEAD, 1)
    assert parser.head is None
    assert not parser.ends_with_connection


@pytest.mark.parametrize("size", [1, 1000])
def test_bytes_after_the_end_are_ignored(size: int) -> None:
    response = HEAD + b"Content-Length: 2\r\n\r\n"
    parser, body = parsed(response + b":\n" + response.replace(b"200", b"500") + b"ab", size)
    assert body == b":\n"
    assert parser.head is not None
    assert parser.head.status == 200
    assert parsed(response + b":\njunk", size)[1] == b":\n"


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (b"\x15\x03\x01\x00\x02\x02\x46", "its answer is not HTTP"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "its answer is not HTTP"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nx\r\n", "its answer is not HTTP"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n:\n\r\nx\r\n", "its answer is not HTTP"),
        (b"HTTP/1.1 101 OK\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n", "it switches to another protocol"),
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_other_bytes_are_an_error(response: bytes, words: str, size: int) -> None:
    parser, body = parsed(response, size)
    assert str(parser.error) == words
    # What came before the error is not lost.
    assert body == (b":\n" if b":\n" in response else b"")
    assert parser.feed(HEAD + b"\r\n") == b""


def test_head_has_a_limit() -> None:
    long = HEAD + b"X: " + b"x" * (MAX_HEAD_BYTES - len(HEAD) - 7)
    parser, _ = parsed(long + b"\r\n\r\n" + b"x" * MAX_HEAD_BYTES, 1000)
    assert parser.head is not None
    assert parser.error is None
    words = f"its headers have more than {MAX_HEAD_BYTES} bytes"
    assert str(parsed(long + b"x" * 1000, 1000)[0].error) == words
    assert str(parsed(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3000, 1000)[0].error) == words
