"""Measures the longest turn of the bridge's event loop while something happens to very many clients at once.

During a turn, the bridge serves no client. Each case starts a new bridge, because the metric covers the time since the
start. So a figure also includes the turns in which the clients connected.

The metric covers only turns whose work calls `LoopTurn`. Therefore another client also sends requests all the time. Its
longest wait for an answer shows turns that the metric does not cover. A wait is not processor time: it is longer on a
busy machine.
"""

import asyncio
import contextlib
import functools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

from tests.bench.amqp import Channel, Publication
from tests.bench.candidates import Candidate, Place, Server, serving
from tests.bench.cases import CUT, LOST, MISPLACED, REFUSED, Case, Figure, Row
from tests.bench.crowd import crowd, publishing
from tests.bench.process import Failed, await_true
from tests.bench.publish import Events
from tests.support.broker.ports import LOOPBACK
from tests.support.process_stats import metric
from tests.support.running import UNPINGED

METRIC = "bridge_loop_turn_seconds_max"
LIMIT_MS = 50
"""The maximum processor time of a turn, in milliseconds."""

CLIENTS, STALLED, QUICK = 16_000, 5000, 500
"""The numbers of clients. Stalled clients are fewer, because each of them fills 128 KB in the kernel."""

PING_S = 2
"""The interval of pings, in seconds. It is longer than a pass over all clients takes."""

_LIMIT_S = 60.0
_PROBE_STEP_S = 0.005
_CONNECTIONS = 'bridge_connections{transport="websocket"}'
_EVICTED = 'bridge_evictions_total{reason="too-slow"}'
_UPDATE_BYTES = 256_000
_LOG_BYTES = 2_097_152
_DRAIN_PROBES = 8
_DRAIN_STEP_S = 0.1
"""The bridge answers requests during the first second of a stop, in steps of this many seconds."""


def cases(quick: bool) -> list[Case]:
    """Returns the cases, which measure only the bridge: the other programs do not report their turns."""
    clients, stalled = (QUICK, QUICK) if quick else (CLIENTS, STALLED)
    return [
        _case(f"{clients} clients get an update each second", _flush, clients, LOST, MISPLACED, CUT, REFUSED),
        _case(f"{clients} clients reset their connections", _resets, clients, REFUSED),
        _case(f"{clients} idle clients are pinged", _pings, clients, CUT, REFUSED),
        _case(f"{stalled} stalled clients are evicted", _evictions, stalled),
        _case(f"{clients} clients are closed when the bridge stops", _drain, clients, REFUSED),
    ]


def _case(title: str, measure: Callable[..., Row], clients: int, *faults: str) -> Case:
    names = {LOST: "updates lost", MISPLACED: "updates duplicated or out of order", CUT: "clients disconnected"}
    figures = [
        Figure("ms", "longest turn, CPU ms", 1, at_most=LIMIT_MS),
        Figure("wait_ms", "longest wait of another client for an answer, ms", 1),
        *(Figure(key, names.get(key, "clients refused")) for key in faults),
    ]
    return Case(f"turns: {title}", figures, functools.partial(measure, clients=clients), clients, only_ours=True)


@contextlib.contextmanager
def _bridge(candidate: Candidate, place: Place, clients: int, **settings: str) -> Iterator[Server]:
    limits = {"BRIDGE_MAX_CONNECTIONS": str(clients + 100)}
    with serving(candidate, place, **{**UNPINGED, **limits, **settings}) as server:
        yield server


class _Waits:
    """Sends one request after another, and keeps the longest wait for an answer."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.longest_s = 0.0

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Sends requests until the end of the context."""
        over = threading.Event()

        def ask() -> None:
            while not over.wait(_PROBE_STEP_S):
                with contextlib.suppress(OSError):
                    self.ask(socket.create_connection((LOOPBACK, self._server.port), _LIMIT_S), "/readyz")

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def ask(self, connection: socket.socket, path: str) -> str:
        """Sends a request, closes the connection, and returns the response with its head."""
        began, response = time.monotonic(), b""
        with connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            while part := connection.recv(65_536):
                response += part
        self.longest_s = max(self.longest_s, time.monotonic() - began)
        return response.decode()

    def row(self, turn_s: float) -> dict[str, float]:
        """Returns the figures. `turn_s` is the value of the metric."""
        # The metric is 0 if it has covered no turn, which does not mean that all turns were short.
        measured = {"ms": turn_s * 1000} if turn_s else {}
        return {**measured, "wait_ms": self.longest_s * 1000}


def _flush(place: Place, candidate: Candidate, *, clients: int) -> Row:
    updates = 10
    with _bridge(candidate, place, clients) as server, crowd(place, server, clients, frames=updates) as readers:
        readers.ready()
        server.settle()
        waits = _Waits(server)
        with waits.measured(), publishing(place, updates, 1):
            seen = readers.seen()
        row = waits.row(_turn_s(server))
    return {**row, LOST: seen.lost, MISPLACED: seen.misplaced, CUT: seen.cut, REFUSED: seen.refused}


def _resets(place: Place, candidate: Candidate, *, clients: int) -> Row:
    with _bridge(candidate, place, clients) as server:
        waits = _Waits(server)
        with contextlib.ExitStack() as stack:
            readers = stack.enter_context(crowd(place, server, clients, hold=True, reset=True))
            readers.ready()
            server.settle()
            with waits.measured():
                seen = readers.stop()
                _await_metric(server, _CONNECTIONS, lambda count: count == 0)
        row = waits.row(_turn_s(server))
    return {**row, REFUSED: seen.refused}


def _pings(place: Place, candidate: Candidate, *, clients: int) -> Row:
    with (
        _bridge(candidate, place, clients, BRIDGE_PING_INTERVAL=f"{PING_S}s") as server,
        crowd(place, server, clients, hold=True) as readers,
    ):
        readers.ready()
        waits = _Waits(server)
        with waits.measured():
            time.sleep(3 * PING_S)
        row = waits.row(_turn_s(server))
        seen = readers.stop()
    if seen.pings < clients:
        raise Failed(f"only {seen.pings} of {clients} clients were pinged")
    return {**row, CUT: seen.cut, REFUSED: seen.refused}


def _evictions(place: Place, candidate: Candidate, *, clients: int) -> Row:
    sizes = {"BRIDGE_LOG_BYTES": str(_LOG_BYTES), "BRIDGE_MAX_MESSAGE_BYTES": "1MiB"}
    with (
        _bridge(candidate, place, clients, **sizes) as server,
        crowd(place, server, 0, stalled=clients, hold=True) as stalled,
        Channel(place.amqp) as channel,
    ):
        stalled.ready()
        server.settle()
        publication, events, waits = Publication(place.exchange), Events(_UPDATE_BYTES), _Waits(server)
        with waits.measured():
            for _ in range(2 * _LOG_BYTES // _UPDATE_BYTES):
                channel.write(publication.of(events.next()))
            _await_metric(server, _EVICTED, lambda count: count >= clients)
        return waits.row(_turn_s(server))


def _drain(place: Place, candidate: Candidate, *, clients: int) -> Row:
    """The bridge answers only requests on connections that were open when it was told to stop."""
    with _bridge(candidate, place, clients) as server, crowd(place, server, clients, hold=True) as readers:
        readers.ready()
        server.settle()
        waits, answers = _Waits(server), []
        with contextlib.ExitStack() as stack:
            probes = [
                stack.enter_context(socket.create_connection((LOOPBACK, server.port), _LIMIT_S))
                for _ in range(_DRAIN_PROBES)
            ]
            server.settle()
            os.kill(server.pid, signal.SIGTERM)
            for probe in probes:
                time.sleep(_DRAIN_STEP_S)
                with contextlib.suppress(OSError):  # the bridge may have closed this connection already
                    answers.append(waits.ask(probe, "/metrics"))
        seen = readers.stop()
    turns_s = [
        float(line.split()[1]) for answer in answers for line in answer.splitlines() if line.startswith(f"{METRIC} ")
    ]
    if not turns_s:
        raise Failed("the bridge answered no request while it stopped")
    return {**waits.row(max(turns_s)), REFUSED: seen.refused}


def _turn_s(server: Server) -> float:
    try:
        return asyncio.run(metric(server.port, METRIC))
    except KeyError as error:
        raise Failed(str(error)) from error


def _await_metric(server: Server, name: str, holds: Callable[[float], bool]) -> None:
    await_true(f"{name} has its value", lambda: holds(asyncio.run(metric(server.port, name))), _LIMIT_S)
