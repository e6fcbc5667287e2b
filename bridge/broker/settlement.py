"""Which delivery tags may be acknowledged: in runs, and never past one that is not settled yet.

Pure arithmetic over the tags of one channel, which the broker counts up from 1.
"""


class Settlement:
    """The deliveries of one channel: settled in any order, acknowledged in order."""

    __slots__ = ("_ahead", "_delivered", "_settled", "_taken")

    def __init__(self) -> None:
        self._delivered = 0
        self._settled = 0
        """Every tag up to this one is settled."""
        self._taken = 0
        self._ahead: set[int] = set()
        """Settled tags behind a gap. Bounded by the channel's prefetch."""

    @property
    def outstanding(self) -> int:
        """Deliveries that are not settled yet."""
        return self._delivered - self._settled - len(self._ahead)

    def deliver(self, tag: int) -> None:
        """Notes a delivery. Tags come in order."""
        self._delivered = tag

    def settle(self, tag: int) -> None:
        """Notes that nothing more is to be done for this delivery. Must be called once for each."""
        if tag != self._settled + 1:
            self._ahead.add(tag)
            return
        self._settled = tag
        while self._ahead and self._settled + 1 in self._ahead:
            self._settled += 1
            self._ahead.remove(self._settled)

    def take(self) -> int | None:
        """The tag up to which all may now be acknowledged at once (`multiple`); None where none is new."""
        if self._settled == self._taken:
            return None
        self._taken = self._settled
        return self._taken
