"""Who comes back: from which position it goes on, and what it is told of that before anything else.

How many updates a client is about to get again is part of that message, and a filter has to be asked for it: up to all
that the log holds, and so a segment in a turn of the loop.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bridge.broadcast.frames import text_frame
from bridge.broadcast.replay import ReplayIndex, UpdateFilter
from bridge.broadcast.subscriber import Subscriber
from bridge.contract.envelope import resume
from bridge.contract.filters import After


@dataclass(slots=True)
class _Resumption:
    update_filter: UpdateFilter | None
    complete: bool
    counted: int
    """The position up to which it is known how many updates it gets."""
    updates: int = 0
    overtaken: bool = False
    """True where what it was to get next has been dropped once before it was told."""


class Resume:
    """Those that have not been told yet where they are."""

    def __init__(self, history: ReplayIndex, now_ms: Callable[[], int], on_told: Callable[[bool, int], None]) -> None:
        """`now_ms` is the clock: Unix milliseconds. For each, `on_told` is told whether nothing was missing, and how
        many updates it gets again."""
        self._history = history
        self._now_ms = now_ms
        self._on_told = on_told
        self._counting: dict[Subscriber, _Resumption] = {}

    def __contains__(self, connection: Subscriber) -> bool:
        return connection in self._counting

    def __iter__(self) -> Iterator[Subscriber]:
        """Over a copy."""
        return iter(tuple(self._counting))

    def begin(self, connection: Subscriber, update_filter: UpdateFilter | None, after: After, flushed: int) -> None:
        """Sets the cursor of a connection after the update of its id, or to the oldest update if the id is unknown.

        `flushed` is the position up to which the live connections have received everything. No cursor is set beyond it.
        `Hub` flushes first, so that a client does not get the update of its id again.
        """
        if after.is_from_now_on:
            position: int | None = flushed
        else:
            position = None if after.id is None else self._history.after(after.id)
        connection.cursor = self._oldest(flushed) if position is None else min(position, flushed)
        self._counting[connection] = _Resumption(update_filter, position is not None, connection.cursor)

    def _oldest(self, flushed: int) -> int:
        # Beyond the flushed position, the number of replayed updates would be negative.
        return min(self._history.oldest, flushed)

    def forget(self, connection: Subscriber) -> None:
        """To be called when it is gone."""
        self._counting.pop(connection, None)

    def message(self, connection: Subscriber, flushed: int) -> bytes | None:
        """The frame that it is sent first, and then it is here no more; None where there is more to count.

        `flushed` is the position up to which the live connections have had everything.
        """
        this, history = self._counting[connection], self._history
        if connection.cursor < history.log.tail:
            # While it was counted. The second time it gets nothing of before: it might never come to an end.
            this.complete, this.updates = False, 0
            connection.cursor = this.counted = flushed if this.overtaken else self._oldest(flushed)
            this.overtaken = True
        updates, this.counted = history.count(this.update_filter, this.counted, flushed)
        this.updates += updates
        if this.counted < flushed:
            return None
        del self._counting[connection]
        if not this.updates and not history.has_own_message(connection.cursor, flushed):
            # Nothing for it, so far: with a newer id it has less to ask for when it comes back.
            connection.cursor = flushed
        self._on_told(this.complete, this.updates)
        after = str(self._history.before(connection.cursor))
        return text_frame(resume(this.complete, this.updates, after, self._now_ms()))
