"""What a delivery costs and how late it is: updates now and then, the usual case, and as fast as they come."""

import functools

from tests.bench.candidates import FLOOR, OURS, Candidate, Place, serving
from tests.bench.cases import LOST, MISPLACED, Case, Column, Row
from tests.bench.crowd import crowd, publishing

_COST = (
    Column("cpu_us", "CPU us a delivery", 2),
    Column("cpu_us", "x floor", 2, FLOOR),
    Column("cpu_us", "x ours", 2, OURS),
)
_RELIABLE = (Column(LOST, "lost"), Column(MISPLACED, "misplaced"))
_LOAD = Column("load_us", "generator's CPU us", 2)


def paced(quick: bool) -> list[Case]:
    """A few updates a second for many clients."""
    columns = (
        *_COST,
        Column("p50_ms", "p50 ms", 2),
        Column("p99_ms", "p99 ms", 2),
        Column("max_ms", "max ms", 2),
        *_RELIABLE,
        _LOAD,
    )
    sizes = [(1000, 20, 60)] if quick else [(1000, 20, 200), (8000, 2, 40)]
    return [
        Case(
            "paced",
            f"paced: {clients} clients, {updates} updates, {rate} a second",
            columns,
            functools.partial(_deliver, clients=clients, updates=updates, rate=rate),
            clients,
        )
        for clients, rate, updates in sizes
    ]


def saturated(quick: bool) -> list[Case]:
    """As fast as the broker takes them."""
    columns = (
        *_COST,
        Column("message_us", "CPU us a message", 1),
        Column("rate", "deliveries a second"),
        *_RELIABLE,
        Column("cut", "cut"),
        _LOAD,
    )
    updates = 4000 if quick else 20_000
    return [
        Case(
            "saturated",
            f"saturated: {clients} client{'s' * (clients > 1)}, {updates} updates at once",
            columns,
            functools.partial(_deliver, clients=clients, updates=updates, rate=0),
            clients,
        )
        for clients in (100, 1)
    ]


def _deliver(place: Place, candidate: Candidate, *, clients: int, updates: int, rate: float) -> Row:
    with serving(candidate, place) as server, crowd(place, server, clients, frames=updates) as readers:
        readers.ready()
        server.settle()
        before_us = server.cpu_us()
        with publishing(place, updates, rate):
            seen = readers.seen()
        used_us = server.cpu_us() - before_us
    return {
        "cpu_us": used_us / max(1, seen.frames),
        "message_us": used_us / updates,
        "rate": seen.frames / max(seen.span_s, 1e-6),
        "p50_ms": seen.p50_us / 1000,
        "p99_ms": seen.p99_us / 1000,
        "max_ms": seen.max_us / 1000,
        LOST: seen.lost,
        MISPLACED: seen.misplaced,
        "cut": seen.cut,
        "load_us": seen.cpu_us / max(1, seen.frames),
    }
