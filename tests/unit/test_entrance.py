"""When clients are accepted: as long as there are descriptors, and again once there are; said once for each change."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from bridge.fanout.entrance import AT_ONCE, SPARE, Entrance
from bridge.metrics import Metrics
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

CHECK_S = 0.01


class RecordedEntrance(Entrance):
    """Accepts clients at one listening socket, and keeps them."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.name = self.listener.getsockname()
        self.let_in: list[tuple[socket.socket, str]] = []
        super().__init__([self.listener], lambda *client: self.let_in.append(client), self.metrics, CHECK_S)
        self.clients: list[socket.socket] = []

    def come(self, count: int = 1) -> None:
        """Clients connect, as far as the kernel is concerned."""
        self.clients += [socket.create_connection(self.name) for _ in range(count)]

    async def turns(self) -> None:
        """The loop has looked at all of its sockets, and more than once."""
        for _ in range(10):
            await asyncio.sleep(0)

    @property
    def shortages(self) -> float:
        return self.metrics.registry.get_sample_value("bridge_descriptor_shortages_total") or 0.0


@pytest.fixture
async def acceptor() -> AsyncIterator[RecordedEntrance]:
    acceptor = RecordedEntrance()
    acceptor.open()
    yield acceptor
    acceptor.close()
    for each in [*acceptor.clients, *(client for client, _ in acceptor.let_in)]:
        each.close()


@contextmanager
def left(count: int) -> Iterator[None]:
    """So many descriptors are left for this process, as long as it closes none."""
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


async def test_client_comes_in_with_its_address(acceptor: RecordedEntrance) -> None:
    acceptor.come()
    await eventually("it is in", lambda: acceptor.let_in)
    [(client, address)] = acceptor.let_in
    assert address == "127.0.0.1"
    assert client.getpeername() == acceptor.clients[0].getsockname()


async def test_close_closes_the_listening_socket(acceptor: RecordedEntrance) -> None:
    acceptor.close()
    assert acceptor.listener.fileno() == -1


async def test_crowd_comes_in_some_at_a_time(acceptor: RecordedEntrance) -> None:
    acceptor.come(3 * AT_ONCE)
    most, before = 0, 0
    while before < 3 * AT_ONCE:
        await asyncio.sleep(0)
        most = max(most, len(acceptor.let_in) - before)
        before = len(acceptor.let_in)
    assert most == AT_ONCE


async def test_clients_are_accepted_while_there_are_descriptors_to_spare(acceptor: RecordedEntrance) -> None:
    acceptor.come()
    with left(SPARE + 1), capture_logs() as logged:
        await eventually("it is in", lambda: acceptor.let_in)
    assert acceptor.shortages == 0
    assert logged == []


async def test_shortage_stops_it_and_its_end_starts_it_again_each_said_once(acceptor: RecordedEntrance) -> None:
    acceptor.come(3)
    with capture_logs() as logged:
        with left(SPARE):
            await eventually("it is said", lambda: logged)
            await acceptor.turns()
            assert acceptor.let_in == []
        # Who came meanwhile has waited.
        await eventually("all are in", lambda: len(acceptor.let_in) == 3)
    assert acceptor.shortages == 1
    assert [line["log_level"] for line in logged] == ["error", "info"]


async def test_without_any_descriptor_it_is_the_same(acceptor: RecordedEntrance) -> None:
    acceptor.come()
    with capture_logs() as logged:
        with left(0):
            await eventually("it is said", lambda: logged)
            await acceptor.turns()
        await eventually("it is in", lambda: acceptor.let_in)
    assert [line["log_level"] for line in logged] == ["error", "info"]


async def test_last_descriptors_are_not_for_clients(acceptor: RecordedEntrance) -> None:
    acceptor.come(10)
    with left(SPARE + 4), capture_logs() as logged:
        await eventually("it is said", lambda: logged)
        assert len(acceptor.let_in) == 4


async def test_client_that_is_gone_before_it_is_accepted_harms_nothing(acceptor: RecordedEntrance) -> None:
    acceptor.come()
    # A reset, not an orderly end.
    acceptor.clients[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    acceptor.clients[0].close()
    acceptor.come()
    await eventually("the next one is in", lambda: len(acceptor.let_in) >= 1)


@pytest.mark.parametrize("count", [0, SPARE])
async def test_end_while_descriptors_are_short_leaves_no_timer_and_nobody_waiting(count: int) -> None:
    acceptor = RecordedEntrance()
    acceptor.open()
    acceptor.come()
    with capture_logs() as logged, left(count):
        await eventually("it is said", lambda: logged)
        acceptor.close()
    # Reset, or ended: it was never let in.
    with suppress(ConnectionResetError):
        assert acceptor.clients[0].recv(1) == b""
    assert acceptor.let_in == []
    look = acceptor._look
    assert look is not None
    assert look.cancelled()
    for each in acceptor.clients:
        each.close()
