"""Measures the memory of connections, and the memory that remains after they end.

The measurement is repeated in one process.
"""

import functools

from tests.bench.candidates import FLOOR, NAIVE, Candidate, Place, serving
from tests.bench.cases import Case, Figure, Row
from tests.bench.crowd import crowd

ROUNDS = 3


def cases(quick: bool) -> list[Case]:
    """Returns one case, which itself repeats the measurement with new connections."""
    clients = 500 if quick else 5000
    numbers = range(1, ROUNDS + 1)
    figures = [
        Figure("ready_mb", "MB before the first connection", 1),
        *(Figure(f"each_{number}", f"KB per connection, time {number}", 2) for number in numbers),
        *(Figure(f"left_{number}", f"MB after all have left, time {number}", 1) for number in numbers),
    ]
    title = f"memory: {clients} clients connect, idle and leave, {ROUNDS} times"
    measure = functools.partial(_measure, clients=clients)
    return [Case(title, figures, measure, clients, not_for=frozenset({FLOOR, NAIVE}))]


def _measure(place: Place, candidate: Candidate, *, clients: int) -> Row:
    row = {}
    with serving(candidate, place) as server:
        ready_kb = server.rss_kb()
        row["ready_mb"] = ready_kb / 1024
        for number in range(1, ROUNDS + 1):
            with crowd(place, server, clients, hold=True) as idle:
                idle.ready()
                server.settle()
                row[f"each_{number}"] = (server.rss_kb() - ready_kb) / clients
            server.settle()
            row[f"left_{number}"] = server.rss_kb() / 1024
    return row
