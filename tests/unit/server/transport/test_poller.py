"""Tests that the pollers call the owners of ready sockets, and the callbacks, within the budget of each turn."""

from __future__ import annotations

import asyncio
import os
import select
import socket
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING

import pytest

from bridge.server.transport import poller as module
from bridge.server.transport.poller import MAX_EVENTS, READ, WRITE, EpollPoller, LoopPoller, Poller, make_poller
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.both_loops

BUDGET_S = 1.0
"""The budget of a turn, in seconds of the test's clock."""

needs_epoll = pytest.mark.skipif(not hasattr(select, "epoll"), reason="this system has no epoll")

POLLERS = [pytest.param(EpollPoller, marks=needs_epoll), LoopPoller]


class Harness:
    """A poller with a clock that a test moves, and a record of the turns and of the calls in them."""

    def __init__(self, make: type[EpollPoller | LoopPoller]) -> None:
        self.now_s = 0.0
        self.turns: list[list[object]] = []
        """The calls of each turn, which begins with a call of `begin_turn`."""
        self.poller: Poller = make(asyncio.get_running_loop(), lambda: self.turns.append([]), BUDGET_S, self.time)
        self.sockets: list[Watched] = []

    def time(self) -> float:
        return self.now_s

    def call(self, name: object, takes_s: float = 0.0) -> None:
        """Takes the time, and records that it was called in the current turn."""
        self.now_s += takes_s
        self.turns[-1].append(name)

    async def called(self, count: int) -> None:
        """Waits until `call` was called this number of times, and then until no more calls can follow."""
        await eventually(f"{count} calls", lambda: sum(map(len, self.turns)) >= count)
        await settle()

    def close(self) -> None:
        self.poller.close()
        for each in self.sockets:
            each.close()


class Watched:
    """A watched socket of a connection, and its owner.

    By default, its owner stops watching as soon as the socket is ready.
    """

    def __init__(self, harness: Harness, events: int = READ) -> None:
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.far.setblocking(False)
        self.poller = harness.poller
        self.descriptor = self.near.fileno()
        self.events = 0
        self.ready: list[int] = []
        """The events of each call of `on_ready`."""
        self.handle: Callable[[], None] = lambda: self.watch(0)
        harness.sockets.append(self)
        self.watch(events)

    def watch(self, events: int) -> None:
        self.poller.watch(self.descriptor, self, self.events, events)
        self.events = events

    def on_ready(self, events: int) -> None:
        self.ready.append(events)
        self.handle()

    def fill(self) -> None:
        """Fills the buffers of the socket, so that it is not writable."""
        with suppress(BlockingIOError):
            while True:
                self.near.send(bytes(2**16))

    def drain(self) -> None:
        """Reads all data at the far end."""
        with suppress(BlockingIOError):
            while self.far.recv(2**16):
                pass

    def close(self) -> None:
        if self.events:
            with suppress(OSError, ValueError):  # the test has closed the poller or the socket
                self.watch(0)
        self.near.close()
        self.far.close()


async def settle() -> None:
    """Runs several turns of the event loop."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture(params=POLLERS)
async def harness(request: pytest.FixtureRequest) -> AsyncIterator[Harness]:
    harness = Harness(request.param)
    yield harness
    harness.close()


@pytest.fixture
async def epoll() -> AsyncIterator[Harness]:
    harness = Harness(EpollPoller)
    yield harness
    harness.close()


# Ready sockets


async def test_owner_is_called_when_data_arrives_and_not_earlier(harness: Harness) -> None:
    watched = Watched(harness)
    await settle()
    assert watched.ready == []
    watched.far.send(b"x")
    await eventually("the socket is readable", lambda: watched.ready)
    await settle()
    assert watched.ready == [READ]


async def test_socket_with_unread_data_stays_ready(harness: Harness) -> None:
    watched = Watched(harness)
    watched.handle = lambda: None
    watched.far.send(b"x")
    await eventually("the owner is called repeatedly", lambda: len(watched.ready) >= 3)


async def test_writable_socket_is_reported_only_while_writes_are_watched(harness: Harness) -> None:
    watched = Watched(harness)
    watched.fill()
    watched.watch(READ | WRITE)
    await settle()
    assert watched.ready == []
    watched.handle = lambda: watched.watch(READ)
    watched.drain()
    await eventually("the socket is writable", lambda: watched.ready)
    await settle()
    assert watched.ready == [WRITE]
    watched.handle = lambda: watched.watch(0)
    watched.far.send(b"x")
    await eventually("the socket is readable", lambda: len(watched.ready) > 1)
    assert watched.ready == [WRITE, READ]


async def test_readable_socket_is_not_reported_while_only_writes_are_watched(harness: Harness) -> None:
    watched = Watched(harness)
    watched.fill()
    watched.far.send(b"x")
    watched.watch(WRITE)
    await settle()
    assert watched.ready == []


async def test_both_events_of_a_socket_are_reported(harness: Harness) -> None:
    watched = Watched(harness, READ | WRITE)
    watched.handle = lambda: None
    watched.far.send(b"x")
    await eventually(
        "both events are reported", lambda: READ | WRITE in watched.ready or {READ, WRITE} <= {*watched.ready}
    )


async def test_socket_that_is_not_watched_is_not_reported_until_it_is_watched_again(harness: Harness) -> None:
    watched = Watched(harness)
    watched.watch(0)
    watched.far.send(b"x")
    watched.far.close()
    await settle()
    assert watched.ready == []
    watched.watch(READ)
    await eventually("the socket is ready", lambda: watched.ready)


async def test_unchanged_events_of_a_socket_stay_watched(harness: Harness) -> None:
    watched = Watched(harness)
    watched.watch(READ)
    watched.far.send(b"x")
    await eventually("the socket is readable", lambda: watched.ready)


@needs_epoll
async def test_reset_is_reported_as_another_event(epoll: Harness) -> None:
    watched = Watched(epoll, WRITE)
    watched.fill()
    watched.far.close()
    await eventually("the socket is ready", lambda: watched.ready)
    assert watched.ready[0] & (select.EPOLLHUP | select.EPOLLERR)


async def test_owner_that_stops_watching_the_other_ready_sockets_prevents_their_calls(harness: Harness) -> None:
    first, second = Watched(harness), Watched(harness)

    def stop() -> None:
        for watched in (first, second):
            watched.watch(0)

    first.handle = second.handle = stop
    first.far.send(b"x")
    second.far.send(b"x")
    await eventually("an owner is called", lambda: first.ready or second.ready)
    await settle()
    assert len(first.ready) + len(second.ready) == 1


async def test_descriptor_that_is_used_again_belongs_to_its_new_owner(harness: Harness) -> None:
    old = Watched(harness)
    old.close()
    new = Watched(harness)
    assert new.descriptor == old.descriptor, "the kernel did not give the lowest free number"
    new.far.send(b"x")
    await eventually("the new owner is called", lambda: new.ready)
    assert old.ready == []


@needs_epoll
async def test_descriptor_that_the_kernel_cannot_watch_is_an_error_and_can_be_watched_later(epoll: Harness) -> None:
    watched = Watched(epoll)
    watched.watch(0)
    watched.near.close()
    with pytest.raises(OSError, match="Bad file"):
        watched.watch(READ)
    other = Watched(epoll)
    other.far.send(b"x")
    await eventually("the socket is readable", lambda: other.ready)
    assert watched.ready == []


@pytest.mark.parametrize("closes", [True, False])
async def test_owner_that_fails_does_not_affect_the_others(harness: Harness, *, closes: bool) -> None:
    reported: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(str(context["exception"])))
    failing, other = Watched(harness), Watched(harness)

    def fail() -> None:
        if closes or len(failing.ready) == 3:
            failing.watch(0)
        raise RuntimeError("a bug")

    failing.handle = fail
    failing.far.send(b"x")
    other.far.send(b"x")
    await eventually("the other owner is called", lambda: other.ready)
    await eventually("the failing owner stops watching", lambda: not failing.events)
    await settle()
    assert reported == ["a bug"] * (1 if closes else 3)
    assert other.ready == [READ]


# The budget for ready sockets


@needs_epoll
async def test_sockets_that_are_ready_at_once_are_served_in_one_turn(epoll: Harness) -> None:
    def serve(number: int) -> None:
        epoll.call(number)
        watched[number].watch(0)

    watched = [Watched(epoll) for _ in range(5)]
    for number, each in enumerate(watched):
        each.handle = lambda number=number: serve(number)  # type: ignore[misc]  # mypy can't infer the default
        each.far.send(b"x")
    await epoll.called(5)
    assert epoll.turns == [[0, 1, 2, 3, 4]]


@needs_epoll
@pytest.mark.parametrize(
    ("takes_s", "sizes"),
    [(BUDGET_S, [1, 1, 1, 1, 1]), (5 * BUDGET_S, [1, 1, 1, 1, 1]), (BUDGET_S / 2, [2, 2, 1]), (BUDGET_S / 8, [5])],
)
async def test_sockets_that_exceed_the_budget_are_served_in_later_turns(
    epoll: Harness, takes_s: float, sizes: list[int]
) -> None:
    def serve(number: int) -> None:
        epoll.call(number, takes_s)
        watched[number].watch(0)

    watched = [Watched(epoll) for _ in range(5)]
    for number, each in enumerate(watched):
        each.handle = lambda number=number: serve(number)  # type: ignore[misc]  # mypy can't infer the default
        each.far.send(b"x")
    await epoll.called(5)
    assert [len(turn) for turn in epoll.turns] == sizes
    assert {*chain(*epoll.turns)} == {*range(5)}


@needs_epoll
async def test_everything_else_runs_between_two_turns(epoll: Harness) -> None:
    seen: list[int] = []

    def serve(each: Watched) -> None:
        epoll.call("served", BUDGET_S)
        each.watch(0)
        asyncio.get_running_loop().call_soon(lambda: seen.append(len(epoll.turns)))

    for each in [Watched(epoll) for _ in range(4)]:
        each.handle = lambda each=each: serve(each)  # type: ignore[misc]  # mypy can't infer the default
        each.far.send(b"x")
    await epoll.called(4)
    assert seen == [1, 2, 3, 4]


@needs_epoll
@pytest.mark.parametrize("served_per_turn", [1, 2, 3])
async def test_sockets_that_stay_ready_are_served_in_turn(epoll: Harness, served_per_turn: int) -> None:
    """Clients that send without a pause must not keep the poller from serving other clients."""
    watched = [Watched(epoll) for _ in range(7)]
    for number, each in enumerate(watched):
        each.handle = lambda number=number: epoll.call(number, BUDGET_S / served_per_turn)  # type: ignore[misc]  # mypy can't infer it
        each.far.send(b"x")
    await eventually("14 turns", lambda: len(epoll.turns) > 14)
    assert {*chain(*epoll.turns[:14])} == {*range(7)}


@needs_epoll
async def test_socket_that_becomes_ready_is_served_although_others_stay_ready(epoll: Harness) -> None:
    busy = [Watched(epoll) for _ in range(3)]
    for number, each in enumerate(busy):
        each.handle = lambda number=number: epoll.call(number, BUDGET_S)  # type: ignore[misc]  # mypy can't infer it
        each.far.send(b"x")
    await eventually("ten turns", lambda: len(epoll.turns) > 10)
    late = Watched(epoll)
    late.far.send(b"x")
    turns = len(epoll.turns)
    await eventually("20 more turns", lambda: late.ready or len(epoll.turns) > turns + 20)
    assert late.ready == [READ]


@needs_epoll
async def test_at_most_max_events_sockets_are_served_in_one_turn_and_the_others_in_the_next_turn(
    epoll: Harness,
) -> None:
    readable, far = socket.socketpair()
    far.send(b"x")
    descriptors = [os.dup(readable.fileno()) for _ in range(MAX_EVENTS + 10)]

    class Owner:
        def __init__(self, descriptor: int) -> None:
            self.descriptor = descriptor

        def on_ready(self, events: int) -> None:
            epoll.call(self.descriptor)
            epoll.poller.watch(self.descriptor, self, READ, 0)

    for descriptor in descriptors:
        epoll.poller.watch(descriptor, Owner(descriptor), 0, READ)
    await epoll.called(len(descriptors))
    for descriptor in descriptors:
        os.close(descriptor)
    readable.close()
    far.close()
    assert [len(turn) for turn in epoll.turns] == [MAX_EVENTS, 10]
    assert {*epoll.turns[0], *epoll.turns[1]} == {*descriptors}


@needs_epoll
async def test_turn_without_ready_sockets_does_nothing(epoll: Harness) -> None:
    """The owner of the last ready socket may have stopped watching it since the event loop looked at its sockets."""
    watched = Watched(epoll)
    assert isinstance(epoll.poller, EpollPoller)
    epoll.poller._on_ready()
    assert (watched.ready, epoll.turns) == ([], [[]])


@needs_epoll
async def test_turn_begins_before_the_owner_is_called(epoll: Harness) -> None:
    watched = Watched(epoll)
    turns: list[int] = []

    def serve() -> None:
        turns.append(len(epoll.turns))
        watched.watch(0)

    watched.handle = serve
    watched.far.send(b"x")
    await eventually("the socket is readable", lambda: watched.ready)
    assert turns == [1]


# Calls


async def test_call_runs_in_a_later_turn_with_its_arguments(harness: Harness) -> None:
    calls: list[tuple[object, ...]] = []
    harness.poller.call_soon(lambda *args: calls.append(args), 1, "two")
    assert calls == []
    await eventually("the callback is called", lambda: calls)
    await settle()
    assert calls == [(1, "two")]


async def test_calls_run_in_order_and_in_one_turn(harness: Harness) -> None:
    for number in range(5):
        harness.poller.call_soon(harness.call, number)
    await harness.called(5)
    assert harness.turns == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("takes_s", "turns"),
    [
        (BUDGET_S, [[0], [1], [2], [3], [4]]),
        (5 * BUDGET_S, [[0], [1], [2], [3], [4]]),
        (BUDGET_S / 2, [[0, 1], [2, 3], [4]]),
        (BUDGET_S / 4, [[0, 1, 2, 3], [4]]),
        (BUDGET_S / 8, [[0, 1, 2, 3, 4]]),
    ],
)
async def test_calls_that_exceed_the_budget_run_in_later_turns_in_order(
    harness: Harness, takes_s: float, turns: list[list[int]]
) -> None:
    for number in range(5):
        harness.poller.call_soon(harness.call, number, takes_s)
    await harness.called(5)
    assert harness.turns == turns


async def test_everything_else_runs_between_two_turns_of_calls(harness: Harness) -> None:
    seen: list[int] = []

    def call() -> None:
        harness.call("called", BUDGET_S)
        asyncio.get_running_loop().call_soon(lambda: seen.append(len(harness.turns)))

    for _ in range(4):
        harness.poller.call_soon(call)
    await harness.called(4)
    assert seen == [1, 2, 3, 4]


async def test_calls_that_callbacks_add_run_in_a_later_turn_after_earlier_calls(harness: Harness) -> None:
    def add(number: int) -> None:
        harness.call(number, BUDGET_S / 2)
        if number < 4:
            harness.poller.call_soon(add, number + 3)

    for number in (1, 2, 3):
        harness.poller.call_soon(add, number)
    await harness.called(6)
    # The budget ends the first turn after two calls, and the second turn has only the calls that it begins with.
    assert harness.turns == [[1, 2], [3, 4], [5, 6]]


async def test_callback_that_always_adds_itself_runs_once_in_each_turn(harness: Harness) -> None:
    def again() -> None:
        harness.call("again")
        if len(harness.turns) < 5:
            harness.poller.call_soon(again)

    harness.poller.call_soon(again)
    await harness.called(5)
    assert harness.turns == [["again"]] * 5


async def test_callback_that_fails_is_reported_and_the_later_calls_run(harness: Harness) -> None:
    reported: list[tuple[str, str]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append((context["message"], str(context["exception"]))))

    def fail() -> None:
        harness.call("failed")
        raise RuntimeError("a bug")

    harness.poller.call_soon(fail)
    harness.poller.call_soon(harness.call, "next")
    await harness.called(2)
    assert harness.turns == [["failed", "next"]]
    assert reported == [("a callback of the poller failed", "a bug")]
    # The failed call is removed, and later calls still run.
    harness.poller.call_soon(harness.call, "later")
    await harness.called(3)
    assert harness.turns == [["failed", "next"], ["later"]]


async def test_failing_callbacks_use_the_budget_too(harness: Harness) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda _, context: None)

    def fail(number: int) -> None:
        harness.call(number, BUDGET_S)
        raise RuntimeError("a bug")

    for number in range(3):
        harness.poller.call_soon(fail, number)
    await harness.called(3)
    assert harness.turns == [[0], [1], [2]]


async def test_calls_and_ready_sockets_have_separate_budgets(harness: Harness) -> None:
    watched = Watched(harness)
    watched.far.send(b"x")
    for _ in range(20):
        harness.poller.call_soon(harness.call, "call", BUDGET_S)
    turns_when_ready: list[int] = []

    def serve() -> None:
        turns_when_ready.append(sum(map(len, harness.turns)))
        watched.watch(0)

    watched.handle = serve
    await harness.called(20)
    assert len(turns_when_ready) == 1
    assert turns_when_ready[0] < 20


# The end


async def test_closed_poller_calls_no_owner_and_still_runs_calls(harness: Harness) -> None:
    watched = Watched(harness)
    if isinstance(harness.poller, LoopPoller):
        watched.watch(0)  # each owner stops watching its own socket
    watched.far.send(b"x")
    harness.poller.call_soon(harness.call, "call")
    harness.poller.close()
    harness.poller.close()
    await harness.called(1)
    assert watched.ready == []
    assert harness.turns == [["call"]]


async def test_owner_may_close_the_poller(harness: Harness) -> None:
    watched = Watched(harness)

    def close() -> None:
        watched.watch(0)
        harness.poller.close()

    watched.handle = close
    watched.far.send(b"x")
    await eventually("the owner is called", lambda: watched.ready)
    await settle()
    assert watched.ready == [READ]


@needs_epoll
async def test_closed_poller_leaves_no_descriptor() -> None:
    poller = EpollPoller(asyncio.get_running_loop(), lambda: None)
    descriptor = poller._epoll.fileno()
    os.fstat(descriptor)
    poller.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)


# The choice of the poller


@needs_epoll
async def test_linux_uses_epoll() -> None:
    poller = make_poller(asyncio.get_running_loop(), lambda: None)
    assert isinstance(poller, EpollPoller)
    poller.close()


async def test_system_without_epoll_uses_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "epoll", raising=False)
    poller = make_poller(asyncio.get_running_loop(), lambda: None)
    assert isinstance(poller, LoopPoller)
    poller.close()


@needs_epoll
def test_events_have_the_values_of_epoll() -> None:
    assert (READ, WRITE) == (select.EPOLLIN, select.EPOLLOUT)
    assert module.BUDGET_S > 0
