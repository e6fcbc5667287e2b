"""Tests that the cache returns only what the parser and the router would decide for the same bytes."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.config.networks import DEFAULT_NETWORKS
from bridge.contract import catalog
from bridge.contract.filters import QueryParser, SubscribeRequest, UpdateFilter
from bridge.metrics import Metrics
from bridge.server.access.rules import Access
from bridge.server.http.pages import Pages
from bridge.server.http.request import MAX_HEADERS, NOT_FOR_UPGRADES, BadRequest, Request, RequestReader, parse
from bridge.server.router import Router
from bridge.server.websocket import upgrade as upgrade_module
from bridge.server.websocket.upgrade import Upgrade
from bridge.server.websocket.upgrade_cache import MAX_REQUEST_BYTES, MAX_REQUESTS, UpgradeCache
from tests.support.examples import examples

QUERIES = QueryParser(catalog.load([catalog.PACKAGED]))
ACCESS = Access(DEFAULT_NETWORKS, frozenset(), frozenset({"https://kills.example"}))

KEY = "AAAAAAAAAAAAAAAAAAAAAA=="
OTHER_KEY = "dGhlIHNhbXBsZSBub25jZQ=="
"""The key of the example in RFC 6455, section 1.3."""
VARIED = "Sec-WebSocket-Protocol"
"""A header that the bridge interprets, but that does not change its decision."""
DATE = "Thu, 01 Jan 1970 00:00:00 GMT"
OTHER_ACCEPT = b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"


def router(endpoint: str = "/updates") -> Router:
    return Router(ACCESS, QUERIES, Pages(lambda: (True, {}), Metrics(), {}, endpoint), endpoint)


ROUTER = router()
SHORT = router("/ws")


@pytest.fixture(autouse=True)
def _fixed_date(monkeypatch: pytest.MonkeyPatch) -> None:
    """The responses to two requests are equal, although a second may begin between them."""
    monkeypatch.setattr(upgrade_module, "date_header", lambda: DATE)


def request(
    key: str = KEY,
    *lines: str,
    target: str = "/updates",
    name: str = "Sec-WebSocket-Key",
    first: bool = False,
) -> bytes:
    """Returns the bytes of a handshake. With `first`, the key is in the first header, or else in the last one."""
    keys = [f"{name}: {key}"]
    others = ["Host: localhost", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", *lines]
    headers = keys + others if first else others + keys
    return "\r\n".join([f"GET {target} HTTP/1.1", *headers, "", ""]).encode("latin-1")


def decide(data: bytes, by: Router = ROUTER) -> tuple[Request, Upgrade, bytes] | None:
    """Returns the request, its upgrade and the bytes after it, or None if the data is not upgraded."""
    try:
        read = RequestReader().feed(data)
    except BadRequest:
        return None
    if read is None:
        return None
    answer = by.route(read[0])
    return (read[0], answer, read[1]) if isinstance(answer, Upgrade) else None


def add(cache: UpgradeCache, data: bytes, by: Router = ROUTER) -> None:
    """Adds a request as a handshake does."""
    decided = decide(data, by)
    assert decided is not None
    asked, answer, rest = decided
    assert not rest
    cache.add(data, asked, answer)


def for_upgrade(asked: Request) -> Request:
    """Returns the request with only the headers that make a difference to an upgrade, and without its key."""
    headers = {name: values for name, values in asked.headers.items() if name not in NOT_FOR_UPGRADES}
    return replace(asked, headers={**headers, "sec-websocket-key": [""]})


def check(cache: UpgradeCache, data: bytes, by: Router = ROUTER) -> bool:
    """Whether the cache knows the data. Compares its result with the decision of the parser and the router."""
    known = cache.get(data)
    if known is None:
        return False
    decided = decide(data, by)
    assert decided is not None, "the cache upgrades a request that the router refuses"
    asked, answer, rest = decided
    assert (for_upgrade(known[0]), known[1], b"") == (for_upgrade(asked), answer, rest)
    return True


@pytest.fixture
def cache() -> UpgradeCache:
    return UpgradeCache()


# Known requests


@pytest.mark.parametrize("first", [True, False])
def test_request_that_differs_only_in_its_key_is_known(cache: UpgradeCache, *, first: bool) -> None:
    assert cache.get(request(OTHER_KEY, first=first)) is None
    add(cache, request(KEY, "Origin: https://kills.example", target="/updates?type=killmail", first=first))
    data = request(OTHER_KEY, "Origin: https://kills.example", target="/updates?type=killmail", first=first)
    assert check(cache, data)
    known = cache.get(data)
    assert known is not None
    asked, answer = known
    assert asked.headers["sec-websocket-key"] == [KEY]
    assert asked.target == "/updates?type=killmail"
    assert OTHER_ACCEPT in answer.response
    assert b"\r\nAccess-Control-Allow-Origin: https://kills.example\r\n" in answer.response
    assert answer.response.endswith(b"\r\n\r\n")
    assert answer.subscribe == SubscribeRequest(UpdateFilter(frozenset({"killmail"}), ()), None)


def test_known_request_has_no_headers_of_another_client_that_do_not_matter(cache: UpgradeCache) -> None:
    add(cache, request(KEY, "Accept: application/json", "Last-Event-ID: 1-00000000"))
    known = cache.get(request(OTHER_KEY))
    assert known is not None
    assert known[0].headers.keys() == parse(request()).headers.keys()


def test_equal_request_is_known_repeatedly(cache: UpgradeCache) -> None:
    add(cache, request())
    assert check(cache, request())
    assert check(cache, request(OTHER_KEY))
    assert check(cache, request())


def test_requests_with_different_answers_are_known_separately(cache: UpgradeCache) -> None:
    for target in ("/updates", "/updates?type=killmail", "/updates?after="):
        add(cache, request(target=target))
    for target in ("/updates?after=", "/updates", "/updates?type=killmail"):
        assert check(cache, request(OTHER_KEY, target=target))


def test_request_that_is_added_again_is_stored_once(cache: UpgradeCache) -> None:
    for key in (KEY, OTHER_KEY, KEY):
        add(cache, request(key))
    assert len(cache._known) == 1


@pytest.mark.parametrize(
    "lines",
    [
        ("User-Agent: a browser", "Cookie: session=1; other=2"),
        ("user-agent:another browser",),
        ("Accept-Language: \t en ", "Pragma:", "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"),
        ("X-Name: \xe4\xf6\xfc",),
        ("Hosts: evil.example", "X-Host: evil.example", "Originator: a", "Upgrade-Insecure-Requests: 1"),
        ("Sec-WebSocket-Keys: " + OTHER_KEY,),
        ("Accept: application/json", "accept: text/event-stream;q=0.5", "Last-Event-ID: 1-00000000"),
        ("If-None-Match: *",),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_requests_that_differ_in_ignored_headers_are_equal(
    cache: UpgradeCache, lines: tuple[str, ...], *, first: bool
) -> None:
    add(cache, request(KEY, "User-Agent: curl", first=first))
    assert check(cache, request(OTHER_KEY, *lines, first=first))
    assert check(cache, request(OTHER_KEY, first=first))
    assert len(cache._known) == 1


# Unknown requests


@pytest.mark.parametrize(
    "key",
    [
        "",
        "A",
        KEY[:-1],
        KEY[:-1] + "A",
        KEY[:-2] + "A=",
        "=" * 24,
        "!" * 24,
        "\xe9" * 24,
        " " * 24,
        KEY[1:] + "=",
        "A" + KEY,
        KEY + "=",
        KEY + "A",
        " " + KEY,
        KEY + " ",
        KEY[:10] + "\r\n" + KEY[12:],
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_invalid_key_or_key_of_another_length_is_unknown(cache: UpgradeCache, key: str, *, first: bool) -> None:
    add(cache, request(first=first))
    assert not check(cache, request(key, first=first))


@pytest.mark.parametrize("lines", [(f"Sec-WebSocket-Key: {OTHER_KEY}",), (f"sec-websocket-key: {OTHER_KEY}",)])
@pytest.mark.parametrize("first", [True, False])
def test_second_key_is_unknown(cache: UpgradeCache, lines: tuple[str, ...], *, first: bool) -> None:
    add(cache, request(first=first))
    assert not check(cache, request(KEY, *lines, first=first))


@pytest.mark.parametrize(
    "data",
    [
        request(target="/updatez"),
        request(target="/updates?"),
        request(target="/updates?type=killmail"),
        request(target="/updates?format=json"),
        request(KEY, "Accept : application/json"),
        request(KEY, "Origin: https://evil.example"),
        request(KEY, "X-Real-IP: 8.8.8.8"),
        request(KEY, "x-forwarded-for: 8.8.8.8"),
        request(KEY, "Host: localhost"),
        request(KEY, "Content-Length: 1"),
        request(KEY, "Transfer-Encoding: chunked"),
        request(KEY, "User Agent: curl"),
        request(KEY, "User-Agent : curl"),
        request(KEY, "User-Agent: a\x00b"),
        request(KEY, "User-Agent: a\x7fb"),
        request(KEY, "User-Agent: a\rb"),
        request(KEY, "User-Agent: a\nHost: b"),
        request(KEY, "User-Agent: a", " Host: folded"),
        request(KEY, "User-Agent: a", "\tfolded"),
        request(KEY, ": no name"),
        request(KEY, "no colon"),
        request(KEY, "", "User-Agent: after the head"),
        request() + b"User-Agent: after the head\r\n\r\n",
        request() + b"User-Agent: after the head\r\n",
        request(KEY, *["X: y"] * (MAX_HEADERS - 4)),
        request(first=True),
        request(name="sec-websocket-key"),
        request(name="Sec-WebSocket-Kez"),
        request().replace(b"GET", b"HEAD"),
        request().replace(b"HTTP/1.1", b"HTTP/1.0"),
        request().replace(b"localhost", b"evil.example"),
        request().replace(b"localhost", b"LOCALHOST"),
        request().replace(b"\r\n", b"\n"),
        b"\r\n" + request(),
        request()[1:],
        request()[:-1],
        request()[:-4],
        request() + b"\x89\x80\x00\x00\x00\x00",
        request() + request(),
        b"",
        b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01",
    ],
)
def test_other_bytes_are_unknown(cache: UpgradeCache, data: bytes) -> None:
    add(cache, request())
    assert not check(cache, data)


@pytest.mark.parametrize("cut", range(1, 24 + len("Sec-WebSocket-Key: \r\n\r\n") + 2))
def test_request_that_ends_within_the_key_or_before_it_is_unknown(cache: UpgradeCache, cut: int) -> None:
    add(cache, request())
    assert not check(cache, request()[:-cut])


def test_empty_cache_knows_nothing(cache: UpgradeCache) -> None:
    for data in (b"", request(), b"\r\nSec-WebSocket-Key: ", b"\r\nSec-WebSocket-Key: " + KEY.encode()):
        assert cache.get(data) is None


def test_request_without_a_key_header_is_not_made_of_pieces_of_a_known_one(cache: UpgradeCache) -> None:
    """The endpoint is short, so the header of the key begins early."""
    data = request(target="/ws", first=True)
    add(cache, data, SHORT)
    stored = data.replace(KEY.encode(), b"")
    assert check(cache, request(OTHER_KEY, target="/ws", first=True), SHORT)
    for start in range(len(stored)):
        assert check(cache, stored[:start] + KEY.encode() + stored[start:], SHORT) is (
            stored[:start].endswith(b"Key: ")
        )


@pytest.mark.parametrize("spaces", [1, 2, 23, 24, 25])
def test_request_with_spaces_before_its_key_makes_no_longer_key_known(cache: UpgradeCache, spaces: int) -> None:
    before = " " * spaces
    add(cache, request(before + KEY))
    # If the cache cuts 24 characters after the first space, the end of the key stays in the stored bytes.
    for end in range(25):
        assert not check(cache, request(OTHER_KEY + KEY[end:]))
    check(cache, request(before + OTHER_KEY))


def test_request_with_spaces_after_its_key_is_not_remembered(cache: UpgradeCache) -> None:
    add(cache, request(KEY + " \t"))
    assert cache._known == {}


# Limits


def test_request_without_the_usual_spelling_of_its_key_header_is_not_remembered(cache: UpgradeCache) -> None:
    data = request(name="sec-websocket-key")
    add(cache, data)
    assert cache._known == {}
    assert cache.get(data) is None


@pytest.mark.parametrize("surplus", [0, 1])
def test_request_is_remembered_up_to_its_maximum_size(cache: UpgradeCache, surplus: int) -> None:
    padding = MAX_REQUEST_BYTES + surplus - len(request(KEY, f"{VARIED}: "))
    data = request(KEY, f"{VARIED}: " + "x" * padding)
    assert len(data) == MAX_REQUEST_BYTES + surplus
    add(cache, data)
    assert check(cache, data) is (surplus == 0)


def test_oldest_request_is_dropped_if_the_cache_is_full(cache: UpgradeCache) -> None:
    added = [request(KEY, f"{VARIED}: {number}") for number in range(MAX_REQUESTS)]
    for data in added:
        add(cache, data)
    assert len(cache._known) == MAX_REQUESTS
    assert all(cache.get(data) is not None for data in added)
    add(cache, request(KEY, f"{VARIED}: another"))
    assert len(cache._known) == MAX_REQUESTS
    assert [cache.get(data) is not None for data in added] == [False] + [True] * (MAX_REQUESTS - 1)
    assert cache.get(request(KEY, f"{VARIED}: another")) is not None


def test_request_that_is_known_already_drops_no_other_request(cache: UpgradeCache) -> None:
    added = [request(KEY, f"{VARIED}: {number}") for number in range(MAX_REQUESTS)]
    for data in added:
        add(cache, data)
    add(cache, request(OTHER_KEY, f"{VARIED}: {MAX_REQUESTS - 1}"))
    assert cache.get(added[-1]) is not None
    assert len(cache._known) >= MAX_REQUESTS - 1


def test_whole_cache_takes_less_than_a_mebibyte(cache: UpgradeCache) -> None:
    padding = MAX_REQUEST_BYTES - len(request(KEY, f"{VARIED}: "))
    for number in range(2 * MAX_REQUESTS):
        add(cache, request(KEY, f"{VARIED}: {number:0{padding}}"))
    assert sum(len(known) for known in cache._known) < 2**20


# Any bytes


keys = st.one_of(
    st.binary(min_size=16, max_size=16).map(lambda key: b64encode(key).decode()),
    st.text("AQgw=+/ \t", max_size=26),
    st.sampled_from([KEY, f" {KEY}", f"{KEY}=", f"{KEY} ", f"{KEY}\r\nSec-WebSocket-Key: {OTHER_KEY}"]),
)
requests = st.builds(
    lambda lines, target, name, first: request("KEY", *lines, target=target, name=name, first=first),
    st.lists(
        st.sampled_from(
            [
                "X: y",
                f"Sec-WebSocket-Key: {KEY}",
                "Origin: https://evil.example",
                "User-Agent: a, b",
                "Accept: application/json",
                "Last-Event-ID: 1-00000000",
            ]
        ),
        max_size=2,
    ),
    st.sampled_from(["/ws"] * 3 + ["/ws?type=killmail", "/ws?type=", "/ws?format=json", "/", "http://localhost/ws"]),
    st.sampled_from(["Sec-WebSocket-Key"] * 5 + ["sec-websocket-key", "X"]),
    st.booleans(),
)
"""Requests with the key `KEY`, which the test replaces."""


@st.composite
def changed(draw: st.DrawFn, data: bytes) -> bytes:
    """Returns the bytes of a request with a small change."""
    start = draw(st.integers(0, len(data)))
    removed = draw(st.sampled_from([0, 0, 0, 1, 24, 2000]))
    header = b"\r\nSec-WebSocket-Key: "
    ignored = [b"\r\nX: y", b"X: y\r\n", b"\r\nCookie:\t", b"\r\n\r\nX: y", b":", b"\n", b"\r", b"\x00", b"\xe9"]
    headers = [b"\r\nHost: evil.example", b"\r\nProxy-Connection: close", b"\r\nContent-Length: 1", b"Host:"]
    pieces = [KEY.encode(), OTHER_KEY.encode(), b"", b"\r\n", b" ", b"=", header]
    added = draw(st.sampled_from([*pieces, *ignored, *headers]))
    return data[:start] + added + data[start + removed :]


@settings(max_examples=examples(2500))
@given(st.data(), requests, st.lists(keys, min_size=1, max_size=3), st.lists(keys, min_size=1, max_size=5))
def test_cache_returns_only_what_the_router_decides(
    data: st.DataObject, skeleton: bytes, added: list[str], asked: list[str]
) -> None:
    cache = UpgradeCache()
    with pytest.MonkeyPatch.context() as fixed:
        fixed.setattr(upgrade_module, "date_header", lambda: DATE)
        for key in added:
            each = skeleton.replace(b"KEY", key.encode())
            if (decided := decide(each, SHORT)) is not None and not decided[2]:
                cache.add(each, decided[0], decided[1])
        for key in asked:
            check(cache, skeleton.replace(b"KEY", key.encode()), SHORT)
        for key in (*asked, ""):
            check(cache, data.draw(changed(skeleton.replace(b"KEY", key.encode()))), SHORT)


@settings(max_examples=examples(500))
@given(st.binary(min_size=16, max_size=16), st.booleans(), st.sampled_from(["/ws", "/ws?type=killmail"]))
def test_every_valid_key_of_a_remembered_request_is_known(key: bytes, first: bool, target: str) -> None:
    cache = UpgradeCache()
    add(cache, request(target=target, first=first), SHORT)
    known = cache.get(request(b64encode(key).decode(), target=target, first=first))
    assert known is not None
    assert parse(request(target=target, first=first)) == known[0]
