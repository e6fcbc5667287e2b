"""Tests that clients are accepted only while file descriptors are available.

The acceptor logs once when the descriptors run out, and once when some are available again.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import resource
import socket
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from bridge.metrics import Metrics
from bridge.server.listeners import acceptor as module
from bridge.server.listeners.acceptor import BUDGET_S, SPARE_DESCRIPTORS, Acceptor
from bridge.server.transport.tcp import PeerName
from bridge.timing import DEFAULT, Timing
from tests.support.fakes import ManualClock
from tests.support.metrics import value
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

TIMING = Timing(descriptor_check_s=0.01)
CLIENTS = 24


class RecordingAcceptor(Acceptor):
    """Accepts the clients of one listening socket, and keeps them."""

    def __init__(self, *, reuse_port: bool = False) -> None:
        self.metrics = Metrics()
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)
        self.listener.bind(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.name = self.listener.getsockname()
        self.accepted: list[tuple[socket.socket, PeerName]] = []
        self.now_s = 0.0
        self.handshake_s = 0.0
        """The time that each handshake takes."""
        super().__init__([self.listener], self._take, lambda: None, self.metrics, TIMING, lambda: self.now_s)
        self.clients: list[socket.socket] = []

    def _take(self, client: socket.socket, peername: PeerName) -> None:
        self.now_s += self.handshake_s
        self.accepted.append((client, peername))

    def connect(self, count: int = 1) -> None:
        """Connects clients. The kernel completes the TCP handshakes even before the bridge accepts the clients."""
        self.clients += [socket.create_connection(self.name) for _ in range(count)]

    async def turns(self) -> None:
        """Waits for several turns, in each of which the event loop polls all its sockets."""
        for _ in range(10):
            await asyncio.sleep(0)

    @property
    def exhaustions(self) -> float:
        return value(self.metrics, "bridge_descriptors_exhausted_total")


@pytest.fixture
async def acceptor() -> AsyncIterator[RecordingAcceptor]:
    acceptor = RecordingAcceptor()
    acceptor.open()
    yield acceptor
    acceptor.close()
    for each in [*acceptor.clients, *(client for client, _ in acceptor.accepted)]:
        each.close()


@contextmanager
def left(count: int) -> Iterator[None]:
    """Leaves only `count` free file descriptors to the process, as long as the process does not close others."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(0) for _ in range(100)]
    limit = taken[-1] + 1
    for descriptor in taken[100 - count :]:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in taken[: 100 - count]:
            os.close(descriptor)


async def test_client_is_accepted_with_its_address(acceptor: RecordingAcceptor) -> None:
    acceptor.connect()
    await eventually("the client is accepted", lambda: acceptor.accepted)
    [(client, peername)] = acceptor.accepted
    assert peername == client.getpeername() == acceptor.clients[0].getsockname()


async def test_close_closes_the_listening_socket(acceptor: RecordingAcceptor) -> None:
    acceptor.close()
    assert acceptor.listener.fileno() == -1


async def test_clients_that_wait_are_accepted_before_the_listening_socket_is_closed() -> None:
    acceptor = RecordingAcceptor()
    acceptor.open()
    acceptor.connect(CLIENTS)
    assert acceptor.accepted == [], "the loop has not turned"
    await acceptor.stop()
    assert acceptor.listener.fileno() == -1
    assert len(acceptor.accepted) == CLIENTS
    for (accepted, _), client in zip(acceptor.accepted, acceptor.clients, strict=True):
        accepted.sendall(b"answer")
        assert client.recv(10) == b"answer"
        accepted.close()
        client.close()


async def test_stop_accepts_no_more_clients_than_can_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as client:
        backlog = 5
        monkeypatch.setattr(module, "BACKLOG", backlog)
        accepting = Accepting(monkeypatch, ScriptedListener(*[(client, ("10.0.0.7", 54321))] * (backlog + 1)))
        await accepting.acceptor.stop()
        assert len(accepting.accepted) == backlog


@pytest.mark.parametrize("ends", ["stop", "held"])
async def test_fault_with_one_client_does_not_affect_the_next_one(monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    names = [("10.0.0.7", 54321), ("10.0.0.8", 54321)]
    with socket.socket() as client, ScriptedListener(*[(client, name) for name in names]) as listener:
        accepting = Accepting(monkeypatch, listener, fault_of=names[0])
        with capture_logs() as logged:
            if ends == "stop":
                await accepting.acceptor.stop()
            else:
                accepting.floor = client.fileno()
                accepting.acceptor._accept(listener)
                accepting.floor = math.inf
                await accepting.clock.advance(DEFAULT.descriptor_check_s)
                assert accepting.reading == [True]
                accepting.acceptor._accept(listener)
                accepting.acceptor.close()
        assert accepting.accepted == [(client, names[1])]
        faults = [line for line in logged if line["event"] == "accepted client failed"]
        assert [line["peer"] for line in faults] == ["10.0.0.7 port 54321"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can filter what a listener gets")
async def test_listener_that_shares_its_port_gets_only_clients_in_their_tcp_handshake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    acceptor = RecordingAcceptor(reuse_port=True)
    # With TCP_DEFER_ACCEPT, the kernel establishes a connection only when its first data arrives.
    acceptor.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
    acceptor.open()
    acceptor.connect()
    clock = ManualClock(monkeypatch)
    stopping = asyncio.create_task(acceptor.stop())
    await clock.settle()
    assert acceptor.accepted == []
    with socket.socket() as late:
        late.setblocking(False)
        with pytest.raises(BlockingIOError):
            late.connect(acceptor.name)
        # The connection is over loopback, so the kernel has already dropped the client's request to connect.
        with pytest.raises(OSError, match="not connected"):
            late.getpeername()
        acceptor.clients[0].sendall(b"request")
        await acceptor.turns()
        assert len(acceptor.accepted) == 1
        assert not stopping.done()
        await clock.advance(DEFAULT.accept_grace_s)
        await stopping
    assert acceptor.listener.fileno() == -1
    [(client, _)] = acceptor.accepted
    assert client.recv(10) == b"request"
    for each in (client, *acceptor.clients):
        each.close()


async def test_listener_that_shares_its_port_is_closed_at_once_if_requests_cannot_be_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "drop_connection_requests", lambda _: False)
    ManualClock(monkeypatch)
    acceptor = RecordingAcceptor(reuse_port=True)
    acceptor.open()
    acceptor.connect()
    await acceptor.stop()
    assert acceptor.listener.fileno() == -1
    [(client, _)] = acceptor.accepted
    client.close()
    acceptor.clients[0].close()


async def test_stop_that_is_cancelled_closes_the_listening_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    acceptor = RecordingAcceptor(reuse_port=True)
    acceptor.open()
    clock = ManualClock(monkeypatch)
    stopping = asyncio.create_task(acceptor.stop())
    await clock.settle()
    stopping.cancel()
    await clock.settle()
    assert acceptor.listener.fileno() == -1


async def test_clients_are_accepted_until_the_time_of_the_turn_is_used_up(acceptor: RecordingAcceptor) -> None:
    acceptor.handshake_s = BUDGET_S / 7.5
    acceptor.connect(CLIENTS)
    most, before = 0, 0
    while before < CLIENTS:
        await asyncio.sleep(0)
        most = max(most, len(acceptor.accepted) - before)
        before = len(acceptor.accepted)
    assert most == 8


async def test_one_client_is_accepted_in_a_turn_however_long_its_handshake_takes(acceptor: RecordingAcceptor) -> None:
    acceptor.handshake_s = 10 * BUDGET_S
    acceptor.connect(2)
    counts = set()
    while len(acceptor.accepted) < 2:
        await asyncio.sleep(0)
        counts.add(len(acceptor.accepted))
    assert counts - {0} == {1, 2}


async def test_clients_are_accepted_while_there_are_descriptors_to_spare(acceptor: RecordingAcceptor) -> None:
    acceptor.connect()
    with left(SPARE_DESCRIPTORS + 1), capture_logs() as logged:
        await eventually("the client is accepted", lambda: acceptor.accepted)
    assert acceptor.exhaustions == 0
    assert logged == []


async def test_exhausted_descriptors_pause_and_available_ones_resume_each_logged_once(
    acceptor: RecordingAcceptor,
) -> None:
    acceptor.connect(3)
    with capture_logs() as logged:
        with left(SPARE_DESCRIPTORS):
            await eventually("the exhaustion is logged", lambda: logged)
            await acceptor.turns()
            assert acceptor.accepted == []
        # The clients that connected while the descriptors were exhausted have waited in the kernel's queue.
        await eventually("all clients are accepted", lambda: len(acceptor.accepted) == 3)
    assert acceptor.exhaustions == 1
    assert [line["log_level"] for line in logged] == ["error", "info"]


async def test_exhaustion_of_all_descriptors_is_logged_in_the_same_way(acceptor: RecordingAcceptor) -> None:
    acceptor.connect()
    with capture_logs() as logged:
        with left(0):
            await eventually("the exhaustion is logged", lambda: logged)
            await acceptor.turns()
        await eventually("the client is accepted", lambda: acceptor.accepted)
    assert [line["log_level"] for line in logged] == ["error", "info"]


async def test_clients_get_no_spare_descriptor(acceptor: RecordingAcceptor) -> None:
    acceptor.connect(10)
    with left(SPARE_DESCRIPTORS + 4), capture_logs() as logged:
        await eventually("the exhaustion is logged", lambda: logged)
        assert len(acceptor.accepted) == 4


async def test_client_that_is_gone_before_it_is_accepted_harms_nothing(acceptor: RecordingAcceptor) -> None:
    acceptor.connect()
    # With this SO_LINGER option, the client's `close` sends a reset instead of an orderly end.
    acceptor.clients[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    acceptor.clients[0].close()
    acceptor.connect()
    await eventually("the next client is accepted", lambda: len(acceptor.accepted) >= 1)


@pytest.mark.parametrize("count", [0, SPARE_DESCRIPTORS])
async def test_close_while_descriptors_are_exhausted_leaves_no_timer_and_no_waiting_client(count: int) -> None:
    acceptor = RecordingAcceptor()
    acceptor.open()
    acceptor.connect()
    with capture_logs() as logged, left(count):
        await eventually("the exhaustion is logged", lambda: logged)
        acceptor.close()
    # The connection is reset or ended, because it was never accepted.
    with suppress(ConnectionResetError):
        assert acceptor.clients[0].recv(1) == b""
    assert acceptor.accepted == []
    look = acceptor._check
    assert look is not None
    assert look.cancelled()
    for each in acceptor.clients:
        each.close()


class ScriptedListener(socket.socket):
    """A listening socket whose `accept` returns a scripted client and its address, or raises an error."""

    def __init__(self, *outcomes: tuple[socket.socket, tuple[object, ...]] | OSError) -> None:
        super().__init__()
        self.outcomes = list(outcomes)

    def accept(self) -> tuple[socket.socket, Any]:
        if not self.outcomes:
            raise BlockingIOError
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome


class Accepting:
    """An acceptor with scripted listeners and a manual clock. `floor` is the number of the lowest spare descriptor."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *listeners: ScriptedListener, fault_of: tuple[str, int] | None = None
    ) -> None:
        """`fault_of` is the address and port of a client that the owner of the acceptor can't take over."""
        self.clock = ManualClock(monkeypatch)
        self.floor = math.inf
        monkeypatch.setattr(module, "_descriptor_floor", lambda: self.floor)
        self.metrics = Metrics()
        self.listeners = listeners
        self.accepted: list[tuple[socket.socket, PeerName]] = []
        self._fault_of = fault_of
        self.acceptor = Acceptor(listeners, self._take, lambda: None, self.metrics)
        self.acceptor.open()

    def _take(self, client: socket.socket, peername: PeerName) -> None:
        if peername == self._fault_of:
            raise MemoryError
        self.accepted.append((client, peername))

    @property
    def reading(self) -> list[bool]:
        """For each listener, True if the event loop waits for clients of this listener."""
        # `remove_reader` makes the event loop stop waiting for a listener, and returns True if the loop was waiting.
        found = [asyncio.get_running_loop().remove_reader(listener) for listener in self.listeners]
        for listener, reads in zip(self.listeners, found, strict=True):
            if reads:
                asyncio.get_running_loop().add_reader(listener, self.acceptor._accept, listener)
        return found

    @property
    def exhaustions(self) -> float:
        return value(self.metrics, "bridge_descriptors_exhausted_total")


@pytest.mark.parametrize("name", [("10.0.0.7", 54321), ("fd00::7", 54321, 0, 0)], ids=["IPv4", "IPv6"])
async def test_client_held_while_descriptors_are_exhausted_is_accepted_with_its_address(
    monkeypatch: pytest.MonkeyPatch, name: tuple[object, ...]
) -> None:
    with socket.socket() as client, ScriptedListener((client, name)) as listener:
        accepting = Accepting(monkeypatch, listener)
        accepting.floor = client.fileno()
        accepting.acceptor._accept(listener)
        assert accepting.accepted == []
        accepting.floor = math.inf
        await accepting.clock.advance(DEFAULT.descriptor_check_s)
        assert accepting.accepted == [(client, name[:2])]
        # A client is accepted only once.
        accepting.floor = 0
        accepting.listeners[0].outcomes.append(OSError(errno.EMFILE, "too many open files"))
        accepting.acceptor._accept(listener)
        accepting.floor = math.inf
        await accepting.clock.advance(DEFAULT.descriptor_check_s)
        assert len(accepting.accepted) == 1
        accepting.acceptor.close()


async def test_client_with_the_last_descriptor_that_is_not_spare_is_accepted_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as client, ScriptedListener((client, ("10.0.0.7", 54321))) as listener:
        accepting = Accepting(monkeypatch, listener)
        accepting.floor = client.fileno() + 1
        accepting.acceptor._accept(listener)
        assert accepting.accepted == [(client, ("10.0.0.7", 54321))]
        assert accepting.exhaustions == 0
        accepting.acceptor.close()


async def test_while_descriptors_are_exhausted_no_listener_is_read_and_each_check_schedules_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = OSError(errno.EMFILE, "too many open files")
    with ScriptedListener(full) as listener, ScriptedListener() as other:
        accepting = Accepting(monkeypatch, listener, other)
        assert accepting.reading == [True, True]
        accepting.floor = 0
        with capture_logs() as logged:
            accepting.acceptor._accept(listener)
            assert accepting.reading == [False, False]
            for _ in range(3):
                await accepting.clock.advance(DEFAULT.descriptor_check_s)
                assert accepting.reading == [False, False]
            accepting.floor = math.inf
            await accepting.clock.advance(DEFAULT.descriptor_check_s / 2)
            assert accepting.reading == [False, False]
            await accepting.clock.advance(DEFAULT.descriptor_check_s / 2)
        assert accepting.reading == [True, True]
        assert [line["log_level"] for line in logged] == ["error", "info"]
        assert logged[0]["spare"] == SPARE_DESCRIPTORS
        assert accepting.exhaustions == 1
        accepting.acceptor.close()


@pytest.mark.parametrize("error", [BlockingIOError(), InterruptedError(), ConnectionAbortedError()], ids=repr)
async def test_client_that_is_gone_exhausts_nothing(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    with ScriptedListener(error) as listener:
        accepting = Accepting(monkeypatch, listener)
        accepting.acceptor._accept(listener)
        assert accepting.exhaustions == 0
        assert accepting.reading == [True]
        accepting.acceptor.close()


async def test_close_while_descriptors_are_exhausted_closes_the_held_client_and_stops_the_checks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as client, ScriptedListener((client, ("10.0.0.7", 54321))) as listener:
        accepting = Accepting(monkeypatch, listener)
        accepting.floor = client.fileno()
        accepting.acceptor._accept(listener)
        accepting.acceptor.close()
        assert client.fileno() == listener.fileno() == -1
        accepting.floor = math.inf
        await accepting.clock.advance(2 * DEFAULT.descriptor_check_s)
        assert accepting.accepted == []
        # A second call of `close` has no effect.
        accepting.acceptor.close()


@pytest.mark.parametrize(
    ("limit", "floor"),
    [(1024, 1024 - SPARE_DESCRIPTORS), (resource.RLIM_INFINITY, math.inf)],
    ids=["limited", "unlimited"],
)
def test_last_descriptors_below_the_limit_are_spare(monkeypatch: pytest.MonkeyPatch, limit: int, floor: float) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, 4096) if kind == resource.RLIMIT_NOFILE else None)
    assert module._descriptor_floor() == floor


async def test_descriptors_are_available_when_the_lowest_free_one_is_not_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedListener() as listener:
        accepting = Accepting(monkeypatch, listener)
        lowest = os.dup(listener.fileno())
        os.close(lowest)
        accepting.floor = lowest
        assert not accepting.acceptor._descriptor_available()
        accepting.floor = lowest + 1
        assert accepting.acceptor._descriptor_available()
        # The check for a spare descriptor does not leave a descriptor open.
        assert os.dup(listener.fileno()) == lowest
        os.close(lowest)
        accepting.acceptor.close()


async def test_each_exhaustion_is_counted_and_logged_with_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.EMFILE, "too many open files")
    with ScriptedListener(full, full) as listener:
        accepting = Accepting(monkeypatch, listener)
        monkeypatch.setattr("bridge.server.listeners.acceptor.time.monotonic", lambda: accepting.clock.now_s)
        with capture_logs() as logged:
            for looks in (1, 3):
                accepting.floor = 0
                accepting.acceptor._accept(listener)
                for _ in range(looks - 1):
                    await accepting.clock.advance(DEFAULT.descriptor_check_s)
                accepting.floor = math.inf
                await accepting.clock.advance(DEFAULT.descriptor_check_s)
        assert accepting.exhaustions == 2
        assert [line["log_level"] for line in logged] == ["error", "info"] * 2
        assert [line["paused_s"] for line in logged[1::2]] == [
            round(DEFAULT.descriptor_check_s, 1),
            round(3 * DEFAULT.descriptor_check_s, 1),
        ]
        accepting.acceptor.close()
