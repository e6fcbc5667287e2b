"""A hub for unit tests: its update log, its metrics, its clients, and a loop that the test turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.contract import envelope
from bridge.fanout.frames import text_frame
from bridge.fanout.history import History
from bridge.fanout.hub import Hub
from bridge.fanout.log import Log
from bridge.metrics import Metrics
from tests.support.fakes import FakeSubscriber, SocketSubscriber, Turns

if TYPE_CHECKING:
    from bridge.contract.ids import Id

CHECK, NOW_MS = 0xABCD, 1_700_000_000_000


def update(number: int, kind: str = "a", size: int = 0) -> bytes:
    """The payload of an update with this number, and with padding of `size` bytes."""
    return envelope.wrap(kind, {"n": number, "pad": "." * size}, NOW_MS)


class Scene:
    """A hub, and what a test does to it. `close` closes the sockets of its clients."""

    def __init__(self, log_bytes: int = 2**20, *, shared: bool = False, reads_back: bool = False) -> None:
        """`shared` leaves the ids to the events, as a stream does."""
        self.turns = Turns()
        self.log = Log(log_bytes)
        self.history = History(self.log, None if shared else CHECK)
        self.metrics = Metrics()
        self.hub = Hub(
            self.history, self.metrics, self.turns.call_soon, log_bytes, lambda: NOW_MS, reads_back=reads_back
        )
        self.published = 0
        self._sockets: list[SocketSubscriber] = []

    def publish(self, *updates: bytes | str, size: int = 0) -> bytes:
        """Publishes and flushes; returns the frames. A payload is published as it is.

        A str is a type: the next numbered update of this type is published, with padding of `size` bytes.
        """
        payloads = []
        for each in updates:
            if isinstance(each, bytes):
                payloads.append(each)
                self.hub.publish(each)
            else:
                self.published += 1
                payloads.append(update(self.published, each, size))
                self.hub.publish(payloads[-1], (each, {}))
        self.hub.flush()
        return b"".join(map(text_frame, payloads))

    def give(self, *ids: Id) -> None:
        """Publishes updates that have ids of their own, and flushes."""
        for each in ids:
            self.hub.publish(update(each.number), ("a", {}), each)
        self.hub.flush()

    def join(self, after: str | None = None, wanted: Any = None, *, full: bool = False) -> FakeSubscriber:
        """Adds a client without a descriptor. `full`: it takes the next write only in part."""
        subscriber = FakeSubscriber(self.hub)
        subscriber.full = full
        self.hub.join(subscriber, wanted, after)
        return subscriber

    def join_with_socket(
        self, room_bytes: int | None = None, *, after: str | None = None, wanted: Any = None
    ) -> SocketSubscriber:
        """Adds a client with a descriptor, whose socket has this much room."""
        subscriber = SocketSubscriber(self.hub, self.turns.call_soon, room_bytes)
        self._sockets.append(subscriber)
        self.hub.join(subscriber, wanted, after)
        return subscriber

    def lagging(self, *payloads: bytes) -> FakeSubscriber:
        """Adds a client that took one update only in part; publishes these after that update."""
        subscriber = self.join(full=True)
        self.publish(b"first")
        for payload in payloads:
            self.publish(payload)
        return subscriber

    def sends(self) -> tuple[int, int, int]:
        """How many were written, enqueued and dropped."""
        return self.metrics.written, self.metrics.enqueued, self.metrics.dropped

    def close(self) -> None:
        """Closes the sockets."""
        for subscriber in self._sockets:
            subscriber.end()
