"""Whether clients that ask for all that is kept, at once, hold up those that only listen."""

import functools
import time

from tests.bench.candidates import Candidate, Place, Server, serving
from tests.bench.cases import CUT, LOST, MISPLACED, REFUSED, Case, Figure, Row
from tests.bench.crowd import Seen, crowd, publishing

LIVE = 100
RATE = 20
BEFORE_S = 1.0
"""Of broadcast, before anybody resumes."""

LOG = "16MiB"
ENOUGH = 60_000
"""Updates that fill it."""

EVERYTHING = "/updates?after=0-00000000"
"""An id that no bridge has given out: the answer says that something is missing, and all that is kept follows."""

SIZES = (1, 20, 200)
LIMIT_MS = 50
"""Later than the latest update without anybody who resumes."""


def cases(quick: bool) -> list[Case]:
    """One case, on one bridge, whose log stays full."""
    figures = [
        Figure("alone_ms", "latest update of the others before, ms", 1),
        *(figure for size in SIZES for figure in _figures(size)),
        Figure("replayed", "updates replayed to each"),
        Figure(LOST, "updates lost, of those who listen"),
        Figure(MISPLACED, "updates doubled or out of order"),
        Figure(CUT, "clients cut off"),
        Figure(REFUSED, "clients refused"),
    ]
    measure = functools.partial(_measure, updates=200 if quick else 400)
    title = f"resume: {LIVE} clients get {RATE} updates a second, others {LOG} of them at once"
    return [Case(f"{title}; at most {LIMIT_MS} ms later", figures, measure, LIVE + max(SIZES), only_ours=True)]


def _figures(size: int) -> list[Figure]:
    return [
        Figure(f"later_{size}", f"so much later beside {size}, ms", 1),
        Figure(f"caught_{size}", f"s until {'it has' if size == 1 else 'they have'} all", 2),
    ]


def _measure(place: Place, candidate: Candidate, *, updates: int) -> Row:
    with serving(candidate, place, BRIDGE_LOG_BYTES=LOG) as server:
        # A client that has had them all shows that nothing of this is still under way.
        with crowd(place, server, 1, frames=ENOUGH) as witness:
            witness.ready()
            with publishing(place, ENOUGH, 0):
                filling = witness.seen()
        server.settle()
        alone, _ = _beside(place, server, 0, updates)
        found = {size: _beside(place, server, size, updates) for size in SIZES}
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


def _beside(place: Place, server: Server, size: int, updates: int) -> tuple[Seen, Seen | None]:
    """What those saw who only listen, and those beside them who resumed."""
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
