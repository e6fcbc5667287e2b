"""Measures whether clients that request a full replay delay live clients."""

import functools
import time

from tests.bench.candidates import Candidate, Place, Server, serving
from tests.bench.cases import CUT, LOST, MISPLACED, REFUSED, Case, Figure, Row
from tests.bench.crowd import Seen, crowd, publishing

LIVE = 100
RATE = 20
BEFORE_S = 1.0
"""The duration of the broadcast before clients resume, in seconds."""

LOG = "16MiB"
ENOUGH = 60_000
"""The number of updates that fill the log."""

EVERYTHING = "/updates?after=0-00000000"
"""A request target with an id that no update log contains.

The bridge answers this request with a report of missing updates and with all updates in its log.
"""

SIZES = (1, 20, 200)
LIMIT_MS = 50
"""The maximum additional delay of the live clients, in milliseconds."""


def cases(quick: bool) -> list[Case]:
    """Returns one case, on one bridge with a full log."""
    figures = [
        Figure("alone_ms", "longest delay of the live clients before, ms", 1),
        *(figure for size in SIZES for figure in _figures(size)),
        Figure("replayed", "updates replayed to each client"),
        Figure(LOST, "updates lost by live clients"),
        Figure(MISPLACED, "updates duplicated or out of order"),
        Figure(CUT, "clients disconnected"),
        Figure(REFUSED, "clients refused"),
    ]
    measure = functools.partial(_measure, updates=200 if quick else 300)
    title = f"resume: {LIVE} live clients get {RATE} updates per second, others a full replay of {LOG}"
    return [Case(title, figures, measure, LIVE + max(SIZES), only_ours=True)]


def _figures(size: int) -> list[Figure]:
    return [
        Figure(f"later_{size}", f"additional delay during {size} replay{'s' * (size > 1)}, ms", 1, at_most=LIMIT_MS),
        Figure(f"caught_{size}", f"s until {'it is' if size == 1 else 'all are'} complete", 2),
    ]


def _measure(place: Place, candidate: Candidate, *, updates: int) -> Row:
    with serving(candidate, place, BRIDGE_LOG_BYTES=LOG) as server:
        # When this client has all updates, the bridge has sent everything that was published.
        with crowd(place, server, 1, frames=ENOUGH) as witness:
            witness.ready()
            with publishing(place, ENOUGH, 0):
                filling = witness.seen()
        server.settle()
        alone, _ = _with_replays(place, server, 0, updates)
        found = {size: _with_replays(place, server, size, updates) for size in SIZES}
    lives = [filling, alone, *(live for live, _ in found.values())]
    resumed = [others for _, others in found.values() if others is not None]
    row = {
        "alone_ms": alone.max_us / 1000,
        "replayed": resumed[-1].frames / max(SIZES),
        LOST: sum(live.lost for live in lives),
        MISPLACED: sum(seen.misplaced for seen in (*lives, *resumed)),
        CUT: sum(seen.cut for seen in (*lives, *resumed)),
        REFUSED: sum(seen.refused for seen in (*lives, *resumed)),
    }
    for size, (live, others) in found.items():
        row[f"later_{size}"] = (live.max_us - alone.max_us) / 1000
        row[f"caught_{size}"] = others.caught_s if others is not None else 0
    return row


def _with_replays(place: Place, server: Server, size: int, updates: int) -> tuple[Seen, Seen | None]:
    """Returns the results of the live clients, and of `size` clients that resume at the same time."""
    others = None
    with crowd(place, server, LIVE, frames=updates) as live:
        live.ready()
        server.settle()
        with publishing(place, updates, RATE):
            if size:
                time.sleep(BEFORE_S)
                with crowd(place, server, size, [EVERYTHING], caught_up=True, inflight=size) as resuming:
                    others = resuming.seen()
            return live.seen(), others
