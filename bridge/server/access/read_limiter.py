"""How much clients may say: who has said more is not listened to for a while.

A client that behaves says a few bytes a minute, answers to pings. All that it may say beyond is ignored, but has to be
read and judged first, at 3 microseconds a frame: without a limit, one client that sends nothing but tiny frames keeps
half of a processor busy, and a thousand of them leave nothing for anybody else. Reading pauses then, and the client
finds out by its own writes, which wait. What it was to be answered comes no sooner than what it sent is read.

Each quarter of a second every client may say so much, and all of them together so much. Who has said more, for a read
is dealt with as a whole, has a debt, and waits until most of it is paid; where all together have, whoever says anything
waits for the next quarter. Who waits is listened to in turn, however much others say: a pong comes late, by ten seconds
among 10,000 that flood, but it comes.

This file must never know what is said, or of sockets.
"""

import asyncio
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Protocol

PERIOD_S = 0.25

FRAME_BYTES = 256
"""What a frame counts for, and a read, beside its bytes: the smallest has six, or one, and costs like hundreds."""

OF_ONE_BYTES = 65536
"""In a period, of one client: 250 tiny frames, 1 ms."""

OF_ALL_BYTES = 2**19
"""In a period, of all clients: 2000 tiny frames, 8 ms."""

AT_ONCE = 256
"""Clients that are listened to again at the beginning of a period: those of whom a read of SCANT_BYTES each, five tiny
frames, is about as much as all may say."""

READ_BYTES = 4096
"""What a read may bring: 700 tiny frames, 2.5 ms, during which nobody else is served."""

SCANT_BYTES = 32
"""What a read may bring while there is nothing left for all: a pong or a close, or five frames of a flood."""

RECEIVED = memoryview(bytearray(READ_BYTES))
"""What a read brings. Shared by all connections: each read is dealt with before the next one is made."""

_SCANT = RECEIVED[:SCANT_BYTES]


class Speaker(Protocol):
    """A connection, as seen by who decides whether to listen to it."""

    @property
    def peer(self) -> str:
        """The client's address and port, for logs."""

    def read_on(self) -> None:
        """Listens to the client again."""

    def end_if_gone(self) -> None:
        """Ends the connection at once where its client has ended it, which only a read would tell."""


class Allowance:
    """What the clients have said in this period, and who waits for the next."""

    def __init__(
        self,
        time: Callable[[], float],
        call_at: Callable[[float, Callable[[], None]], asyncio.TimerHandle],
        on_wait: "Callable[[Speaker], None]" = lambda _: None,
    ) -> None:
        """`time` and `call_at` are the event loop's; `on_wait` is told who is to wait."""
        self._time = time
        self._call_at = call_at
        self._on_wait = on_wait
        self._ends_at = 0.0
        self._said: dict[Speaker, int] = {}
        self._said_by_all = 0
        self._waiting: dict[Speaker, None] = {}
        """Who has waited longest comes first."""
        self._timer: asyncio.TimerHandle | None = None
        self.buffer = RECEIVED
        """Where the next read goes, and how much it may bring."""

    def __len__(self) -> int:
        return len(self._waiting)

    def spend(self, speaker: Speaker, said_bytes: int, frames: int) -> bool:
        """Counts what a client said. False where it is not to be read from until its `read_on` is called."""
        if self._time() >= self._ends_at:
            self._begin()
        cost = said_bytes + FRAME_BYTES * (frames + 1)
        said = self._said[speaker] = self._said.get(speaker, 0) + cost
        self._said_by_all += cost
        if self._said_by_all > OF_ALL_BYTES:
            self.buffer = _SCANT
        elif said <= OF_ONE_BYTES:
            return True
        self._waiting[speaker] = None
        if self._timer is None:
            self._timer = self._call_at(self._ends_at, self._begin)
        self._on_wait(speaker)
        return False

    def __iter__(self) -> Iterator[Speaker]:
        """Who waits, as of now."""
        return iter(tuple(self._waiting))

    def forget(self, speaker: Speaker) -> None:
        """A client is gone."""
        self._said.pop(speaker, None)
        self._waiting.pop(speaker, None)

    def _begin(self) -> None:
        """A period: debts are smaller by what may be said in one, and who may say something is listened to."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._ends_at = self._time() + PERIOD_S
        self._said_by_all = 0
        self._said = {each: said - OF_ONE_BYTES for each, said in self._said.items() if said > OF_ONE_BYTES}
        due = (each for each in self._waiting if self._said.get(each, 0) < OF_ONE_BYTES)
        free = list(islice(due, AT_ONCE))
        self.buffer = RECEIVED if len(free) < AT_ONCE else _SCANT
        for each in free:
            del self._waiting[each]
        if self._waiting:
            self._timer = self._call_at(self._ends_at, self._begin)
        for each in free:
            each.read_on()
