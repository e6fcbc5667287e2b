"""The debug lines of the hub: one line for each change of a connection's state, and one line for each flush."""

import structlog

from bridge.broadcast.subscriber import ConnectionEvent, State, Subscriber

LOGGER = "bridge.broadcast"

_log = structlog.get_logger(LOGGER)

_WITH_CURSOR = frozenset({State.PENDING, State.RESUMING, State.CATCHING_UP, State.LAGGING})
"""The states in which a connection reads the log at its cursor."""


class HubLog:
    """The `Trace` for the level debug. Logs each change of a state and each flush."""

    def __init__(self) -> None:
        self._flushed = 0
        """The position up to which flushes are logged."""
        self._short_writes = 0
        """The number of sockets that took only a part of the frames, since the last flush."""
        self._postponed = 0
        """The number of connections that get the frames in later turns of the loop, since the last flush."""

    def on_transition(self, connection: Subscriber, *, before: State, event: ConnectionEvent) -> None:
        """Logs a change of a connection's state, with the cursor if the connection uses it."""
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
        """Logs a flush, unless it had nothing to send."""
        positions, self._flushed = flushed - self._flushed, flushed
        if positions:
            _log.debug(
                "flush", positions=positions, live=live, short_writes=self._short_writes, postponed=self._postponed
            )
        self._short_writes = self._postponed = 0
