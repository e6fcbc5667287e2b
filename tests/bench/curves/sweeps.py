"""Measures one point of each curve."""

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from tests.bench import process
from tests.bench.amqp import Channel
from tests.bench.candidates import OURS, Place, Server, named, serving
from tests.bench.cases import CUT, LOST, MISPLACED, REFUSED
from tests.bench.crowd import Crowd, Seen, crowd, publishing
from tests.bench.curves.points import Point
from tests.bench.process import Failed
from tests.bench.publish import SYSTEM
from tests.bench.scenarios.filters import ELSEWHERE
from tests.bench.scenarios.resume import BEFORE_S, EVERYTHING
from tests.support.process_stats import metric
from tests.support.running import UNPINGED, unique

T = TypeVar("T")

Measure = Callable[[Place, str, int], Point]
"""Measures a series of a curve at one x."""

READERS = 100
"""The number of clients that get updates, if something else than the number of clients grows."""

MANY_READERS = 1000
"""The number of clients that get updates, if the number of updates per second grows."""

UPDATES = {"clients": 20, "sizes": 40, "filters": 80, "bridges": 300}
"""The number of updates that are published for a point of each curve."""

MAX_CONNECTIONS = 18_000
"""The limit of connections of the measured bridges."""

OWN_BYTES = 250
"""The size of an update without padding, in bytes."""

SILENT = 12_000
"""The number of clients with the filters that match nothing. It is also the maximum number of these filters."""

LOG = "4MiB"
LOG_UPDATES = 16_000
"""The number of updates that fill the log."""

LIVE_RATE = 20
"""The number of updates per second for the live clients while others resume."""

SINGLE_RESUMES = 10
"""The minimum number of resumes at one x. A single resume takes less than the noise of a measurement."""

_ENQUEUED, _WRITTEN = (f'bridge_sends_total{{outcome="{outcome}"}}' for outcome in ("enqueued", "written"))


def sweeps(broker_pid: int | None) -> Mapping[str, tuple[Measure, Sequence[int]]]:
    """Returns how each curve is measured, and at which x.

    `broker_pid` is the process of the broker, or None if another machine or another user runs it.
    """
    return {
        "clients": (clients, (100, 300, 1000, 3000, 8000, 16_000)),
        "sizes": (sizes, (250, 1000, 4000, 16_000, 64_000, 256_000, 1_000_000)),
        "filters": (filters, (1, 10, 100, 1000, 4000, 8000, SILENT)),
        # 0 means at full speed.
        "rates": (rates, (1, 3, 10, 30, 60, 100, 200, 400, 800, 0)),
        "resumes": (resumes, (1, 10, 100, 300, 1000, 2000)),
        "bridges": (functools.partial(bridges, broker_pid=broker_pid), (1, 2, 4, 8)),
    }


def clients(place: Place, series: str, count: int) -> Point:
    """Measures `count` clients. The series is a candidate."""
    updates = UPDATES["clients"]
    kernel_kb = _kernel_kb()
    with _serving(place, series) as server:
        ready_kb = server.rss_kb()
        with crowd(place, server, count, frames=updates) as readers:
            readers.ready()
            server.settle()
            # Both ends of each connection are on this machine.
            kernel_kb = (_kernel_kb() - kernel_kb) / 2
            memory_kb = server.rss_kb() - ready_kb
            seen, used_us = _broadcast(place, server, readers, updates, 2)
    return {
        **_point(count, seen, used_us, updates),
        "handshakes_a_s": count / seen.open_s,
        "kb_a_client": memory_kb / count,
        "kernel_kb_a_client": kernel_kb / count,
    }


def sizes(place: Place, series: str, size: int) -> Point:
    """Measures updates of `size` bytes."""
    updates = UPDATES["sizes"]
    with _serving(place, series) as server, crowd(place, server, READERS, frames=updates) as readers:
        readers.ready()
        server.settle()
        seen, used_us = _broadcast(place, server, readers, updates, 4, pad=max(0, size - OWN_BYTES))
        enqueued, written = (asyncio.run(metric(server.port, name)) for name in (_ENQUEUED, _WRITTEN))
    return {**_point(size, seen, used_us, updates), "enqueued_share": enqueued / max(1, enqueued + written)}


def filters(place: Place, series: str, count: int) -> Point:
    """Measures `count` different filters that match nothing, in addition to the filter of the readers."""
    updates = UPDATES["filters"]
    wanted = [f"/updates?systemId={SYSTEM}"]
    others = [f"/updates?systemId={ELSEWHERE + number}" for number in range(count)]
    with (
        _serving(place, series) as server,
        crowd(place, server, READERS, wanted, frames=updates) as readers,
        crowd(place, server, SILENT, others, hold=True) as silent,
    ):
        readers.ready()
        silent.ready()
        server.settle()
        seen, used_us = _broadcast(place, server, readers, updates, 10)
        quiet = silent.stop()
    if quiet.frames:
        raise Failed(f"clients got {quiet.frames} updates that their filters do not match")
    return {**_point(count, seen, used_us, updates), REFUSED: seen.refused + quiet.refused}


def rates(place: Place, series: str, rate: int) -> Point:
    """Measures `rate` updates per second, or as many as possible if the rate is 0."""
    updates = min(6000, max(12, 5 * rate)) if rate else 6000
    with _serving(place, series) as server, crowd(place, server, MANY_READERS, frames=updates) as readers:
        readers.ready()
        server.settle()
        seen, used_us = _broadcast(place, server, readers, updates, rate)
    # Between the first receipt and the last receipt, there is one interval less than there are updates.
    reached = (updates - 1) / max(seen.span_s, 1e-6)
    return {**_point(reached, seen, used_us, updates), "cpu_percent": used_us / updates * reached / 1e4}


def resumes(place: Place, series: str, count: int) -> Point:
    """Measures `count` clients that resume at once. A small number of clients resumes several times."""
    times = max(1, SINGLE_RESUMES // count)
    with _serving(place, series, BRIDGE_LOG_BYTES=LOG) as server:
        # When this client has all updates, the bridge has sent everything that was published.
        with crowd(place, server, 1, frames=LOG_UPDATES) as witness:
            witness.ready()
            filling, _ = _broadcast(place, server, witness, LOG_UPDATES, 0)
        server.settle()
        with crowd(place, server, READERS, hold=True) as live:
            live.ready()
            with publishing(place, 1_000_000, LIVE_RATE):
                alone_us, _, alone_s = _timed(server, lambda: time.sleep(BEFORE_S))
                again = (_resumed(place, server, count) for _ in range(times))
                used_us, resumed, span_s = _timed(server, lambda: list(again))
            seen = live.stop()
    return {
        "x": count,
        "cpu_ms": max(0.0, used_us - alone_us / alone_s * span_s) / times / 1000,
        "caught_ms": sum(each.caught_s for each in resumed) / times * 1000,
        "replayed": sum(each.frames for each in resumed) / times / count,
        "p99_ms": seen.p99_us / 1000,
        "max_ms": seen.max_us / 1000,
        LOST: filling.lost,
        MISPLACED: sum(each.misplaced for each in (filling, seen, *resumed)),
        CUT: sum(each.cut for each in (filling, *resumed)),
        REFUSED: sum(each.refused for each in (seen, *resumed)),
    }


def bridges(place: Place, series: str, count: int, *, broker_pid: int | None) -> Point:
    """Measures the broker with `count` bridges. Each has a queue, or all read a stream."""
    if broker_pid is None:
        raise Failed("the processor time of a broker that the benchmark did not start is not known")
    updates = UPDATES["bridges"]
    with contextlib.ExitStack() as stack:
        settings = {}
        if series == "stream":
            stream = unique("stream")
            stack.callback(_delete_queue, place, stream)
            settings = {"BRIDGE_HISTORY": "stream", "BRIDGE_HISTORY_STREAM": stream}
        servers = [stack.enter_context(_serving(place, OURS, **settings)) for _ in range(count)]
        readers = [stack.enter_context(crowd(place, server, 1, frames=updates)) for server in servers]
        for reader in readers:
            reader.ready()
        process.settle(broker_pid)
        before_us = process.cpu_us(broker_pid)
        seen, used_us = _broadcast(place, servers[0], readers[0], updates, 50)
        broker_us = process.cpu_us(broker_pid) - before_us
        others = [reader.seen() for reader in readers[1:]]
    return {
        **_point(count, seen, used_us, updates),
        "broker_us": broker_us / updates,
        LOST: sum(each.lost for each in (seen, *others)),
        MISPLACED: sum(each.misplaced for each in (seen, *others)),
    }


@contextlib.contextmanager
def _serving(place: Place, series: str, **settings: str) -> Iterator[Server]:
    settings = {**UNPINGED, "BRIDGE_MAX_CONNECTIONS": str(MAX_CONNECTIONS), **settings}
    with serving(named(series), place, **settings) as server:
        yield server


def _broadcast(
    place: Place, server: Server, readers: Crowd, updates: int, rate: float, pad: int = 0
) -> tuple[Seen, float]:
    """Publishes updates. Returns the results of the readers, and the server's processor time in microseconds."""

    def broadcast() -> Seen:
        with publishing(place, updates, rate, pad):
            return readers.seen()

    used_us, seen, _ = _timed(server, broadcast)
    return seen, used_us


def _timed(server: Server, run: Callable[[], T]) -> tuple[float, T, float]:
    """Returns the server's processor time in microseconds, the result of `run`, and the duration in seconds."""
    before_us, began = server.cpu_us(), time.monotonic()
    result = run()
    return server.cpu_us() - before_us, result, time.monotonic() - began


def _resumed(place: Place, server: Server, count: int) -> Seen:
    with crowd(place, server, count, [EVERYTHING], caught_up=True, inflight=count) as resuming:
        return resuming.seen()


def _point(x: float, seen: Seen, used_us: float, updates: int) -> dict[str, float]:
    return {
        "x": x,
        "cpu_us": used_us / max(1, seen.frames),
        "cpu_ms": used_us / updates / 1000,
        "p50_ms": seen.p50_us / 1000,
        "p99_ms": seen.p99_us / 1000,
        "load_us": seen.cpu_us / max(1, seen.frames),
        LOST: seen.lost,
        MISPLACED: seen.misplaced,
        CUT: seen.cut,
        REFUSED: seen.refused,
    }


def _kernel_kb() -> float:
    """Returns the kernel's memory for sockets and other objects, in kilobytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith("Slab:"))


def _delete_queue(place: Place, queue: str) -> None:
    with Channel(place.amqp) as channel:
        channel.delete_queue(queue)
