"""Limits the unsettled deliveries, the bytes of held rejected events, and the updates that wait for a flush."""

import asyncio
from typing import Protocol

import structlog

_log = structlog.get_logger("bridge.amqp")


class PausableChannel(Protocol):
    """A channel that can stop and resume reading from its connection."""

    def pause_reading(self) -> None:
        """Stops reading deliveries."""

    def resume_reading(self) -> None:
        """Resumes reading deliveries."""


class FlowControl:
    """Limits the unsettled deliveries, the held events and the waiting updates of one consumer.

    One FlowControl serves all sessions of the consumer.

    Usually, only the prefetch limits the unsettled deliveries. If rejected events fill the memory reserved for them,
    the bridge stops reading from the broker. After about 15 s without reading, the broker closes the connection. In the
    next session, the prefetch is reduced until memory is free again, so that the broker sends no more deliveries than
    the bridge can read.

    If updates arrive faster than the hub can send them, the bridge stops reading from the broker. The bridge continues
    when the hub has sent these updates, after some seconds at most.
    """

    def __init__(self, max_prefetch: int) -> None:
        """`max_prefetch` is the maximum number of unsettled deliveries."""
        self.max_prefetch = max_prefetch
        self.prefetch = max_prefetch
        """The prefetch of the current session, or of the next session if there is no current session."""
        self.paused = False
        """True while the bridge reads nothing from the broker because of held events."""
        self.prefetch_restorable = asyncio.Event()
        """An asyncio event. It is set when there is enough memory again to raise a reduced prefetch to the maximum."""
        self._full = False
        self._behind = False
        """True while updates wait for a flush."""
        self._channel: PausableChannel | None = None

    def begin_session(self, channel: PausableChannel) -> None:
        """Called when a session has begun to consume."""
        self._channel = channel
        if self._behind:
            channel.pause_reading()

    def set_full(self, full: bool) -> None:
        """Called with True if there is no memory for more held events, and with False if there is memory again."""
        if self._channel is None:
            return
        self._full = full
        if self.prefetch < self.max_prefetch:
            if not full:
                self.prefetch_restorable.set()
        elif self.max_prefetch > 1:
            self.paused = full
            self._pause_or_resume(self._channel)

    def set_behind(self, behind: bool) -> None:
        """Called with True if too many updates wait for a flush, and with False when these updates are sent."""
        self._behind = behind
        if self._channel is not None:
            self._pause_or_resume(self._channel)

    def _pause_or_resume(self, channel: PausableChannel) -> None:
        if self.paused or self._behind:
            channel.pause_reading()
        else:
            channel.resume_reading()

    def on_prefetch_restored(self) -> None:
        """Called when the broker has applied the maximum prefetch again.

        Pauses reading if held events have filled the memory again.
        """
        self.prefetch = self.max_prefetch
        self.prefetch_restorable.clear()
        if self._full:
            self.set_full(True)

    def end_session(self, outstanding: int) -> None:
        """Called at the end of a session, with its number of unsettled deliveries. Sets the next session's prefetch."""
        self.prefetch = max(1, outstanding) if self.paused else self.max_prefetch
        self.prefetch_restorable.clear()
        if self.paused:
            _log.warning("prefetch reduced: large rejected events are held", prefetch=self.prefetch)
        if (self.paused or self._behind) and self._channel is not None:
            self._channel.resume_reading()  # lets aiormq read why the broker closes the connection
        self.paused = self._full = False
        self._channel = None
