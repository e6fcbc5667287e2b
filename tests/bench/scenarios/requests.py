"""Measures how long costly requests keep the event loop busy.

The requests are the largest request of each kind, and requests to a bridge with many update types.
"""

import contextlib
import functools
import json
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.bench.candidates import Candidate, Place, Server, serving
from tests.bench.cases import LOST, MISPLACED, Case, Figure, Row
from tests.bench.crowd import crowd, publishing
from tests.support.broker.ports import LOOPBACK
from tests.support.largest_requests import METRICS, REQUESTS

WATCHERS, RATE = 100, 20
COSTLY = "forwarded: the maximum number of addresses"
"""The delay of other clients is measured while requests of this kind are sent."""

_LIMIT_S = 10.0


def cases(quick: bool) -> list[Case]:
    """Returns the cases, which measure only the bridge: the other programs do not interpret requests."""
    count, types, updates = (20, 2000, 60) if quick else (150, 2000, 200)
    return [
        Case(
            "requests: each at the largest accepted size",
            tuple(Figure(name, f"CPU ms: {name}", 2) for name in REQUESTS),
            functools.partial(_costs, count=count),
            10,
            only_ours=True,
        ),
        Case(
            f"requests: {types} update types of the operator",
            (
                Figure("metrics", "CPU ms: page: /metrics", 2),
                Figure("unknown", "CPU ms: query: an unknown name (refused)", 2),
            ),
            functools.partial(_many_types, count=count, types=types),
            10,
            only_ours=True,
        ),
        Case(
            f"requests: one after the other ({COSTLY}), {WATCHERS} clients get {RATE} updates per second",
            (
                Figure("alone_ms", "p99 ms of the clients without requests", 1),
                Figure("loaded_ms", "p99 ms of the clients during requests", 1),
                Figure(LOST, "updates lost"),
                Figure(MISPLACED, "updates duplicated or out of order"),
            ),
            functools.partial(_with_requests, updates=updates),
            WATCHERS + 10,
            only_ours=True,
        ),
    ]


def _costs(place: Place, candidate: Candidate, *, count: int) -> Row:
    with serving(candidate, place) as server:
        return {name: _cost_ms(server, request, count) for name, request in REQUESTS.items()}


def _many_types(place: Place, candidate: Candidate, *, count: int, types: int) -> Row:
    with tempfile.TemporaryDirectory(prefix="edk-bridge-bench-") as folder:
        for number in range(types):
            schema = {"type": "object", "properties": {f"member{number}": {"type": "integer"}}}
            (Path(folder) / f"type-{number}.json").write_text(json.dumps(schema))
        with serving(candidate, place, BRIDGE_SCHEMAS=folder) as server:
            return {
                "metrics": _cost_ms(server, METRICS, count),
                "unknown": _cost_ms(server, REQUESTS["query: an unknown name (refused)"], count),
            }


def _with_requests(place: Place, candidate: Candidate, *, updates: int) -> Row:
    row: dict[str, float] = {LOST: 0, MISPLACED: 0}
    with serving(candidate, place) as server:
        for key, requesting in (("alone_ms", contextlib.nullcontext()), ("loaded_ms", _requesting(server))):
            with crowd(place, server, WATCHERS, frames=updates) as watchers:
                watchers.ready()
                server.settle()
                with requesting, publishing(place, updates, RATE):
                    seen = watchers.seen()
            row[key] = seen.p99_us / 1000
            row[LOST] += seen.lost
            row[MISPLACED] += seen.misplaced
    return row


def _cost_ms(server: Server, request: bytes, count: int) -> float:
    """Returns the processor time of one request in milliseconds, including its connection and its response."""
    for _ in range(3):
        _request(server, request)
    server.settle()
    before_us = server.cpu_us()
    for _ in range(count):
        _request(server, request)
    return (server.cpu_us() - before_us) / count / 1000


def _request(server: Server, request: bytes) -> None:
    """Sends a request and reads the response. After an upgrade, the function does not read the WebSocket messages."""
    with socket.create_connection((LOOPBACK, server.port), timeout=_LIMIT_S) as client:
        client.sendall(request)
        if client.recv(65536).startswith(b"HTTP/1.1 101"):
            return
        while client.recv(65536):
            pass


@contextlib.contextmanager
def _requesting(server: Server) -> Iterator[None]:
    """Sends one request after another until the end of the context."""
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            _request(server, REQUESTS[COSTLY])

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
