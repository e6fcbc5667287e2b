"""Measures the cost of clients that do not read, and whether they delay clients that read."""

import functools

from tests.bench.candidates import FLOOR, Candidate, Place, Server, serving
from tests.bench.cases import LOST, MISPLACED, Case, Figure, Row
from tests.bench.crowd import Seen, crowd, publishing

RATE = 100
PAD = 1800
"""This many bytes are added to a usual killmail, so that an update is about 2 KB long."""
# The log is so small that it overwrites the updates that stalled clients need. An update must not be larger than the
# log.
SETTINGS = {"BRIDGE_LOG_BYTES": "2MiB", "BRIDGE_MAX_MESSAGE_BYTES": "1MiB"}
TOO_SLOW = "4008"

FIGURES = (
    Figure("alone_ms", "p99 ms of readers alone", 1),
    Figure("stalled_ms", "p99 ms of readers with stalled clients", 1),
    Figure("times", "ratio to readers alone", 2),
    Figure(LOST, "updates lost by readers"),
    Figure(MISPLACED, "updates duplicated or out of order"),
    Figure("grown_mb", "MB grown, maximum"),
    Figure("too_slow", f"stalled clients closed with {TOO_SLOW}"),
    Figure("otherwise", "stalled clients that ended otherwise"),
    Figure("connected", "stalled clients still connected"),
)


def cases(quick: bool) -> list[Case]:
    """Returns one case. Each measurement starts the server twice: once without stalled clients and once with them."""
    clients, alone, stalled = (50, 300, 1000) if quick else (500, 500, 1600)
    title = f"slow: {clients} clients read, {clients} do not, {RATE} updates of 2 KB per second"
    measure = functools.partial(_measure, clients=clients, alone=alone, stalled=stalled)
    return [Case(title, FIGURES, measure, 2 * clients, not_for=frozenset({FLOOR}))]


def _measure(place: Place, candidate: Candidate, *, clients: int, alone: int, stalled: int) -> Row:
    with serving(candidate, place, **SETTINGS) as server:
        without = _broadcast(place, server, clients, 0, alone)
    with serving(candidate, place, **SETTINGS) as server:
        ready_kb = server.rss_kb()
        with_stalled = _broadcast(place, server, clients, clients, stalled)
        grown_kb = server.rss_kb("VmHWM") - ready_kb
    ends = with_stalled.stalled
    return {
        "alone_ms": without.p99_us / 1000,
        "stalled_ms": with_stalled.p99_us / 1000,
        "times": with_stalled.p99_us / max(1, without.p99_us),
        LOST: without.lost + with_stalled.lost,
        MISPLACED: without.misplaced + with_stalled.misplaced,
        "grown_mb": grown_kb / 1024,
        "too_slow": ends.codes.get(TOO_SLOW, 0),
        "otherwise": ends.reset + ends.eof + sum(count for code, count in ends.codes.items() if code != TOO_SLOW),
        "connected": ends.connected,
    }


def _broadcast(place: Place, server: Server, readers: int, stalled: int, updates: int) -> Seen:
    with crowd(place, server, readers, frames=updates, stalled=stalled) as all_clients:
        all_clients.ready()
        server.settle()
        with publishing(place, updates, RATE, PAD):
            return all_clients.seen()
