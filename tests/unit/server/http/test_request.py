"""Tests which request heads are parsed and which are refused.

The heads arrive in pieces of any size, and the results are compared with those of h11.
"""

from __future__ import annotations

import contextlib
from http import HTTPStatus

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.server.http.request import (
    INTERPRETED,
    MAX_EMPTY_LINES,
    MAX_HEAD_BYTES,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_MEMBERS,
    MAX_REQUEST_LINE_BYTES,
    NOT_FOR_UPGRADES,
    BadRequest,
    Request,
    RequestReader,
    parse,
)
from tests.support.examples import examples

HOST = b"Host: localhost\r\n"


def get(*lines: bytes, target: bytes = b"/updates", version: bytes = b"1.1", method: bytes = b"GET") -> bytes:
    return b"\r\n".join([b"%b %b HTTP/%b" % (method, target, version), *lines, b"", b""])


def feed(*pieces: bytes) -> tuple[Request, bytes] | None:
    """Feeds all pieces, checks that only the last one gives a result, and returns this result."""
    reader = RequestReader()
    for piece in pieces[:-1]:
        assert reader.feed(piece) is None
    return reader.feed(pieces[-1])


def refusal(head: bytes) -> tuple[str, HTTPStatus, str]:
    with pytest.raises(BadRequest) as caught:
        feed(head)
    refusal = caught.value.refusal
    return refusal.rule, refusal.status, refusal.text


# Parsed requests


def test_request_has_its_parts() -> None:
    lines = (b"Host: localhost:3000", b"Upgrade:  a,b \t", b"UPGRADE: c", b"X: y", b"Origin: \xe9")
    request = parse(get(*lines, target=b"/p?q=1?2"))
    assert (request.method, request.target, request.version) == ("GET", "/p?q=1?2", "1.1")
    assert (request.path, request.query) == ("/p", "q=1?2")
    # Tests of the headers that the bridge interprets.
    assert request.headers == {"host": ["localhost:3000"], "upgrade": ["a,b", "c"], "origin": ["\xe9"]}


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/", "/", ""),
        (b"//a", "//a", ""),
        (b"/?", "/", ""),
        (b"/a?b?c", "/a", "b?c"),
        (b'/%2e%2e/[]{}|^`"<>\\', '/%2e%2e/[]{}|^`"<>\\', ""),
        (b"http://localhost", "/", ""),
        (b"HTTP://localhost?q", "/", "q"),
        (b"http://localhost:3000/a/b?q", "/a/b", "q"),
        (b"http://[::1]:3000/a", "/a", ""),
    ],
)
def test_target_is_a_path_or_a_whole_url(target: bytes, path: str, query: str) -> None:
    request = parse(get(target=target))
    assert (request.path, request.query) == (path, query)


def test_target_of_options_may_be_the_server_as_a_whole() -> None:
    assert parse(get(method=b"OPTIONS", target=b"*")).path == "*"


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"POST", b"BREW", b"M-SEARCH", b"get", b"CONNECT"])
def test_any_method_is_parsed(method: bytes) -> None:
    assert parse(get(HOST[:-2], method=method)).method == method.decode()


@pytest.mark.parametrize("lines", [[b"Content-Length: 3"], [b"Transfer-Encoding: chunked"]])
def test_request_of_another_method_may_have_a_body(lines: list[bytes]) -> None:
    assert feed(get(*lines, method=b"POST") + b"abc") == (parse(get(*lines, method=b"POST")), b"abc")


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS"])
def test_body_of_no_length_is_none(method: bytes) -> None:
    assert parse(get(b"Content-Length: 0", method=method)).headers == {"content-length": ["0"]}


def test_request_in_http_1_0_needs_no_header() -> None:
    assert parse(get(version=b"1.0")) == Request("GET", "/updates", "1.0", {}, "/updates", "")


def test_lists_are_divided_at_commas_over_all_headers() -> None:
    request = parse(get(b"Upgrade: h2c, WebSocket", b"upgrade:", b"Upgrade: ,a\t,"))
    assert request.lists("upgrade") == ["h2c", "websocket", "a"]
    assert request.lists("connection") == []


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ((), ""),
        ((b"Last-Event-ID:",), ""),
        ((b"Last-Event-ID:  1-0000000a \t",), "1-0000000a"),
        ((b"last-event-id: \xc3\xa9",), "\xc3\xa9"),
        ((b"Last-Event-ID: 1", b"Last-Event-ID: 2"), "1, 2"),
    ],
)
def test_last_event_id_is_the_text_of_all_its_headers(lines: tuple[bytes, ...], text: str) -> None:
    assert parse(get(*lines)).last_event_id == text


def test_headers_that_make_no_difference_to_an_upgrade_are_interpreted() -> None:
    assert set(INTERPRETED.values()) > NOT_FOR_UPGRADES


def test_members_of_a_list_beyond_the_limit_are_ignored() -> None:
    request = parse(get(b"Upgrade: " + b"a," * (MAX_MEMBERS - 1) + b"b,c"))
    assert request.lists("upgrade") == ["a"] * (MAX_MEMBERS - 1) + ["b"]


# Requests in pieces

WHOLE = get(b"Host: localhost", b"Upgrade: websocket", b"Connection: Upgrade", b"Cookie: " + b"c" * 100)


@pytest.mark.parametrize("at", range(1, len(WHOLE)))
def test_request_in_two_pieces_is_the_same_wherever_it_is_split(at: int) -> None:
    assert feed(WHOLE[:at], WHOLE[at:] + b"frame") == (parse(WHOLE), b"frame")


def test_request_that_arrives_byte_by_byte_is_the_same() -> None:
    assert feed(*(bytes([byte]) for byte in WHOLE)) == (parse(WHOLE), b"")


@pytest.mark.parametrize("empty", [b"\r\n", b"\r\n\r\n", b"\r\n" * MAX_EMPTY_LINES])
def test_empty_lines_before_a_request_are_ignored(empty: bytes) -> None:
    assert feed(empty + WHOLE) == (parse(WHOLE), b"")
    assert feed(*(bytes([byte]) for byte in empty + WHOLE)) == (parse(WHOLE), b"")


def test_second_request_is_returned_unchanged() -> None:
    assert feed(WHOLE + WHOLE) == (parse(WHOLE), WHOLE)


# Refused requests

UNREADABLE = "This is not a valid HTTP request"


@pytest.mark.parametrize(
    "head",
    [
        get(b"A: b", b" c"),
        get(b"A: b", b"\tc"),
        get(b" A: b"),
        get(b"A : b"),
        get(b"A\t: b"),
        get(b"A"),
        get(b": b"),
        get(b"A(: b"),
        get(b"A\xe9: b"),
        get(b"A: b\x00c"),
        get(b"A: b\x01c"),
        get(b"A: b\x7fc"),
        get(b"A: b\rc"),
        get(b"A: b\nHost: c"),
        get(b"Content-Length: 5", b"Content-Length: 5"),
        get(b"Content-Length: 5", b"Content-Length: 6"),
        get(b"Content-Length: +5"),
        get(b"Content-Length: 5, 5"),
        get(b"Content-Length: -1"),
        get(b"Content-Length: 0x5"),
        get(b"Content-Length:"),
        get(b"Content-Length: 99999999999999999999"),
        get(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        get(b"Transfer-Encoding: chunked", b"Content-Length: 5", method=b"POST"),
        get(b"Transfer-Encoding: chunked, identity", method=b"POST"),
        get(b"Transfer-Encoding: xchunked", method=b"POST"),
        get(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", method=b"POST"),
        b"GET  /updates HTTP/1.1\r\n\r\n",
        b"GET /updates  HTTP/1.1\r\n\r\n",
        b"GET /updates HTTP/1.1 \r\n\r\n",
        b"GET\t/updates HTTP/1.1\r\n\r\n",
        b"GET /up dates HTTP/1.1\r\n\r\n",
        b"GET /\xc3\xa9 HTTP/1.1\r\n\r\n",
        b"GET /\x7f HTTP/1.1\r\n\r\n",
        b"GET /updates http/1.1\r\n\r\n",
        b"GET /updates HTTP/1.2\r\n\r\n",
        b"GET /updates HTTP/1\r\n\r\n",
        b"GET /updates HTTP/01.1\r\n\r\n",
        b"GET /updates HTTP/1.1x\r\n\r\n",
        b"GET /updates RTSP/1.0\r\n\r\n",
        b"GET /updates\r\n\r\n",
        b"GET\r\n\r\n",
        b"hello\r\n\r\n",
        b"G@T /updates HTTP/1.1\r\n\r\n",
        b"A" * 33 + b" / HTTP/1.1\r\n\r\n",
        b"\rGET / HTTP/1.1\r\n\r\n",
    ],
)
def test_request_that_parsers_may_read_in_several_ways_is_malformed(head: bytes) -> None:
    rule, status, text = refusal(head)
    assert (rule, status) == ("malformed", 400)
    assert text.startswith(UNREADABLE)
    assert text.endswith(".")


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS"])
@pytest.mark.parametrize("line", [b"Content-Length: 1", b"Content-Length: 00", b"Transfer-Encoding: chunked"])
def test_request_with_a_body_is_refused(method: bytes, line: bytes) -> None:
    assert refusal(get(line, method=method)) == ("malformed", 400, "The bridge does not accept requests with a body.")


@pytest.mark.parametrize(
    "target", [b"*", b"updates", b"?type=killmail", b"localhost:3000", b"/updates#a", b"#", b"://a/"]
)
def test_invalid_target_is_refused(target: bytes) -> None:
    assert refusal(get(target=target)) == (
        "malformed",
        400,
        "The request target must be a path or an absolute URL, without a fragment: GET /updates HTTP/1.1.",
    )


@pytest.mark.parametrize(
    ("beginning", "words"),
    [
        (b"\x16", "This port does not use TLS: use ws:// and http://."),
        (b"\x16\x03\x01\x02\x00", "This port does not use TLS: use ws:// and http://."),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "not HTTP/2"),
        (b"GET / HTTP/2.0\r\n\r\n", "supports HTTP/1.1 and HTTP/1.0"),
        (b"GET / HTTP/0.9\r\n\r\n", "supports HTTP/1.1 and HTTP/1.0"),
        (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nGET / HTTP/1.1\r\n\r\n", "no PROXY protocol"),
        (b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c", "no PROXY protocol"),
        (b"GET / HTTP/1.0\n\n", "CR LF"),
        (b"GET / HTTP/1.1\nHost: localhost\n\n", "CR LF"),
        (b"GET / HTTP/1.1\nHost: localhost\r\n\r\n", "CR LF"),
    ],
)
def test_other_protocol_is_refused_with_a_hint(beginning: bytes, words: str) -> None:
    rule, status, text = refusal(beginning)
    assert (rule, status) == ("malformed", 400)
    assert words in text


@pytest.mark.parametrize("byte", [b"\x00", b"\x80", b"\x16", b" ", b"{", b"\n", b"\x81"])
def test_first_byte_that_begins_no_request_is_refused_at_once(byte: bytes) -> None:
    assert refusal(byte)[0] == "malformed"
    assert refusal(b"\r\n" + byte)[0] == "malformed"


# Sizes


@pytest.mark.parametrize("excess", [0, 1])
def test_header_of_the_largest_size_is_read_and_a_larger_one_refused(excess: int) -> None:
    for name in (b"Cookie", b"Origin"):
        head = get(HOST[:-2], name + b": " + b"c" * (MAX_HEADER_BYTES + excess))
        if excess:
            assert refusal(head)[:2] == ("size", 431)
        else:
            assert parse(head).headers["host"] == ["localhost"]


@pytest.mark.parametrize("excess", [0, 1])
def test_request_line_of_the_largest_size_is_read_and_a_longer_one_refused(excess: int) -> None:
    target = b"/" + b"a" * (MAX_REQUEST_LINE_BYTES - len(b"GET / HTTP/1.1") + excess)
    if excess:
        assert refusal(get(target=target))[:2] == ("size", 414)
        assert "8190" in refusal(get(target=target))[2]
    else:
        assert parse(get(target=target)).path == target.decode()


@pytest.mark.parametrize("excess", [0, 1])
def test_most_headers_are_read_and_more_refused(excess: int) -> None:
    head = get(*[b"Upgrade: y"] * (MAX_HEADERS + excess))
    if excess:
        assert refusal(head)[:2] == ("size", 431)
    else:
        assert parse(head).headers == {"upgrade": ["y"] * MAX_HEADERS}


@pytest.mark.parametrize("excess", [0, 1])
@pytest.mark.parametrize("complete", [False, True])
def test_largest_head_is_read_and_a_larger_one_refused(excess: int, *, complete: bool) -> None:
    head = get(b"A: " + b"a" * 12_000, b"C: " + b"c" * 12_000, b"B: ", target=b"/")
    head = head[:-4] + b"b" * (MAX_HEAD_BYTES - len(head) + excess) + b"\r\n\r\n"
    sent = head if complete else head[:-1]
    if excess == 0:
        assert (feed(sent) is not None) is complete
    elif complete:
        assert refusal(sent)[:2] == ("size", 431)
    else:
        assert feed(sent) is None
        assert refusal(sent + b"x")[:2] == ("size", 431)


@pytest.mark.parametrize("singly", [False, True])
def test_more_empty_lines_than_are_ignored_are_refused(*, singly: bool) -> None:
    pieces = [bytes([byte]) for byte in b"\r\n" * MAX_EMPTY_LINES] if singly else [b"\r\n" * MAX_EMPTY_LINES]
    assert feed(*pieces, WHOLE) == (parse(WHOLE), b"")
    reader = RequestReader()
    for piece in pieces:
        assert reader.feed(piece) is None
    with pytest.raises(BadRequest, match=UNREADABLE):
        reader.feed(b"\r\n")


# Any bytes


def read_by_h11(data: bytes) -> tuple[str, str, str, list[tuple[str, str]]] | None:
    """Returns method, target, version and headers as h11 reads them, or None if h11 refuses the request."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=2 * MAX_HEAD_BYTES)
    with contextlib.suppress(h11.RemoteProtocolError):
        connection.receive_data(data)
        event = connection.next_event()
        if isinstance(event, h11.Request):
            headers = [(name.decode(), value.decode("latin-1")) for name, value in event.headers]
            return event.method.decode(), event.target.decode(), event.http_version.decode(), headers
    return None


SEEDS = [
    WHOLE,
    get(HOST[:-2], b"Content-Length: 0", b"X-Forwarded-For: 10.0.0.1"),
    get(HOST[:-2], b"Transfer-Encoding: chunked", method=b"POST") + b"0\r\n\r\n",
    get(HOST[:-2], b"Connection: close", version=b"1.0"),
    get(HOST[:-2], b"Content-Length: 3", method=b"PUT") + b"abc",
]
LINES = (
    b"Host: evil",
    b"Content-Length: 4",
    b"Transfer-Encoding: chunked",
    b"transfer-encoding : chunked",
    b"Connection: x",
)
PARTS = (
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b",",
    b"\0",
    b"\x0b",
    b"\x1c",
    b"\x85",
    b"\xff",
    b"0",
    b"#",
    b"*",
)
MORE = (b"HTTP/1.1", b"http://", b"GET /second HTTP/1.1\r\n\r\n")
PIECES = st.sampled_from([*PARTS, *MORE, *(line + b"\r\n" for line in LINES)])


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Generates a request with inserted, deleted and repeated pieces."""
    data = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(0, 4))):
        at, size = draw(st.integers(0, len(data))), draw(st.integers(0, 12))
        piece = draw(PIECES | st.binary(max_size=4) | st.just(data[at : at + size]))
        removed = draw(st.sampled_from([0, 0, 1, 2, size]))
        data = data[:at] + piece + data[at + removed :]
    return data


@settings(deadline=None, max_examples=examples(500))
@given(data=mutated(), pieces=st.lists(st.integers(1, 40), max_size=5))
def test_mutated_request_is_read_as_another_parser_reads_it_or_refused(data: bytes, pieces: list[int]) -> None:
    """A smuggled request is one that two parsers read differently. h11 is never stricter than the bridge."""
    reader, rest = RequestReader(), data
    found: tuple[Request, bytes] | None = None
    refused: BadRequest | None = None
    for size in [*pieces, len(data)]:
        if rest and found is None and refused is None:
            try:
                found = reader.feed(rest[:size])
            except BadRequest as error:
                refused = error
            rest = rest[size:]
    if refused is not None:
        assert refused.refusal.status in {400, 414, 431}
        assert str(refused).isascii()
        assert str(refused).isprintable()
        return
    if found is None:
        assert b"\n\r\n" not in data.lstrip(b"\r\n")
        return
    request, following = found
    other = read_by_h11(data[len(data) - len(data.lstrip(b"\r\n")) :])
    if other is None:
        # h11 also refuses some requests because of their Host header or because of the encodings of their body.
        hosts = request.headers.get("host", [])
        assert len(hosts) != 1 or request.version == "1.0" or "transfer-encoding" in request.headers
        return
    method, target, version, headers = other
    assert (request.method, request.target, request.version) == (method, target, version)
    flat: dict[str, list[str]] = {}
    for name, value in headers:
        flat.setdefault(name, []).append(value)
    assert request.headers == {name: values for name, values in flat.items() if name.encode() in INTERPRETED}
    assert (following + rest) == data[len(data) - len(following + rest) :]
