"""Recognizes a storm: many clients join at once, for example after a restart.

The first 16 writes to a new connection take twice as long as later writes, because a Linux client acknowledges each of
them immediately (`TCP_MAX_QUICKACKS` in the kernel's `include/net/tcp.h`). If thousands of clients connect while
updates arrive, these writes take more time than the handshakes.

During a storm, the bridge therefore holds the connections that join. When the storm ends, each held connection gets all
updates since its handshake in one write.
"""

from collections.abc import Callable

WINDOW_S = 0.05
"""The duration of a window, in seconds. Unless there is a storm, a window begins when a connection joins."""

MAX_JOINS = 16
"""The number of connections that may join in a window. A storm begins with the next connection in the same window.

The storm ends at the end of the first window in which at most this number of connections join.
"""

MAX_WINDOWS = 20
"""The maximum duration of a storm, in windows. This is the longest time for which a connection is held: 1 s."""


class JoinStorm:
    """Decides when the hub must hold the connections that join."""

    def __init__(self, call_later: Callable[[float, Callable[[], None]], object], on_end: Callable[[], None]) -> None:
        """`call_later` is a method of the event loop. `on_end` is called at the end of each storm."""
        self._call_later = call_later
        self._on_end = on_end
        self._window_is_open = False
        self._joins = 0
        """The number of connections that joined in the current window."""
        self._windows: int | None = None
        """The number of windows since the storm began, or None if there is no storm."""

    def on_join(self) -> bool:
        """Counts a connection that joins. Returns whether the connection must be held until the storm ends."""
        if not self._window_is_open:
            self._open_window()
        self._joins += 1
        if self._joins > MAX_JOINS and self._windows is None:
            self._windows = 0
        return self.is_on

    @property
    def is_on(self) -> bool:
        """Whether there is a storm."""
        return self._windows is not None

    def end(self) -> None:
        """Ends the storm, if there is one. A new storm may begin with the next connection that joins."""
        if self._windows is not None:
            self._windows = None
            self._on_end()

    def _open_window(self) -> None:
        self._window_is_open = True
        self._joins = 0
        self._call_later(WINDOW_S, self._close_window)

    def _close_window(self) -> None:
        self._window_is_open = False
        if self._windows is None:
            return
        self._windows += 1
        if self._joins > MAX_JOINS and self._windows < MAX_WINDOWS:
            self._open_window()
        else:
            self.end()
