"""Sends a response, and ends the connection: once the client has read the response, or because it reads too slowly."""

import asyncio
from collections.abc import Callable

from bridge.server.transport import tcp_info

LEAST_READ_BYTES_PER_S = 1024
"""Of a response. A client that reads less is cut: it holds the response in memory."""

LATE = 0.25
"""A fraction of the timeout. If a check is later than this, the bridge did not run, and the check cuts no client."""


class Sending:
    """A response on its way to a client."""

    __slots__ = ("_all_acknowledged_at", "_cut", "_cut_at", "_cutting", "_timeout_s", "_transport", "_unread_bytes")

    def __init__(self, transport: asyncio.Transport, data: bytes, timeout_s: float, cut: Callable[[], None]) -> None:
        """Writes `data`, and ends this side of the connection.

        `cut` is called after a period of `timeout_s` in which the client has read too little. It is also called after a
        period in which the client has not ended its side although it has read everything.
        """
        self._transport = transport
        self._timeout_s = timeout_s
        self._cut = cut
        acknowledged = self._acknowledged()
        self._all_acknowledged_at = None if acknowledged is None else acknowledged + len(data)
        """How many bytes the client's kernel has acknowledged once it has the response; None if that is unknown."""
        transport.write(data)
        self._unread_bytes = self._unread()
        self._begin_period()
        # Only our side ends: closing the socket with bytes unread would reset it, and the client might never see the
        # response.
        transport.write_eof()

    def stop(self) -> None:
        """To be called when the connection is over."""
        self._cutting.cancel()

    def _begin_period(self) -> None:
        loop = asyncio.get_running_loop()
        self._cut_at = loop.time() + self._timeout_s
        self._cutting = loop.call_at(self._cut_at, self._cut_unless_read)

    def _cut_unless_read(self) -> None:
        before, self._unread_bytes = self._unread_bytes, self._unread()
        has_all = self._unread_bytes <= 0 < before
        read_enough = has_all or before - self._unread_bytes >= LEAST_READ_BYTES_PER_S * self._timeout_s
        # While the bridge did not run, it gave the kernel no further data that the client could read.
        late = asyncio.get_running_loop().time() - self._cut_at > LATE * self._timeout_s
        if read_enough or late:
            self._begin_period()
        else:
            self._cut()

    def _unread(self) -> int:
        """Bytes of the response that the client has not read, without those of TLS. 0 or less: it has read all."""
        acknowledged = self._acknowledged()
        if acknowledged is None or self._all_acknowledged_at is None:
            return self._transport.get_write_buffer_size()
        return self._all_acknowledged_at - acknowledged

    def _acknowledged(self) -> int | None:
        stream = self._transport.get_extra_info("socket")
        if stream is None:
            return None
        try:
            return tcp_info.acknowledged_bytes(stream)
        except OSError:
            return None  # TLS that is over has no socket any more
