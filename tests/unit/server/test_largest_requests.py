"""Tests how much processor time the largest requests of each kind take, because all clients share the event loop."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import pytest

from bridge.config.networks import DEFAULT_NETWORKS
from bridge.contract import catalog
from bridge.contract.filters import QueryParser
from bridge.metrics import Metrics
from bridge.server.access.rules import Access
from bridge.server.http.pages import Pages
from bridge.server.http.request import MAX_HEAD_BYTES, MAX_HEADER_BYTES, MAX_REQUEST_LINE_BYTES, RequestReader
from bridge.server.http.response import serialize
from bridge.server.router import OpenEventStream, Poll, Refused, Router
from bridge.server.websocket.upgrade import Upgrade
from tests.support.largest_requests import PLAIN_REQUESTS, REQUESTS

if TYPE_CHECKING:
    from collections.abc import Iterator

CATALOG = catalog.load([catalog.PACKAGED])
PAGES = Pages(lambda: (True, {}), Metrics(), CATALOG.documents, "/updates")
ROUTER = Router(Access(DEFAULT_NETWORKS, frozenset(), frozenset()), QueryParser(CATALOG), PAGES, "/updates")

LIMIT_S = 0.001
"""The maximum processor time for a request. When this test was written, each of the largest requests took between 0.04
and 0.5 ms."""

ATTEMPTS = 50
"""How often each test is run. Only the fastest run counts, so that other load on the machine has no effect."""


@pytest.fixture(autouse=True)
def without_coverage() -> Iterator[None]:
    """Stops the measurement of coverage, which would take longer than the measured requests."""
    tracing = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(tracing)


def work(head: bytes) -> None:
    """Makes the bridge handle a request, without a socket."""
    read = RequestReader().feed(head)
    assert read is not None
    request, _ = read
    answer = ROUTER.route(request)
    if isinstance(answer, Upgrade | OpenEventStream | Poll):
        return
    serialize(answer.response if isinstance(answer, Refused) else answer)


def cost_s(head: bytes) -> float:
    before_s = time.process_time()
    work(head)
    return time.process_time() - before_s


@pytest.mark.parametrize("name", [*REQUESTS, *PLAIN_REQUESTS])
def test_request_of_the_largest_size_takes_less_than_a_millisecond(name: str) -> None:
    request = ({**REQUESTS, **PLAIN_REQUESTS})[name]
    assert min(cost_s(request) for _ in range(ATTEMPTS)) < LIMIT_S


def test_metrics_of_thousands_of_types_take_less_than_five_milliseconds() -> None:
    metrics = Metrics()
    metrics.init_labels([f"type-{number}" for number in range(2000)], [], [], [])
    pages = Pages(lambda: (True, {}), metrics, {}, "/updates")

    def scrape_s() -> float:
        for name in metrics.updates:
            metrics.updates[name] += 1
        before_s = time.process_time()
        assert len(pages.get("/metrics").body) > 2000 * 2 * 40
        return time.process_time() - before_s

    assert min(scrape_s() for _ in range(ATTEMPTS)) < 5 * LIMIT_S


def test_requests_have_the_largest_size() -> None:
    assert len(REQUESTS["headers: the maximum number and size"]) > MAX_HEAD_BYTES - 128
    assert max(len(line) for line in REQUESTS["cookies"].split(b"\r\n")) > MAX_HEADER_BYTES
    assert max(request.index(b"\r\n") for request in REQUESTS.values()) > MAX_REQUEST_LINE_BYTES - 16
