"""Measures the duration of a start, and the cost of an idle server."""

import functools
import time

from bridge.demo.child import is_ready
from tests.bench.candidates import FLOOR, READY_LIMIT_S, Candidate, Place, launched, serving
from tests.bench.cases import Case, Figure, Row
from tests.bench.crowd import crowd
from tests.bench.process import await_true
from tests.support.broker.ports import LOOPBACK

STARTS = 5


def cases(quick: bool) -> list[Case]:
    """Returns the cases: the start of the bridge, and idle servers."""
    clients, span_s = (100, 5) if quick else (1000, 10)
    return [
        Case(
            "start",
            (
                Figure("ready_s", "s until /readyz reports 200", 2),
                Figure("ready_mb", "MB before the first client", 1),
            ),
            _start,
            0,
            only_ours=True,
            rounds=STARTS,
        ),
        Case(
            f"idle: {clients} clients, no updates",
            (Figure("percent", "% of a core", 2),),
            functools.partial(_idle, clients=clients, span_s=span_s),
            clients,
            not_for=frozenset({FLOOR}),
        ),
    ]


def _start(place: Place, candidate: Candidate) -> Row:
    began = time.monotonic()
    with launched(candidate, place) as server:
        await_true("the bridge is ready", lambda: is_ready(LOOPBACK, server.port, tls=False), READY_LIMIT_S, 0.005)
        ready_s = time.monotonic() - began
        server.settle()
        return {"ready_s": ready_s, "ready_mb": server.rss_kb() / 1024}


def _idle(place: Place, candidate: Candidate, *, clients: int, span_s: float) -> Row:
    with serving(candidate, place) as server, crowd(place, server, clients, hold=True) as idle:
        idle.ready()
        server.settle()
        before_us, began = server.cpu_us(), time.monotonic()
        time.sleep(span_s)
        return {"percent": (server.cpu_us() - before_us) / (time.monotonic() - began) / 1e4}
