"""Measures how fast clients connect, and how clients that connect affect other clients."""

import functools
import time

from tests.bench.candidates import BUN, BUN_PUBLISH, FLOOR, NAIVE, Candidate, Place, serving
from tests.bench.cases import CUT, LOST, MISPLACED, REFUSED, Case, Figure, Row
from tests.bench.crowd import crowd, publishing

WATCHERS = 100
RATE = 20
TIMES_BUN = 1.8
"""The bridge may take at most this many times the time of the program `bun`."""

DISTINCT_SHARE = 2
"""One in this many of the clients sends a request with other headers.

With all clients, the slowest program would take more than 3 s.
"""

ALONE_UPDATES = 100
"""The number of updates that the others get before the clients of the storm connect."""

STORMS = 5
"""The connections are dropped at most this many times.

A single storm is so short that few updates arrive during it.
"""

CALM_S = 1.0
"""The time before each storm, in seconds."""

MANY = 18_000
OVERLOAD_LIMIT_S = 60
"""The measurement ends after this many seconds, even if not all clients are connected."""


def cases(quick: bool) -> list[Case]:
    """Returns the cases: handshakes, and a storm of reconnects."""
    clients = 500 if quick else 5000
    return [
        Case(
            f"connect: {clients} clients of one program",
            (
                Figure("many", "handshakes per second, 256 at a time"),
                Figure("many", "ratio to bun", 2, BUN, at_least=_at_least(TIMES_BUN)),
                Figure("distinct", "handshakes per second, 256 at a time, each request with other headers"),
                Figure("distinct", "ratio to bun", 2, BUN),
                Figure("one", "handshakes per second, one at a time"),
                Figure("one", "ratio to bun", 2, BUN, at_least=_at_least(TIMES_BUN)),
                Figure(REFUSED, "clients refused"),
            ),
            functools.partial(_handshakes, clients=clients),
            clients,
            rounds=3,
        ),
        Case(
            f"storm: {clients} clients reconnect, {WATCHERS} others get {RATE} updates per second",
            (
                Figure("back_s", "s until all are connected again", 2),
                Figure("back_s", "ratio to bun", 2, BUN, at_most=TIMES_BUN),
                Figure("alone_ms", "p99 ms of the others without the clients of the storm", 1),
                Figure("storm_ms", "p99 ms of the others while clients connect", 1),
                Figure("times", "ratio to without", 2, at_most=3),
                Figure("max_ms", "longest delay of the others, ms"),
                Figure(LOST, "updates lost"),
                Figure(MISPLACED, "updates duplicated or out of order"),
                Figure(REFUSED, "clients refused"),
            ),
            functools.partial(_storm, clients=clients, updates=120 if quick else 160),
            clients + WATCHERS,
            # The program `floor` accepts clients one after another, and its broadcast waits for the slowest client.
            not_for=frozenset({FLOOR}),
            rounds=2,
        ),
    ]


def overload(quick: bool) -> list[Case]:
    """Returns one case: clients connect to a server that is overloaded."""
    many = 1000 if quick else MANY
    return [
        Case(
            f"overload: {many} clients connect and get {RATE} updates per second",
            (
                Figure("connected", f"clients connected after at most {OVERLOAD_LIMIT_S} s", at_least=many),
                Figure("open_s", "s until all are connected", 1),
                Figure("open_s", "ratio to bun", 2, BUN),
                Figure(MISPLACED, "updates duplicated or out of order"),
                Figure(CUT, "clients disconnected"),
                Figure(REFUSED, "clients refused"),
            ),
            functools.partial(_overload, clients=many),
            many,
            # The program `naive` takes minutes, and `bun-publish` differs from `bun` only in its sends.
            not_for=frozenset({FLOOR, NAIVE, BUN_PUBLISH}),
        ),
    ]


def _at_least(times: float) -> float:
    """Returns the smallest ratio of rates, with two digits, for a program that takes at most `times` the time."""
    return round(1 / times, 2)


def _handshakes(place: Place, candidate: Candidate, *, clients: int) -> Row:
    with serving(candidate, place) as server:
        with crowd(place, server, clients, inflight=256) as many:
            together = many.seen()
        server.settle()
        with crowd(place, server, clients // DISTINCT_SHARE, inflight=256, distinct=True) as many:
            distinct = many.seen()
        server.settle()
        with crowd(place, server, clients, inflight=1) as one:
            singly = one.seen()
    return {
        "many": clients / together.open_s,
        "distinct": clients // DISTINCT_SHARE / distinct.open_s,
        "one": clients / singly.open_s,
        REFUSED: together.refused + distinct.refused + singly.refused,
    }


def _storm(place: Place, candidate: Candidate, *, clients: int, updates: int) -> Row:
    with serving(candidate, place) as server:
        with crowd(place, server, WATCHERS, frames=ALONE_UPDATES) as watchers:
            watchers.ready()
            server.settle()
            with publishing(place, ALONE_UPDATES, RATE):
                alone = watchers.seen()
        with (
            crowd(place, server, WATCHERS, frames=updates) as watchers,
            crowd(place, server, clients, reconnect=True) as storm,
        ):
            watchers.ready()
            storm.ready()
            server.settle()
            with publishing(place, updates, RATE) as publisher:
                for _ in range(STORMS):
                    time.sleep(CALM_S)
                    if publisher.poll() is not None:
                        break
                    with watchers.window():
                        storm.drop()
                        storm.ready()
                seen = watchers.seen()
            back = storm.stop()
    return {
        "back_s": back.back_s,
        "alone_ms": alone.p99_us / 1000,
        "storm_ms": seen.window_p99_us / 1000,
        "times": seen.window_p99_us / max(1, alone.p99_us),
        "max_ms": seen.max_us / 1000,
        LOST: alone.lost + seen.lost,
        MISPLACED: alone.misplaced + seen.misplaced,
        REFUSED: back.refused_back,
    }


def _overload(place: Place, candidate: Candidate, *, clients: int) -> Row:
    """Measures how long clients take to connect while the updates need more than all processors."""
    with (
        serving(candidate, place, BRIDGE_MAX_CONNECTIONS=str(2 * clients)) as server,
        publishing(place, 2 * OVERLOAD_LIMIT_S * RATE, RATE),
        crowd(place, server, clients, hold=True) as many,
    ):
        complete = many.all_open(OVERLOAD_LIMIT_S)
        seen = many.stop()
    row = {"connected": seen.readers.connected, MISPLACED: seen.misplaced, CUT: seen.cut, REFUSED: seen.refused}
    return row | ({"open_s": seen.open_s} if complete else {})
