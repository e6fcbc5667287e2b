"""Measures the cost and the delay of a send, which is an update for one client.

Updates come at a fixed rate or at full speed, to clients with or without TLS.
"""

import functools

from tests.bench.candidates import BUN, BUN_PUBLISH, FLOOR, NAIVE, NGINX, Candidate, Place, serving
from tests.bench.cases import CUT, LOST, MISPLACED, REFUSED, Case, Figure, Row
from tests.bench.crowd import crowd, publishing
from tests.bench.proxies import serving_tls

_COST = (
    Figure("cpu_us", "CPU µs per send", 2),
    Figure("cpu_us", "ratio to the floor", 2, FLOOR),
)
_LOAD = Figure("load_us", "load generator, CPU µs per send", 2)
_RELIABLE = (Figure(LOST, "updates lost"), Figure(MISPLACED, "updates duplicated or out of order"))


def paced(quick: bool) -> list[Case]:
    """Returns the cases with a few updates per second for many clients."""
    figures = (
        *_COST,
        _LOAD,
        Figure("p50_ms", "publish to receipt, p50 ms", 1),
        Figure("p99_ms", "publish to receipt, p99 ms", 1),
        *_RELIABLE,
    )
    sizes = [(1000, 20, 60)] if quick else [(1000, 20, 200), (8000, 2, 30)]
    return [
        Case(
            f"paced: {clients} clients, {rate} updates per second",
            figures,
            functools.partial(measure, clients=clients, updates=updates, rate=rate),
            clients,
            rounds=3 if clients < 5000 else 2,
        )
        for clients, rate, updates in sizes
    ]


def saturated(quick: bool) -> list[Case]:
    """Returns the cases in which updates are published at full speed."""
    figures = (
        *_COST,
        _LOAD,
        Figure("rate", "sends per second"),
        *_RELIABLE,
        Figure(CUT, "clients disconnected"),
    )
    updates = 4000 if quick else 20_000
    return [
        Case(
            f"saturated: {clients} client{'s' * (clients > 1)}, {updates} updates at once",
            figures,
            functools.partial(measure, clients=clients, updates=updates, rate=0),
            clients,
            rounds=2,
        )
        for clients in (100, 1)
    ]


def tls(quick: bool) -> list[Case]:
    """Returns the cases with TLS: updates at a fixed rate, and updates at full speed.

    The first case also measures the TLS handshakes, all of them without a resumed session, and the memory.
    """
    clients, updates, flood = (200, 60, 4000) if quick else (1000, 200, 10_000)
    paced = (
        Figure("cpu_us", "CPU µs per send", 2),
        Figure("cpu_us", "ratio to bun", 2, BUN, at_most=1.2),
        Figure("cpu_us", "ratio to nginx", 2, NGINX, at_most=0.5),
        Figure("p99_ms", "publish to receipt through HAProxy, p99 ms", 1),
        Figure("kb", "KB per connection", 1),
        Figure("handshakes", "handshakes per second, 256 at a time"),
        Figure("handshake_us", "CPU µs per handshake"),
        *_RELIABLE,
        Figure(CUT, "clients disconnected"),
        Figure(REFUSED, "clients refused"),
    )
    saturated = (
        Figure("cpu_us", "CPU µs per send", 2),
        Figure("cpu_us", "ratio to bun-publish", 2, BUN_PUBLISH, at_most=1.0),
        Figure("cpu_us", "ratio to nginx", 2, NGINX, at_most=0.5),
        Figure("rate", "sends per second"),
        *_RELIABLE,
        Figure(CUT, "clients disconnected"),
    )
    return [
        Case(
            title,
            figures,
            functools.partial(measure, clients=count, updates=number, rate=rate, secure=True),
            2 * count,
            not_for=frozenset({FLOOR, NAIVE}),
            rounds=2,
            tls=True,
            needs=("haproxy", "openssl"),
        )
        for title, figures, count, number, rate in (
            (f"TLS, paced: {clients} clients, 20 updates per second", paced, clients, updates, 20),
            (f"TLS, saturated: 100 clients, {flood} updates at once", saturated, 100, flood, 0),
        )
    ]


def measure(
    place: Place, candidate: Candidate, *, clients: int, updates: int, rate: float, secure: bool = False
) -> Row:
    """Returns the figures of one candidate. The clients use TLS if `secure` is true.

    `rate` is the number of updates per second, or 0 for full speed.
    """
    with (serving_tls if secure else serving)(candidate, place) as server:
        ready_kb, ready_us = server.rss_kb(), server.cpu_us()
        with crowd(place, server, clients, frames=updates) as readers:
            readers.ready()
            server.settle()
            connected_kb, before_us = server.rss_kb(), server.cpu_us()
            with publishing(place, updates, rate):
                seen = readers.seen()
            used_us = server.cpu_us() - before_us
    return {
        "cpu_us": used_us / max(1, seen.frames),
        "rate": seen.frames / max(seen.span_s, 1e-6),
        "p50_ms": seen.p50_us / 1000,
        "p99_ms": seen.p99_us / 1000,
        LOST: seen.lost,
        MISPLACED: seen.misplaced,
        CUT: seen.cut,
        REFUSED: seen.refused,
        "kb": (connected_kb - ready_kb) / clients,
        "handshakes": clients / max(seen.open_s, 1e-6),
        "handshake_us": (before_us - ready_us) / clients,
        "load_us": seen.cpu_us / max(1, seen.frames),
    }
