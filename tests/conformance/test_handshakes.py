"""The bridge answers each handshake of a real library with 101, in whatever pieces the request arrives.

The requests in `handshakes.json` were recorded from runs of the libraries. `integration/test_libraries.py` runs the
libraries that can be installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from bridge.config.networks import DEFAULT_NETWORKS
from bridge.contract import catalog
from bridge.contract.filters import Query, QueryParser, SubscribeRequest
from bridge.server.access.rules import Access
from bridge.server.http.request import RequestReader, parse
from bridge.server.websocket import upgrade

if TYPE_CHECKING:
    from bridge.server.http.request import Request

DOCUMENT: dict[str, Any] = orjson.loads(Path(__file__).with_name("handshakes.json").read_bytes())
HANDSHAKES: dict[str, bytes] = {
    name: "\r\n".join([*lines, "", ""]).encode("latin-1") for name, lines in DOCUMENT["handshakes"].items()
}
ACCESS = Access(DEFAULT_NETWORKS, frozenset(), frozenset())
QUERIES = QueryParser(catalog.load([catalog.PACKAGED]))


def assert_is_upgraded(request: Request) -> None:
    assert ACCESS.check_request(request.headers, request.target) is None
    assert ACCESS.check_origin(request.headers) is None
    assert request.path == "/updates"
    assert QUERIES.parse(request.query) == Query(SubscribeRequest(None, None))
    assert upgrade.check(request, "/updates") is None


@pytest.mark.parametrize("name", HANDSHAKES)
def test_handshake_of_a_library_is_answered_with_an_upgrade(name: str) -> None:
    assert_is_upgraded(parse(HANDSHAKES[name]))


@pytest.mark.parametrize("name", HANDSHAKES)
def test_handshake_of_a_library_is_the_same_at_any_split(name: str) -> None:
    handshake = HANDSHAKES[name]
    for at in range(1, len(handshake)):
        reader = RequestReader()
        assert reader.feed(handshake[:at]) is None
        assert reader.feed(handshake[at:] + b"frame") == (parse(handshake), b"frame")


@pytest.mark.parametrize("name", HANDSHAKES)
def test_handshake_of_a_library_to_another_name_of_the_bridge_is_answered_with_an_upgrade(name: str) -> None:
    """If a library sends the header Origin, it takes the origin from the requested URL; only Go's example does not."""
    handshake = HANDSHAKES[name].replace(b"127.0.0.1", b"bridge")
    assert_is_upgraded(parse(handshake))
