"""What stands in for the other side in unit tests: a loop turned by hand, a subscriber, a transport, a delivery.

None of them sleeps, opens a socket, or needs an event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from pamqp import commands

from bridge.broker.consumer import Delivery
from bridge.broker.rejects import Rejects
from bridge.fanout.closing import CloseReason

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.contract.pipeline import Rejected
    from bridge.fanout.hub import Hub


class Turns:
    """The event loop's `call_soon`, turned by hand."""

    def __init__(self) -> None:
        self.scheduled: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()

    def call_soon(self, callback: Callable[..., object], *arguments: object) -> None:
        self.scheduled.append((callback, arguments))

    def turn(self) -> int:
        """Runs what is scheduled now, and not what that schedules; says how much it was."""
        due = len(self.scheduled)
        for _ in range(due):
            callback, arguments = self.scheduled.popleft()
            callback(*arguments)
        return due

    def settle(self) -> None:
        """Turns until nothing is scheduled any more."""
        for _ in range(10_000):
            if not self.turn():
                return
        raise AssertionError("the loop never comes to rest")


class FakeSubscriber:
    """A connection, as the hub sees it: takes writes until it is told to be full."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.cursor = 0
        self.congested = False
        self.full = False
        """The next write does not fit."""
        self.drops = False
        """Writes are dropped."""
        self.fault: Exception | None = None
        """What a write raises."""
        self.writes: list[bytes] = []
        self.closed: CloseReason | None = None
        self.details: dict[str, object] = {}

    @property
    def received(self) -> bytes:
        return b"".join(self.writes)

    def send(self, frames: bytes) -> int:
        assert self.closed is None, "a closed connection is sent nothing"
        if self.fault is not None:
            raise self.fault
        if self.drops:
            return 0
        self.writes.append(frames)
        self.congested = self.congested or self.full
        return -1 if self.congested else len(frames)

    def close(self, reason: CloseReason, **details: object) -> None:
        assert self.closed is None, "a connection is closed once"
        self.closed = reason
        self.details = details
        self.hub.leave(self)

    def drain(self, *, full: bool = False) -> None:
        """The transport is empty again; `full` lets the next write fill it once more."""
        self.full = full
        self.congested = False
        self.hub.drained(self)


class FakeTransport(asyncio.Transport):
    """Records what is written. `full` makes it say, as a transport with no room in its buffer does, that it is.

    Its end is scheduled with `call_soon`, as a real transport's is.
    """

    def __init__(
        self,
        call_soon: Callable[..., object],
        *,
        peername: tuple[object, ...] | None = ("127.0.0.1", 54321),
        half_closes: bool = True,
    ) -> None:
        super().__init__({"peername": peername})
        self._call_soon = call_soon
        self._half_closes = half_closes
        self._protocol: asyncio.BaseProtocol | None = None
        self._paused = False
        self.full = False
        self.written: list[bytes] = []
        self.high: int | None = None
        self.ended: list[str] = []
        """How its end came about: eof, close, abort, in their order."""

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        assert "eof" not in self.ended, "nothing may be written after the end of our side"
        self.written.append(bytes(data))
        if self.full and not self._paused:
            self._paused = True
            self.get_protocol().pause_writing()

    def drain(self, *, full: bool = False) -> None:
        """The client has read everything; `full` lets the next write fill the transport once more."""
        assert self._paused
        self._paused = False
        self.full = full
        self.get_protocol().resume_writing()

    def can_write_eof(self) -> bool:
        return self._half_closes

    def write_eof(self) -> None:
        self.ended.append("eof")

    def close(self) -> None:
        self._end("close")

    def abort(self) -> None:
        self._end("abort")

    def is_closing(self) -> bool:
        return "close" in self.ended or "abort" in self.ended

    def _end(self, how: str) -> None:
        if not self.is_closing():
            self._call_soon(self.get_protocol().connection_lost, None)
        self.ended.append(how)


class FakeDelivery(Delivery):
    """A delivery of no channel, which counts how often it is settled."""

    def __init__(
        self,
        body: bytes,
        *,
        exchange: str = "killmails",
        redelivered: bool = False,
        message_type: str | None = None,
        content_encoding: str | None = None,
    ) -> None:
        self.tag = 1
        self.body = body
        self.properties = commands.Basic.Properties(message_type=message_type, content_encoding=content_encoding)
        self.exchange = exchange
        self.routing_key = ""
        self.redelivered = redelivered
        self.received_s = time.monotonic()
        self.settled = 0

    def settle(self) -> None:
        self.settled += 1


class FakeRejects(Rejects):
    """Keeps what is handed over, and settles nothing."""

    def __init__(self) -> None:
        self.taken: list[tuple[Delivery, Rejected]] = []

    def reject(self, delivery: Delivery, rejected: Rejected) -> None:
        self.taken.append((delivery, rejected))
