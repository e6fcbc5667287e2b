"""Bounds what the bridge takes from the broker at once: deliveries, and bytes of rejected events that are held."""

import asyncio

import structlog

from bridge.amqp.wire.fast_channel import FastChannel

_log = structlog.get_logger("bridge.amqp")


class Intake:
    """Over all sessions."""

    def __init__(self, most: int) -> None:
        """`most`: the deliveries that may be unsettled at once."""
        self.most = most
        self.prefetch = most
        """The same limit, for the current session or, between two sessions, for the next one."""
        self.held = False
        """True while nothing is read from the broker."""
        self.relieved = asyncio.Event()
        """Set when the full prefetch can be used again."""
        self._full = False
        """True while there is no room for more deliveries."""
        self._fast_channel: FastChannel | None = None

    def begin(self, fast_channel: FastChannel) -> None:
        """A session has begun to consume."""
        self._fast_channel = fast_channel

    def hold(self, held: bool) -> None:
        """Stops reading from the broker, or goes on with it.

        With a reduced prefetch, there is room for all that the broker sends: it is read, and `relieved` is set when
        there is room for more.
        """
        if self._fast_channel is None:
            return
        self._full = held
        if self.prefetch < self.most:
            if not held:
                self.relieved.set()
        elif self.most > 1:
            self.held = held
            self._fast_channel.hold(held)

    def restore(self) -> None:
        """Records that the broker has applied the full prefetch again.

        If the room was filled before the broker answered, reading stops at once.
        """
        self.prefetch = self.most
        self.relieved.clear()
        if self._full:
            self.hold(True)

    def end(self, outstanding: int) -> None:
        """The session is over, with so many unsettled deliveries.

        The broker ends a connection from which nothing is read for 15 s or so. If that was it, the next session takes
        no more deliveries than there is room for, so that all is read that the broker sends.
        """
        self.prefetch = max(1, outstanding) if self.held else self.most
        self.relieved.clear()
        if self.held and self._fast_channel is not None:
            _log.warning("prefetch reduced: large rejected events are held", prefetch=self.prefetch)
            self._fast_channel.hold(False)  # what is said at the end would not be heard
        self.held = self._full = False
        self._fast_channel = None
