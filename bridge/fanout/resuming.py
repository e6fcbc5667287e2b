"""Who comes back: from which position it goes on, and what it is told of that before anything else.

How many updates a client is about to get again is part of that message, and a filter has to be asked for it: up to all
that the log holds, and so a segment in a turn of the loop.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from bridge.contract import ids
from bridge.contract.envelope import resume
from bridge.fanout.frames import text_frame
from bridge.fanout.history import Filter, History

FROM_NOW_ON = ""
"""The id of a client that wants ids, and has none yet."""


class Returning(Protocol):
    """A connection, as seen from here."""

    cursor: int


@dataclass(slots=True)
class _Resumption:
    wanted: Filter | None
    complete: bool
    counted: int
    """The position up to which it is known how many updates it gets."""
    updates: int = 0


class Resuming:
    """Those that have not been told yet where they are."""

    def __init__(self, history: History, now_ms: Callable[[], int], on_told: Callable[[bool], None]) -> None:
        """`now_ms` is the clock: Unix milliseconds. `on_told` is told whether nothing was missing, for each."""
        self._history = history
        self._now_ms = now_ms
        self._on_told = on_told
        self._counting: dict[Returning, _Resumption] = {}

    def __contains__(self, connection: Returning) -> bool:
        return connection in self._counting

    def must_wait(self, after: str) -> bool:
        """Whether what follows an id can't be told yet, because it may be still to come."""
        known = ids.read(after)
        return known is not None and self._history.is_ahead(known)

    def begin(self, connection: Returning, wanted: Filter | None, after: str) -> None:
        """Puts its cursor where it goes on: behind its id, or where that is not known, at the oldest that is kept."""
        known = ids.read(after)
        if after == FROM_NOW_ON:
            position: int | None = self._history.log.head
        else:
            position = None if known is None else self._history.after(known)
        connection.cursor = self._history.oldest if position is None else position
        self._counting[connection] = _Resumption(wanted, position is not None, connection.cursor)

    def forget(self, connection: Returning) -> None:
        """To be called when it is gone."""
        self._counting.pop(connection, None)

    def message(self, connection: Returning, flushed: int) -> bytes | None:
        """The frame that it is sent first, and then it is here no more; None where there is more to count.

        `flushed` is the position up to which the live connections have had everything.
        """
        this = self._counting[connection]
        if connection.cursor < self._history.log.tail:
            # While it was counted, what it was to get next has been dropped.
            this.complete, this.updates = False, 0
            connection.cursor = this.counted = self._history.oldest
        updates, this.counted = self._history.count(this.wanted, this.counted, flushed)
        this.updates += updates
        if this.counted < flushed:
            return None
        del self._counting[connection]
        self._on_told(this.complete)
        after = str(self._history.before(connection.cursor))
        return text_frame(resume(this.complete, this.updates, after, self._now_ms()))
