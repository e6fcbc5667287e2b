"""Whether clients that do not read harm those that do, and what they cost."""

import functools

from tests.bench.candidates import FLOOR, Candidate, Place, Server, serving
from tests.bench.cases import LOST, MISPLACED, Case, Column, Row
from tests.bench.crowd import Seen, crowd, publishing

RATE = 100
PAD = 1800
"""Bytes beside a killmail's own: two kilobytes an update."""
# Small enough that the stalled fall off the log within the run; an update may not be larger than the log.
SETTINGS = {"BRIDGE_LOG_BYTES": "2MiB", "BRIDGE_MAX_MESSAGE_BYTES": "1MiB"}
TOO_SLOW = "4008"

COLUMNS = (
    Column("alone_ms", "p99 ms, readers alone", 2),
    Column("beside_ms", "p99 ms, beside stalled", 2),
    Column("times", "ratio", 2),
    Column("max_ms", "max ms, beside", 1),
    Column(LOST, "lost by readers"),
    Column(MISPLACED, "misplaced"),
    Column("grown_mb", "peak MB over ready", 1),
    Column("too_slow", f"stalled: {TOO_SLOW}"),
    Column("reset", "reset"),
    Column("eof", "end without a code"),
    Column("otherwise", "another code"),
    Column("connected", "still connected"),
)


def cases(quick: bool) -> list[Case]:
    """One case; each measurement starts the server twice, without and with the stalled."""
    clients, alone, beside = (50, 300, 1000) if quick else (500, 1000, 3600)
    title = f"slow: {clients} readers, and {clients} that read nothing, {RATE} updates of 2 KB a second"
    measure = functools.partial(_measure, clients=clients, alone=alone, beside=beside)
    return [Case("slow", title, COLUMNS, measure, 2 * clients, not_for=frozenset({FLOOR}))]


def _measure(place: Place, candidate: Candidate, *, clients: int, alone: int, beside: int) -> Row:
    with serving(candidate, place, **SETTINGS) as server:
        without = _broadcast(place, server, clients, 0, alone)
    with serving(candidate, place, **SETTINGS) as server:
        ready_kb = server.rss_kb()
        beside_stalled = _broadcast(place, server, clients, clients, beside)
        grown_kb = server.rss_kb("VmHWM") - ready_kb
    ends = beside_stalled.stalled
    return {
        "alone_ms": without.p99_us / 1000,
        "beside_ms": beside_stalled.p99_us / 1000,
        "times": beside_stalled.p99_us / max(1, without.p99_us),
        "max_ms": beside_stalled.max_us / 1000,
        LOST: without.lost + beside_stalled.lost,
        MISPLACED: without.misplaced + beside_stalled.misplaced,
        "grown_mb": grown_kb / 1024,
        "too_slow": ends.codes.get(TOO_SLOW, 0),
        "reset": ends.reset,
        "eof": ends.eof,
        "otherwise": sum(count for code, count in ends.codes.items() if code != TOO_SLOW),
        "connected": ends.connected,
    }


def _broadcast(place: Place, server: Server, readers: int, stalled: int, updates: int) -> Seen:
    with crowd(place, server, readers, frames=updates, stalled=stalled) as all_clients:
        all_clients.ready()
        server.settle()
        with publishing(place, updates, RATE, PAD):
            return all_clients.seen()
