"""Writes the hub's debug lines to the log: one for each change of a connection's state, and one for each flush."""

import structlog

from bridge.broadcast.subscriber import ConnectionEvent, State, Subscriber

LOGGER = "bridge.broadcast"

_log = structlog.get_logger(LOGGER)

_WITH_CURSOR = frozenset({State.PENDING, State.RESUMING, State.CATCHING_UP, State.LAGGING})
"""The states in which a connection has a cursor of its own in the update log."""


class HubLog:
    """Used as the hub's `Trace` at the log level debug. Logs each change of a connection's state and each flush."""

    def __init__(self) -> None:
        self._flushed = 0
        """The flushed position when the last debug line for a flush was written."""
        self._short_writes = 0
        """The number of partial writes since the last flush."""
        self._postponed = 0
        """The number of connections whose frames were postponed to later turns of the loop since the last flush."""

    def on_transition(self, connection: Subscriber, *, before: State, event: ConnectionEvent) -> None:
        """Logs a change of a connection's state, and also the cursor if the connection has one of its own."""
        if event is ConnectionEvent.PARTIAL_WRITE:
            self._short_writes += 1
        elif event is ConnectionEvent.POSTPONED:
            self._postponed += 1
        has_cursor = before in _WITH_CURSOR and connection.state is not State.LIVE
        _log.debug(
            "connection state",
            peer=connection.peer,
            **{"from": before.name.lower()},
            to=connection.state.name.lower(),
            cause=event.name.lower(),
            **({"cursor": connection.cursor} if has_cursor else {}),
        )

    def on_flush(self, flushed: int, live: int) -> None:
        """Logs a flush, unless the flush had nothing to send."""
        positions, self._flushed = flushed - self._flushed, flushed
        if positions:
            _log.debug(
                "flush", positions=positions, live=live, short_writes=self._short_writes, postponed=self._postponed
            )
        self._short_writes = self._postponed = 0
