"""Who waits for the update that it has had last: another bridge on the same stream was ahead of this one.

Or for all of them, while this bridge reads what was sent before it began. Nobody waits for ever: an update that does
not come, although everything else does, is one that nobody knows.
"""

from collections.abc import Iterator

from bridge.broadcast.replay import ReplayIndex
from bridge.broadcast.subscriber import Subscriber
from bridge.contract.filters import After
from bridge.contract.update_id import UpdateId

MAX_RELEASES_PER_TURN = 64
"""Let go in one turn of the loop."""


class PendingResumes:
    """Connections, each with the id that it gave."""

    def __init__(self, history: ReplayIndex, reads_back: bool) -> None:
        """`reads_back` says that all have to wait for now."""
        self._history = history
        self.reads_back = reads_back
        self._waiting: dict[Subscriber, tuple[After, UpdateId | None]] = {}
        self._seen: set[Subscriber] = set()
        """Those that were here at the last tick."""
        self._soonest = 0
        """A lower bound of the numbers that are waited for: they are looked through only when one may have come."""

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Subscriber]:
        """Over a copy."""
        return iter(tuple(self._waiting))

    def defer(self, connection: Subscriber, after: After) -> bool:
        """Adds one that has to wait; False where it has not."""
        known = after.id
        if not self.reads_back and (known is None or not self._history.is_ahead(known)):
            return False
        number = 0 if known is None else known.sequence
        self._soonest = number if not self._waiting else min(self._soonest, number)
        self._waiting[connection] = after, known
        return True

    def forget(self, connection: Subscriber) -> None:
        """To be called when it is gone."""
        self._waiting.pop(connection, None)
        self._seen.discard(connection)

    def ready(self) -> list[tuple[Subscriber, After]]:
        """Some that need not wait any more, with what they gave; they are not here any more."""
        if not self._waiting or self.reads_back or self._history.newest_sequence < self._soonest:
            return []
        ready: list[tuple[Subscriber, After]] = []
        soonest: int | None = None
        for connection, (after, known) in self._waiting.items():
            if known is not None and self._history.is_ahead(known):
                soonest = known.sequence if soonest is None else min(soonest, known.sequence)
                continue
            ready.append((connection, after))
            if len(ready) == MAX_RELEASES_PER_TURN:
                # There may be more: they are looked through again.
                break
        else:
            self._soonest = soonest or 0
        for connection, _ in ready:
            del self._waiting[connection]
        return ready

    def tick(self, fed: bool) -> None:
        """To be called every few seconds: who has waited for longer than that, while everything else came, is ready.

        `fed` says whether it does.
        """
        in_vain = self._seen & self._waiting.keys() if fed and not self.reads_back else ()
        for connection in in_vain:
            after, _ = self._waiting[connection]
            self._waiting[connection] = after, None
            self._soonest = 0
        self._seen = set(self._waiting) if fed and not self.reads_back else set()
