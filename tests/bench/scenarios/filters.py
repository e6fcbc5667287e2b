"""Measures what filters and ids cost, and what filters save.

The comparison is with clients that have no filter and no ids.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.candidates import Candidate, Place, serving
from tests.bench.cases import LOST, MISPLACED, REFUSED, Case, Figure, Row
from tests.bench.crowd import crowd, publishing
from tests.bench.publish import SYSTEM

FILTERS = 500
SYSTEMS = 100
"""If each client asks for one solar system, the updates come from this many solar systems in turn."""

ELSEWHERE = 40_000_000
"""The lowest id of the solar systems that have no updates.

Each filter also names one of the systems without updates, so that all filters differ but match the same updates.
"""

RATE = 10
LIMIT = 1.3
"""With filters that match every update, the cost may be at most this many times the cost without filters."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of client, with its query parameters."""

    key: str
    name: str
    paths: Sequence[str]
    systems: int = 1
    """The number of solar systems with updates. Each client gets the updates of one of these systems."""


PLAIN = Kind("plain", "without a filter", ())
ALL = Kind(
    "all",
    f"{FILTERS} filters, all match",
    [f"/updates?systemId={SYSTEM}&systemId={ELSEWHERE + number}" for number in range(FILTERS)],
)
FEW = Kind(
    "few",
    f"{FILTERS} filters, 1 in {SYSTEMS} matches",
    [f"/updates?systemId={SYSTEM + number % SYSTEMS}&systemId={ELSEWHERE + number}" for number in range(FILTERS)],
    SYSTEMS,
)
IDS = Kind("ids", "with ids", ["/updates?after="])
KINDS = (PLAIN, ALL, FEW, IDS)


def _figures(kind: Kind) -> list[Figure]:
    return [
        Figure(f"{kind.key}_update", f"{kind.name}: CPU ms per update", 2),
        *(
            []
            if kind is PLAIN
            else [Figure(f"{kind.key}_times", "ratio to no filter", 2, at_most=LIMIT if kind is ALL else None)]
        ),
        Figure(f"{kind.key}_send", "CPU µs per send", 2),
        Figure(f"{kind.key}_kb", "KB per connection", 2),
    ]


def cases(quick: bool) -> list[Case]:
    """Returns one case. The case starts a new bridge for each kind of client."""
    clients, updates = (5000, 40) if quick else (5000, 100)
    figures = [
        *(figure for kind in KINDS for figure in _figures(kind)),
        Figure(LOST, "updates lost"),
        Figure("extra", "updates that were not requested"),
        Figure(MISPLACED, "updates duplicated or out of order"),
        Figure(REFUSED, "clients refused"),
    ]
    measure = functools.partial(_measure, clients=clients, updates=updates)
    title = f"filters: {clients} clients, {RATE} updates per second"
    return [Case(title, figures, measure, clients, only_ours=True)]


def _measure(place: Place, candidate: Candidate, *, clients: int, updates: int) -> Row:
    row: dict[str, float] = {LOST: 0, "extra": 0, MISPLACED: 0, REFUSED: 0}
    for kind in KINDS:
        for key, value in _broadcast(place, candidate, kind, clients, updates).items():
            row[key] = row.get(key, 0) + value
    for kind in (ALL, FEW, IDS):
        row[f"{kind.key}_times"] = row[f"{kind.key}_update"] / row["plain_update"]
    return row


def _broadcast(place: Place, candidate: Candidate, kind: Kind, clients: int, updates: int) -> Row:
    """Measures one kind of client."""
    if kind.systems > 1:
        # Each solar system has the same number of clients. Because each update reaches few clients, more updates are
        # published than for the other kinds of clients.
        updates, rate = 5 * updates // kind.systems * kind.systems, 5 * RATE
    else:
        rate = RATE
    with serving(candidate, place) as server:
        ready_kb = server.rss_kb()
        with crowd(place, server, clients, kind.paths, frames=updates // kind.systems) as readers:
            readers.ready()
            server.settle()
            each_kb = (server.rss_kb() - ready_kb) / clients
            before_us = server.cpu_us()
            with publishing(place, updates, rate, systems=kind.systems):
                seen = readers.seen()
            used_us = server.cpu_us() - before_us
    return {
        f"{kind.key}_update": used_us / updates / 1000,
        f"{kind.key}_send": used_us / max(1, seen.frames),
        f"{kind.key}_kb": each_kb,
        LOST: seen.lost,
        "extra": seen.extra,
        MISPLACED: seen.misplaced,
        REFUSED: seen.refused,
    }
