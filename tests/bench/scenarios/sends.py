"""Measures the cost and the delay of a send, which is an update for one client.

Updates come at a fixed rate or at full speed.
"""

import functools

from tests.bench.candidates import FLOOR, Candidate, Place, serving
from tests.bench.cases import CUT, LOST, MISPLACED, Case, Figure, Row
from tests.bench.crowd import crowd, publishing

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
    sizes = [(1000, 20, 60)] if quick else [(1000, 20, 200), (8000, 2, 40)]
    return [
        Case(
            f"paced: {clients} clients, {rate} updates per second",
            figures,
            functools.partial(_measure, clients=clients, updates=updates, rate=rate),
            clients,
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
            functools.partial(_measure, clients=clients, updates=updates, rate=0),
            clients,
        )
        for clients in (100, 1)
    ]


def _measure(place: Place, candidate: Candidate, *, clients: int, updates: int, rate: float) -> Row:
    with serving(candidate, place) as server, crowd(place, server, clients, frames=updates) as readers:
        readers.ready()
        server.settle()
        before_us = server.cpu_us()
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
        "load_us": seen.cpu_us / max(1, seen.frames),
    }
