"""How fast clients get in, and what it does to the others when all come back at once."""

import functools
import time

from tests.bench.candidates import FLOOR, OURS, Candidate, Place, serving
from tests.bench.cases import LOST, MISPLACED, Case, Column, Row
from tests.bench.crowd import crowd, publishing

WATCHERS = 100
RATE = 20
BEFORE_S = 2.0
"""Of broadcast, before everybody is dropped."""


def cases(quick: bool) -> list[Case]:
    """Handshakes, and the storm."""
    clients = 500 if quick else 5000
    return [
        Case(
            "connect",
            f"connect: {clients} handshakes by one program",
            (
                Column("many", "a second, 256 in flight"),
                Column("many", "x ours", 2, OURS),
                Column("one", "a second, one by one"),
                Column("one", "x ours", 2, OURS),
                Column("cpu_us", "CPU us each", 1),
                Column("refused", "refused"),
            ),
            functools.partial(_handshakes, clients=clients),
            clients,
        ),
        Case(
            "connect",
            f"storm: {clients} clients drop and come back at once, {RATE} updates a second, {WATCHERS} watchers",
            (
                Column("p99_ms", "watchers' p99 ms", 2),
                Column("max_ms", "watchers' max ms", 1),
                Column("max_ms", "x ours", 2, OURS),
                Column(LOST, "lost by watchers"),
                Column(MISPLACED, "misplaced"),
                Column("back_s", "s until all are back", 2),
                Column("refused", "refused"),
            ),
            functools.partial(_storm, clients=clients, updates=120 if quick else 240),
            clients + WATCHERS,
            # It takes one client after the other, and would wait for the slowest with the broadcast.
            not_for=frozenset({FLOOR}),
        ),
    ]


def _handshakes(place: Place, candidate: Candidate, *, clients: int) -> Row:
    with serving(candidate, place) as server:
        before_us = server.cpu_us()
        with crowd(place, server, clients, inflight=256) as many:
            together = many.seen()
            used_us = server.cpu_us() - before_us
        server.settle()
        with crowd(place, server, clients, inflight=1) as one:
            singly = one.seen()
    return {
        "many": clients / together.open_s,
        "one": clients / singly.open_s,
        "cpu_us": used_us / clients,
        "refused": together.refused + singly.refused,
    }


def _storm(place: Place, candidate: Candidate, *, clients: int, updates: int) -> Row:
    with (
        serving(candidate, place) as server,
        crowd(place, server, WATCHERS, frames=updates) as watchers,
        crowd(place, server, clients, reconnect=True) as storm,
    ):
        watchers.ready()
        storm.ready()
        server.settle()
        with publishing(place, updates, RATE):
            time.sleep(BEFORE_S)
            storm.drop()
            storm.ready()
            seen = watchers.seen()
        back = storm.stop()
    return {
        "p99_ms": seen.p99_us / 1000,
        "max_ms": seen.max_us / 1000,
        LOST: seen.lost,
        MISPLACED: seen.misplaced,
        "back_s": back.back_s,
        "refused": back.refused_back,
    }
