"""Writes a response, and ends the connection when the client has read the whole response, or if it reads too slowly."""

import asyncio
from collections.abc import Callable

from bridge.server.transport import tcp

MIN_READ_BYTES_PER_S = 1024
"""The minimum speed at which a client must read its response.

A client that reads more slowly than this minimum is disconnected, because the bridge holds the response in memory.
"""

LATE = 0.25
"""The maximum delay of a check, as a fraction of the timeout.

If the delay of a check exceeds this maximum, the bridge itself was not running, so the check does not abort a client.
"""


class ResponseWriter:
    """Writes one response, and checks that the client reads the response fast enough."""

    __slots__ = ("_abort", "_all_acknowledged_at", "_check", "_check_at", "_timeout_s", "_transport", "_unread_bytes")

    def __init__(self, transport: asyncio.Transport, data: bytes, timeout_s: float, abort: Callable[[], None]) -> None:
        """Writes `data`, and ends the bridge's side of the connection.

        `abort` is called after a period of `timeout_s` in which the client has read too little. `abort` is also called
        if the client has read the whole response, but does not end its side within `timeout_s`.
        """
        self._transport = transport
        self._timeout_s = timeout_s
        self._abort = abort
        acknowledged = self._acknowledged()
        self._all_acknowledged_at = None if acknowledged is None else acknowledged + len(data)
        """The number of bytes that the client's kernel will have acknowledged when it has received the whole response.

        The value is None if the kernel does not report this number.
        """
        transport.write(data)
        self._unread_bytes = self._unread()
        self._begin_period()
        # This call ends only the bridge's side of the connection. If the socket were closed with unread bytes, the
        # kernel would reset the connection, and the client might never receive the response.
        transport.write_eof()

    def stop(self) -> None:
        """Must be called when the connection has ended."""
        self._check.cancel()

    def _begin_period(self) -> None:
        loop = asyncio.get_running_loop()
        self._check_at = loop.time() + self._timeout_s
        self._check = loop.call_at(self._check_at, self._abort_unless_read)

    def _abort_unless_read(self) -> None:
        before, self._unread_bytes = self._unread_bytes, self._unread()
        has_all = self._unread_bytes <= 0 < before
        read_enough = has_all or before - self._unread_bytes >= MIN_READ_BYTES_PER_S * self._timeout_s
        # A late check does not abort the client, because a bridge that was not running could not give the kernel any
        # data for the client.
        late = asyncio.get_running_loop().time() - self._check_at > LATE * self._timeout_s
        if read_enough or late:
            self._begin_period()
        else:
            self._abort()

    def _unread(self) -> int:
        """Returns how many bytes of the response the client has not read, without the overhead of TLS.

        If the result is 0 or less, the client has read the whole response.
        """
        acknowledged = self._acknowledged()
        if acknowledged is None or self._all_acknowledged_at is None:
            return self._transport.get_write_buffer_size()
        return self._all_acknowledged_at - acknowledged

    def _acknowledged(self) -> int | None:
        stream = self._transport.get_extra_info("socket")
        if stream is None:
            return None
        try:
            return tcp.acknowledged_bytes(stream)
        except OSError:
            return None  # a TLS connection that has just ended has no socket
