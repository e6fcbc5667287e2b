"""A transport for connections without TLS."""

from bridge.server.transport.poller import READ
from bridge.server.transport.socket_transport import SocketTransport


class TcpTransport(SocketTransport):
    """The server's side of a TCP connection over an accepted socket."""

    __slots__ = ()

    def begin(self) -> None:
        self._begin_watching()
        assert self._protocol is not None
        self._protocol.connection_made(self)
        # A client usually sends its request right after the connection is established. A read of a request that has
        # already arrived saves a turn of the event loop.
        self.on_ready(READ)

    def _on_readable(self) -> None:
        assert self._protocol is not None
        try:
            buffer: memoryview = self._protocol.get_buffer(-1)  # type: ignore[assignment]  # typeshed knows only Buffer
            count = self._socket.recv_into(buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._close_socket(error)
            return
        if count:
            self._protocol.buffer_updated(count)
        else:
            self._end_by_client()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Sends the data, and holds the part that the socket does not take.

        To limit how much data is held, write the data in pieces. Does nothing after the bridge's side has ended.
        """
        if data and not self._ends:
            self._send(data)

    def close(self) -> None:
        """Closes the socket when all data is sent."""
        if not self._closing:
            self._closing = self._ends = True
            if self._unsent:
                self.pause_reading()
            else:
                self._close_socket(None)

    def _end(self) -> None:
        if self._closing:
            self._close_socket(None)
        else:
            self._shut_down()
