"""Decides which delivery tags can be acknowledged.

Many tags are acknowledged at once, but no tag is acknowledged before its delivery is settled.

This module does no I/O. The calculations use only delivery tags, which count from 1 on each channel. No list of tags is
longer than the prefetch of the channel.
"""

from typing import NamedTuple


class Acknowledgement(NamedTuple):
    """One `basic.ack`."""

    tag: int
    multiple: bool
    """True if all earlier tags are acknowledged too."""


class Settlement:
    """The deliveries of one channel.

    Deliveries are settled in any order; an acknowledgement can cover many deliveries.
    """

    __slots__ = ("_open", "_prefetch", "_settled")

    def __init__(self, prefetch: int) -> None:
        """`prefetch` is the maximum number of unacknowledged deliveries that the broker allows at a time."""
        self._open: dict[int, None] = {}
        """The tags of deliveries that are not settled, in order."""
        self._settled: list[int] = []
        """The tags of deliveries that are settled, but not acknowledged yet."""
        self._prefetch = prefetch

    @property
    def outstanding(self) -> int:
        """The number of deliveries that are not settled."""
        return len(self._open)

    def deliver(self, tag: int) -> None:
        """Records a delivery. Must be called in the order of the tags."""
        self._open[tag] = None

    def settle(self, tag: int) -> None:
        """Records that a delivery is settled. Must be called exactly once for each delivery."""
        del self._open[tag]
        self._settled.append(tag)

    def take(self) -> list[Acknowledgement]:
        """Returns all acknowledgements that can be sent now. From then on, the returned tags count as acknowledged."""
        if not self._settled:
            return []
        first_open = next(iter(self._open), None)
        if first_open is None:
            run, ahead = self._settled, []
        else:
            run = [tag for tag in self._settled if tag < first_open]
            ahead = [tag for tag in self._settled if tag > first_open]
        # The broker closes the channel if a tag is acknowledged twice. The acknowledgement of a run therefore names the
        # highest tag that was not acknowledged before.
        acknowledgements = [Acknowledgement(max(run), True)] if run else []
        # A rejected event that can't be published stays unsettled. Tags after an unsettled event are acknowledged one
        # by one: if they waited for this event, they would use up the prefetch, and the broker would stop delivering.
        if len(ahead) > self._prefetch // 2 or len(self._open) + len(ahead) >= self._prefetch:
            acknowledgements += [Acknowledgement(tag, False) for tag in ahead]
            ahead = []
        self._settled = ahead
        return acknowledgements
