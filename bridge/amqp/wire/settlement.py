"""Which delivery tags may be acknowledged: in runs, and never one that is not settled yet.

Pure arithmetic over the tags of one channel, which the broker counts up from 1. Everything here is bounded by the
channel's prefetch.
"""

from typing import NamedTuple


class Acknowledgement(NamedTuple):
    """One `basic.ack`."""

    tag: int
    multiple: bool
    """True for this tag and all before it."""


class Settlement:
    """The deliveries of one channel: settled in any order, acknowledged in runs."""

    __slots__ = ("_open", "_prefetch", "_settled")

    def __init__(self, prefetch: int) -> None:
        """`prefetch`: how many deliveries the broker sends without an acknowledgement."""
        self._open: dict[int, None] = {}
        """Delivered and not settled, in order."""
        self._settled: list[int] = []
        """Settled and not acknowledged."""
        self._prefetch = prefetch

    @property
    def outstanding(self) -> int:
        """Deliveries that are not settled yet."""
        return len(self._open)

    def deliver(self, tag: int) -> None:
        """Notes a delivery. Tags come in order."""
        self._open[tag] = None

    def settle(self, tag: int) -> None:
        """Notes that nothing more is to be done for this delivery. Must be called once for each."""
        del self._open[tag]
        self._settled.append(tag)

    def take(self) -> list[Acknowledgement]:
        """What may be acknowledged now, and counts as acknowledged from now on."""
        if not self._settled:
            return []
        first_open = next(iter(self._open), None)
        if first_open is None:
            run, ahead = self._settled, []
        else:
            run = [tag for tag in self._settled if tag < first_open]
            ahead = [tag for tag in self._settled if tag > first_open]
        # The broker knows no tag that is acknowledged already: the run ends with one that is not.
        acknowledgements = [Acknowledgement(max(run), True)] if run else []
        # Each alone, before the broker sends nothing more: one rejected event that can't be published must not hold up
        # the updates behind it, nor may many together.
        if len(ahead) > self._prefetch // 2 or len(self._open) + len(ahead) >= self._prefetch:
            acknowledgements += [Acknowledgement(tag, False) for tag in ahead]
            ahead = []
        self._settled = ahead
        return acknowledgements
