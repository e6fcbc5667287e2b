"""Measures how fast clients connect, and how a storm of reconnects affects other clients."""

import functools
import time

from tests.bench.candidates import FLOOR, OURS, Candidate, Place, serving
from tests.bench.cases import LOST, MISPLACED, REFUSED, Case, Figure, Row
from tests.bench.crowd import crowd, publishing

WATCHERS = 100
RATE = 20
BEFORE_S = 2.0
"""The duration of the broadcast before the connections are dropped, in seconds."""


def cases(quick: bool) -> list[Case]:
    """Returns the cases: handshakes, and a storm of reconnects."""
    clients = 500 if quick else 5000
    return [
        Case(
            f"connect: {clients} clients of one program",
            (
                Figure("many", "handshakes per second, 256 at a time"),
                Figure("many", "ratio to ours", 2, OURS),
                Figure("one", "handshakes per second, one at a time"),
                Figure("one", "ratio to ours", 2, OURS),
                Figure(REFUSED, "clients refused"),
            ),
            functools.partial(_handshakes, clients=clients),
            clients,
        ),
        Case(
            f"storm: {clients} clients reconnect, {WATCHERS} others get {RATE} updates per second",
            (
                Figure("max_ms", "longest delay of the others, ms"),
                Figure(LOST, "updates lost"),
                Figure(MISPLACED, "updates duplicated or out of order"),
                Figure("back_s", "s until all are connected again", 1),
                Figure(REFUSED, "clients refused"),
            ),
            functools.partial(_storm, clients=clients, updates=120 if quick else 240),
            clients + WATCHERS,
            # The program `floor` accepts clients one after another, and its broadcast waits for the slowest client.
            not_for=frozenset({FLOOR}),
        ),
    ]


def _handshakes(place: Place, candidate: Candidate, *, clients: int) -> Row:
    with serving(candidate, place) as server:
        with crowd(place, server, clients, inflight=256) as many:
            together = many.seen()
        server.settle()
        with crowd(place, server, clients, inflight=1) as one:
            singly = one.seen()
    return {
        "many": clients / together.open_s,
        "one": clients / singly.open_s,
        REFUSED: together.refused + singly.refused,
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
        "max_ms": seen.max_us / 1000,
        LOST: seen.lost,
        MISPLACED: seen.misplaced,
        "back_s": back.back_s,
        REFUSED: back.refused_back,
    }
