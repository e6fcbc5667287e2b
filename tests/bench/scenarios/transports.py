"""Measures Server-Sent Events against WebSocket with ids, and requests for JSON, which may wait for an update."""

import contextlib
import functools
import selectors
import socket
import time
from collections.abc import Iterator

from tests.bench.candidates import Candidate, Place, Server, serving
from tests.bench.cases import CUT, LOST, MISPLACED, REFUSED, Case, Figure, Row
from tests.bench.crowd import crowd, publishing
from tests.bench.process import Failed
from tests.support.broker.ports import LOOPBACK

_PATHS = {"ws": "/updates?after=", "sse": "/updates?format=sse"}

AT_MOST = 1.1
"""The target for the ratio of an event stream to a WebSocket with ids."""

_LIMIT_S = 30.0


def cases(quick: bool) -> list[Case]:
    """Returns the cases, which measure only the bridge."""
    reliable = (
        Figure(LOST, "updates lost"),
        Figure(MISPLACED, "updates duplicated or out of order"),
        Figure(CUT, "clients disconnected"),
        Figure(REFUSED, "clients refused"),
    )
    cost = (
        Figure("ws_us", "WebSocket with ids: CPU µs per send", 2),
        Figure("sse_us", "Server-Sent Events: CPU µs per send", 2),
        Figure("ratio", "ratio to WebSocket with ids", 2, at_most=AT_MOST),
    )
    memory = (
        Figure("ws_kb", "WebSocket with ids: KB per connection", 2),
        Figure("sse_kb", "Server-Sent Events: KB per connection", 2),
        Figure("kb_ratio", "ratio to WebSocket with ids", 2, at_most=AT_MOST),
    )
    sizes = [(1000, 20, 60, 3), (100, 0, 4000, 2)] if quick else [(1000, 20, 200, 5), (100, 0, 20_000, 5)]
    waiting = 500 if quick else 5000
    return [
        *(
            Case(
                f"transports: {clients} clients, " + (f"{rate} updates per second" if rate else f"{updates} at once"),
                (*cost, *reliable),
                functools.partial(_sends, clients=clients, updates=updates, rate=rate),
                clients,
                only_ours=True,
                rounds=rounds,
            )
            for clients, rate, updates, rounds in sizes
        ),
        Case(
            f"transports: {waiting} idle clients",
            memory,
            functools.partial(_memory, clients=waiting),
            waiting,
            only_ours=True,
            rounds=2,
        ),
        Case(
            f"polling: {waiting} requests wait for an update",
            (
                Figure("kb", "KB for each waiting request", 2),
                Figure("cpu_us", "CPU µs for each answer, when one update answers all"),
                Figure("all_ms", "ms until the last answer"),
            ),
            functools.partial(_polls, clients=waiting),
            waiting,
            only_ours=True,
        ),
    ]


def _sends(place: Place, candidate: Candidate, *, clients: int, updates: int, rate: float) -> Row:
    row: dict[str, float] = dict.fromkeys((LOST, MISPLACED, CUT, REFUSED), 0)
    for name, path in _PATHS.items():
        with (
            serving(candidate, place) as server,
            crowd(place, server, clients, [path], frames=updates, sse=name == "sse") as readers,
        ):
            readers.ready()
            server.settle()
            before_us = server.cpu_us()
            with publishing(place, updates, rate):
                seen = readers.seen()
            row[f"{name}_us"] = (server.cpu_us() - before_us) / max(1, seen.frames)
        for key, count in ((LOST, seen.lost), (MISPLACED, seen.misplaced), (CUT, seen.cut), (REFUSED, seen.refused)):
            row[key] += count
    return row | {"ratio": row["sse_us"] / row["ws_us"]}


def _memory(place: Place, candidate: Candidate, *, clients: int) -> Row:
    row = {}
    for name, path in _PATHS.items():
        with serving(candidate, place) as server:
            ready_kb = server.rss_kb()
            with crowd(place, server, clients, [path], hold=True, sse=name == "sse") as idle:
                idle.ready()
                server.settle()
                row[f"{name}_kb"] = (server.rss_kb() - ready_kb) / clients
    return row | {"kb_ratio": row["sse_kb"] / row["ws_kb"]}


def _polls(place: Place, candidate: Candidate, *, clients: int) -> Row:
    with serving(candidate, place) as server:
        row = {}
        ready_kb = server.rss_kb()
        with _waiting(server, clients) as sockets:
            server.settle()
            row["kb"] = (server.rss_kb() - ready_kb) / clients
            before_us, began_s = server.cpu_us(), time.monotonic()
            with publishing(place, 1, 0):
                _read_all(sockets)
            row["all_ms"] = (time.monotonic() - began_s) * 1000
            row["cpu_us"] = (server.cpu_us() - before_us) / clients
    return row


def _head(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


@contextlib.contextmanager
def _waiting(server: Server, clients: int) -> Iterator[list[socket.socket]]:
    """Sends requests that wait for the next update."""
    with contextlib.ExitStack() as stack:
        sockets = []
        for _ in range(clients):
            client = socket.create_connection((LOOPBACK, server.port), timeout=_LIMIT_S)
            sockets.append(stack.enter_context(client))
            client.sendall(_head("/updates?format=json&after=&wait=30"))
        yield sockets


def _read_all(sockets: list[socket.socket]) -> None:
    """Reads the responses until each connection has ended. Raises Failed if a response has no update."""
    with selectors.DefaultSelector() as selector:
        received = {client.fileno(): b"" for client in sockets}
        for client in sockets:
            selector.register(client, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(_LIMIT_S)
            if not ready:
                raise Failed("a waiting request got no answer")
            for key, _ in ready:
                if data := key.fileobj.recv(65536):  # type: ignore[union-attr]  # every file object is a socket
                    received[key.fd] += data
                else:
                    selector.unregister(key.fileobj)
    if not all(b'"killmailId":' in response for response in received.values()):
        raise Failed("an answer has no update")
