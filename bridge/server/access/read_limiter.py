"""Limits how much the bridge reads from clients, so that no client uses the processor at the cost of other clients.

A well-behaved client only answers pings, which takes a few bytes per minute. Even frames that the bridge ignores must
be read and checked, which takes 3 microseconds for each frame. Without a limit, one client that sends tiny frames uses
half of a processor, and a thousand clients use a whole processor. If a client sends too much, the bridge stops reading
from this client for a while. While the bridge does not read, TCP flow control stops the client's writes.

The limiter divides time into periods. In each period, each client has a budget, and all clients together have a common
budget. A read is always handled as a whole, so it may exceed a client's budget. If a client sends more than its budget
allows, the excess becomes the client's debt. A client with a debt is throttled until most of its debt is paid. While
the common budget is used up, every client that sends anything is throttled until the next period. The bridge reads from
throttled clients in turn. If 10,000 clients flood the bridge at the same time, a client's pong is read up to ten
seconds late.

This module has no sockets, and does not interpret the bytes that clients send.
"""

import asyncio
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Protocol

PERIOD_S = 0.25

FRAME_COST_BYTES = 256
"""The cost of each frame and of each read, in bytes, in addition to its size. The smallest frame has six bytes, but
takes as much time as hundreds of bytes."""

CLIENT_BUDGET_BYTES = 65536
"""The budget of one client in a period. The budget is enough for 250 tiny frames, which take 1 ms to read."""

TOTAL_BUDGET_BYTES = 2**19
"""The budget of all clients in a period. The budget is enough for 2000 tiny frames, which take 8 ms to read."""

RESUMED_PER_PERIOD = 256
"""The maximum number of throttled clients that are resumed at the start of a period.

A read of THROTTLED_READ_BYTES holds five tiny frames. If each resumed client sends five tiny frames, their reads use
about the whole common budget.
"""

MAX_READ_BYTES = 4096
"""The maximum size of a read. A read of this size holds 700 tiny frames, which block the event loop for 2.5 ms."""

THROTTLED_READ_BYTES = 32
"""The maximum size of a read while the common budget is used up.

This size is enough for a pong, a close frame, or five tiny frames.
"""

READ_BUFFER = memoryview(bytearray(MAX_READ_BYTES))
"""The read buffer that all connections share. The bytes of each read are handled before the next read."""

_THROTTLED = READ_BUFFER[:THROTTLED_READ_BYTES]


class Throttleable(Protocol):
    """The methods and attributes of a connection that the limiter uses."""

    @property
    def peer(self) -> str:
        """The client's address and port, for logs."""

    def resume_reading(self) -> None:
        """Starts to read from the client again."""

    def close_if_eof(self) -> None:
        """Ends the connection if the client has ended its side.

        While a connection is throttled, it is not notified of EOF.
        """


class ReadLimiter:
    """Counts what clients send, and throttles clients that exceed a budget."""

    def __init__(
        self,
        time: Callable[[], float],
        call_at: Callable[[float, Callable[[], None]], asyncio.TimerHandle],
        on_throttle: Callable[[Throttleable], None],
    ) -> None:
        """`time` and `call_at` are methods of the event loop. `on_throttle` is called for each throttled client."""
        self._time = time
        self._call_at = call_at
        self._on_throttle = on_throttle
        self._period_ends_at = 0.0
        self._used_bytes: dict[Throttleable, int] = {}
        """Maps each client to the number of bytes that it has used in the current period, including its debt."""
        self._total_used_bytes = 0
        self._throttled: dict[Throttleable, None] = {}
        """The throttled clients, in the order in which they were throttled."""
        self._timer: asyncio.TimerHandle | None = None
        self.buffer = READ_BUFFER
        """The buffer of the next read. This buffer is shorter while the common budget is used up."""

    def __len__(self) -> int:
        """The number of throttled clients."""
        return len(self._throttled)

    def __iter__(self) -> Iterator[Throttleable]:
        """Iterates over a copy of the throttled clients."""
        return iter(tuple(self._throttled))

    def consume(self, client: Throttleable, read_bytes: int, frames: int) -> bool:
        """Charges the client for a read.

        If the result is False, the caller must stop reading until the limiter calls `resume_reading`.
        """
        if self._time() >= self._period_ends_at:
            self._begin_period()
        cost = read_bytes + FRAME_COST_BYTES * (frames + 1)
        used = self._used_bytes[client] = self._used_bytes.get(client, 0) + cost
        self._total_used_bytes += cost
        if self._total_used_bytes > TOTAL_BUDGET_BYTES:
            self.buffer = _THROTTLED
        elif used <= CLIENT_BUDGET_BYTES:
            return True
        self._throttled[client] = None
        if self._timer is None:
            self._timer = self._call_at(self._period_ends_at, self._begin_period)
        self._on_throttle(client)
        return False

    def forget(self, client: Throttleable) -> None:
        """Must be called when the connection has ended."""
        self._used_bytes.pop(client, None)
        self._throttled.pop(client, None)

    def _begin_period(self) -> None:
        """Reduces each client's debt by one budget, and resumes clients that still owe less than one budget."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._period_ends_at = self._time() + PERIOD_S
        self._total_used_bytes = 0
        self._used_bytes = {
            client: used - CLIENT_BUDGET_BYTES
            for client, used in self._used_bytes.items()
            if used > CLIENT_BUDGET_BYTES
        }
        due = (client for client in self._throttled if self._used_bytes.get(client, 0) < CLIENT_BUDGET_BYTES)
        resumed = list(islice(due, RESUMED_PER_PERIOD))
        self.buffer = READ_BUFFER if len(resumed) < RESUMED_PER_PERIOD else _THROTTLED
        for client in resumed:
            del self._throttled[client]
        if self._throttled:
            self._timer = self._call_at(self._period_ends_at, self._begin_period)
        for client in resumed:
            client.resume_reading()
