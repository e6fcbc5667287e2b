"""Watches the sockets of all clients, and calls their transports within a time budget in each turn of the event loop.

The event loop itself watches only the descriptor of the epoll instance, which is readable while any client's socket is
ready (epoll(7)). A watched socket therefore needs no object of the event loop. Such an object takes 0.5 KB and 5
microseconds.

The budget keeps turns short: if thousands of clients send, disconnect or are aborted at once, the poller serves some of
them in each turn. Between two turns, the event loop runs everything else, for example deliveries from the broker.
"""

import asyncio
import select
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

READ, WRITE = 1, 4
"""The events that a socket is watched for. The values are those of EPOLLIN and EPOLLOUT (`sys/epoll.h`)."""

BUDGET_S = 0.001
"""The maximum time in one turn for the ready sockets, and the maximum time for the calls of `call_soon`.

The last call of a turn may exceed its maximum.
"""

MAX_EVENTS = 256
"""The maximum number of ready sockets that the kernel reports at once."""


class Pollable(Protocol):
    """The owner of a watched socket."""

    def on_ready(self, events: int) -> None:
        """Called with READ, WRITE or both when the socket is ready.

        Other bits are set if the connection has ended, and the next read or write then fails.
        """


class Poller(Protocol):
    """Calls the owners of ready sockets."""

    def watch(self, descriptor: int, owner: Pollable, before: int, events: int) -> None:
        """Changes the events that a socket is watched for from `before` to `events`. Both are READ, WRITE, both, or 0.

        With 0, the socket is not watched, not even for the end of the connection. Raises OSError if the kernel can't
        watch another socket.
        """

    def call_soon(self, callback: Callable[..., object], *args: object) -> None:
        """Calls the callback in a later turn, after all earlier callbacks, and within the budget of that turn."""

    def close(self) -> None:
        """Stops watching."""


class _Calls:
    """Calls callbacks in later turns of the event loop, within a budget for each turn."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        begin_turn: Callable[[], None],
        budget_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._loop = loop
        self._begin_turn = begin_turn
        self._budget_s = budget_s
        self._clock = clock
        self._calls: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()

    def call_soon(self, callback: Callable[..., object], *args: object) -> None:
        """Calls the callback in a later turn, after all earlier callbacks."""
        if not self._calls:
            self._loop.call_soon(self._run)
        self._calls.append((callback, args))

    def _run(self) -> None:
        self._begin_turn()
        ends_at = self._clock() + self._budget_s
        # Calls that are added during this turn run in a later turn.
        for _ in range(len(self._calls)):
            callback, args = self._calls[0]
            try:
                callback(*args)
            except Exception as error:  # an error of one client must not affect the calls for other clients
                self._loop.call_exception_handler({"message": "a callback of the poller failed", "exception": error})
            # The call is removed last, so that `call_soon` does not schedule a second run.
            self._calls.popleft()
            if self._clock() >= ends_at:
                break
        if self._calls:
            self._loop.call_soon(self._run)


class EpollPoller:
    """A poller that uses epoll, on Linux."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        begin_turn: Callable[[], None],
        budget_s: float = BUDGET_S,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`begin_turn` is called before the work of a turn. `budget_s` is measured by `clock`, in seconds."""
        self._loop = loop
        self._begin_turn = begin_turn
        self._budget_s = budget_s
        self._clock = clock
        self._epoll = select.epoll()
        self._owners: dict[int, Pollable] = {}
        """Maps the descriptor of each watched socket to its owner."""
        self._ready: Iterator[tuple[int, int]] = iter(())
        """The descriptors and events that the kernel has reported, and that no turn has handled yet.

        Without these events, sockets that are always ready could keep the poller from serving other sockets.
        """
        self.call_soon = _Calls(loop, begin_turn, budget_s, clock).call_soon
        loop.add_reader(self._epoll.fileno(), self._on_ready)

    def watch(self, descriptor: int, owner: Pollable, before: int, events: int) -> None:
        """Changes the events that a socket is watched for."""
        if not before:
            self._epoll.register(descriptor, events)
            self._owners[descriptor] = owner
        elif events:
            self._epoll.modify(descriptor, events)
        else:
            del self._owners[descriptor]
            self._epoll.unregister(descriptor)

    def close(self) -> None:
        """Stops watching. Does nothing if the poller is closed already."""
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def _on_ready(self) -> None:
        self._begin_turn()
        ends_at = self._clock() + self._budget_s
        if self._serve(ends_at):
            self._ready = iter(self._epoll.poll(0, MAX_EVENTS))
            self._serve(ends_at)

    def _serve(self, ends_at: float) -> bool:
        """Serves the reported sockets until `ends_at`. Returns whether there is time left."""
        owners, clock = self._owners, self._clock
        for descriptor, events in self._ready:
            # The socket may not be watched any more, or the descriptor may be that of a newer socket. The owner of a
            # socket that is not ready does nothing.
            if (owner := owners.get(descriptor)) is not None:
                owner.on_ready(events)
                if clock() >= ends_at:
                    return False
        return True


class LoopPoller:
    """A poller that uses the event loop, on systems without epoll.

    The sockets that are ready have no budget, and their turns are not measured.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        begin_turn: Callable[[], None],
        budget_s: float = BUDGET_S,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`begin_turn` is called before the work of a turn. `budget_s` is measured by `clock`, in seconds."""
        self._loop = loop
        self.call_soon = _Calls(loop, begin_turn, budget_s, clock).call_soon

    def watch(self, descriptor: int, owner: Pollable, before: int, events: int) -> None:
        """Changes the events that a socket is watched for."""
        for event, add, remove in (
            (READ, self._loop.add_reader, self._loop.remove_reader),
            (WRITE, self._loop.add_writer, self._loop.remove_writer),
        ):
            if events & event & ~before:
                add(descriptor, owner.on_ready, event)
            elif before & event & ~events:
                remove(descriptor)

    def close(self) -> None:
        """Does nothing, because each owner stops watching its own socket."""


def make_poller(loop: asyncio.AbstractEventLoop, begin_turn: Callable[[], None]) -> Poller:
    """Returns the best poller of this system. `begin_turn` is called before the work of a turn."""
    return EpollPoller(loop, begin_turn) if hasattr(select, "epoll") else LoopPoller(loop, begin_turn)
