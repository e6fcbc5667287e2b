"""Finds the position at which the newest updates that match a filter begin.

The module is pure: it has no connections and no clock.
"""

from bridge.broadcast.replay import ReplayIndex, UpdateFilter


class NewestSearch:
    """A search backwards in the log, in steps, so that a filter that rarely matches does not delay other work."""

    __slots__ = ("_end", "_filter", "_index", "_missing", "position")

    def __init__(self, index: ReplayIndex, update_filter: UpdateFilter | None, count: int, end: int) -> None:
        """Searches for the newest `count` updates before the position `end`, at least 1."""
        self._index = index
        self._filter = update_filter
        self._missing = count
        self._end = end
        self.position = end
        """The position of the oldest update that was found, or `end` if none was found."""

    def step(self) -> bool:
        """Searches one segment. Returns True at the end of the search.

        The search ends when enough updates are found, or at the tail of the log.
        """
        log = self._index.update_log
        if self._end > log.tail:
            found, self._end = self._index.matching_before(self._filter, self._end)
            if newest := found[-self._missing :]:
                self.position = newest[0]
                self._missing -= len(newest)
        return not self._missing or self._end <= log.tail
