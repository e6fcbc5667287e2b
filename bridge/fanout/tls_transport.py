"""A transport for TLS that writes to the socket itself: one call of OpenSSL encrypts a record and sends it.

The TLS transports of asyncio and uvloop encrypt all data at once, and keep it in memory until the client reads it. This
transport encrypts a record of at most 16 KiB only after the socket has taken the previous record.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import Any

RECORD_BYTES = 16384
"""The largest payload of a TLS record (RFC 8446, section 5.1)."""

MAX_DISCARDED_BYTES = 2**18
"""How many bytes are read and discarded after this side has ended. A client that sends more is reset.

Closing a socket with unread bytes resets the connection, and the client might lose data that was sent to it."""

_DISCARDED = bytearray(65536)
"""The buffer that all transports share for discarded data."""


class _State(Enum):
    HANDSHAKE = "the TLS handshake is not complete"
    OPEN = "bytes go both ways"
    ENDED = "this side has ended; later data from the client is discarded"
    LOST = "the socket is closed, or about to be"


class TlsTransport(asyncio.Transport):
    """The server's side of a TLS connection over an accepted socket.

    The protocol is an `asyncio.BufferedProtocol`. The write buffer limit is 0: the protocol is paused as soon as the
    socket does not take everything.
    """

    __slots__ = (
        "_closing",
        "_discarded_bytes",
        "_ends",
        "_failed",
        "_held",
        "_loop",
        "_paused",
        "_peername",
        "_protocol",
        "_read_waits",
        "_reading",
        "_shutdown_timeout_s",
        "_socket",
        "_state",
        "_timer",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: socket.socket,
        context: ssl.SSLContext,
        protocol: asyncio.BufferedProtocol,
        failed: Callable[[OSError], None],
        shutdown_timeout_s: float,
    ) -> None:
        """Takes over the socket. The handshake begins with `begin`.

        `failed` is called once if the handshake fails. If it succeeds, `connection_made` of the protocol is called, and
        `connection_lost` at the end. `shutdown_timeout_s` is how long `close` waits for the client to end its side.
        Raises OSError if the client is already gone.
        """
        self._loop = loop
        self._protocol: asyncio.BufferedProtocol | None = protocol
        self._failed: Callable[[OSError], None] | None = failed
        self._shutdown_timeout_s = shutdown_timeout_s
        self._held = memoryview(b"")
        """Data that the socket has not taken yet. OpenSSL may have encrypted its first record already, so the
        beginning must not change."""
        self._paused = False
        """True between `pause_writing` and `resume_writing` of the protocol."""
        self._ends = False
        """True after `write_eof`: this side ends as soon as the socket has taken all data."""
        self._closing = False
        self._reading = False
        self._read_waits = False
        """True while OpenSSL must write before it can continue to read."""
        self._discarded_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._state = _State.HANDSHAKE
        self._peername = client.getpeername()
        client.setblocking(False)
        with suppress(OSError):  # not TCP
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = context.wrap_socket(
            client, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
        )

    def begin(self) -> None:
        """Begins the handshake."""
        self._loop.add_reader(self._socket, self._ready)
        self._reading = True

    # What asyncio asks of a transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`socket`, `peername` and `sslcontext`, as with asyncio's transports. The socket is for its options only."""
        match name:
            case "socket":
                return self._socket if self._socket.fileno() >= 0 else default
            case "peername":
                return self._peername
            case "sslcontext":
                return self._socket.context
        return default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.BufferedProtocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    def is_closing(self) -> bool:
        return self._closing

    def get_write_buffer_size(self) -> int:
        return len(self._held)

    def can_write_eof(self) -> bool:
        return True

    # Reading

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket)

    def resume_reading(self) -> None:
        if not self._reading and self._state is not _State.LOST:
            self._reading = True
            self._loop.add_reader(self._socket, self._ready)
            # Data that OpenSSL has already decrypted does not make the descriptor readable.
            self._loop.call_soon(self._read_decrypted)

    def _read_decrypted(self) -> None:
        if self._reading and self._state is _State.OPEN and self._socket.pending():
            self._ready()

    def _ready(self) -> None:
        """Called when the socket is readable, or when it is writable and the handshake or a read waits for that."""
        try:
            if self._state is _State.HANDSHAKE:
                self._shake_hands()
            else:
                assert self._protocol is not None
                self._read(self._protocol)
        except (ssl.SSLWantReadError, BlockingIOError, InterruptedError):
            pass
        except ssl.SSLWantWriteError:
            self._read_waits = True
            self._loop.add_writer(self._socket, self._writable)
        except OSError as error:
            self._lose(error)
        except Exception as error:
            message = "a TLS connection failed in its protocol"
            self._loop.call_exception_handler({"message": message, "exception": error, "transport": self})
            self._lose(None)

    def _shake_hands(self) -> None:
        self._socket.do_handshake()
        self._state = _State.OPEN
        self._failed = None
        assert self._protocol is not None
        self._protocol.connection_made(self)
        self._read_decrypted()

    def _read(self, protocol: asyncio.BufferedProtocol) -> None:
        if self._state is _State.ENDED:
            self._discard()
            return
        buffer: memoryview = protocol.get_buffer(-1)  # type: ignore[assignment]  # typeshed knows only Buffer
        count = self._socket.recv_into(buffer)
        if not count:
            self._end_by_client(protocol)
            return
        protocol.buffer_updated(count)
        # The rest is read in the next turn of the loop, so that one client does not delay the others.
        self._loop.call_soon(self._read_decrypted)

    def _discard(self) -> None:
        # Reads from TCP directly: OpenSSL fails if data arrives after its own close_notify.
        count = socket.socket.recv_into(self._socket, _DISCARDED)
        self._discarded_bytes += count
        if not count or self._discarded_bytes > MAX_DISCARDED_BYTES:
            self._lose(None)

    def _end_by_client(self, protocol: asyncio.BufferedProtocol) -> None:
        protocol.eof_received()
        if self._held and self._ends:
            # The client has ended its side, and still reads the response.
            self._closing = True
            self.pause_reading()
        else:
            self._lose(None)

    # Writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Sends the data, and holds the rest that the socket does not take. Write small pieces to limit this rest.

        Does nothing after this side has ended.
        """
        if self._ends or self._state is _State.LOST:
            return
        if self._held:
            self._held = memoryview(b"".join((self._held, data)))
        else:
            self._held = memoryview(data)
            self._push()

    def _push(self) -> None:
        """Sends held data until the socket takes no more."""
        held, send = self._held, self._socket.send
        try:
            while held:
                held = held[send(held) :]
        except ssl.SSLWantWriteError:
            self._hold(held)
        except OSError as error:
            self._lose(error)
        else:
            self._held = held
            if self._ends:
                self._end()

    def _hold(self, data: memoryview) -> None:
        self._held = data
        self._loop.add_writer(self._socket, self._writable)
        if not self._paused:
            self._paused = True
            assert self._protocol is not None
            self._protocol.pause_writing()

    def _writable(self) -> None:
        if self._held:
            self._push()
        if not self._held and self._state is not _State.LOST:
            self._loop.remove_writer(self._socket)
            if self._paused:
                self._paused = False
                assert self._protocol is not None
                self._protocol.resume_writing()
        if self._read_waits:
            self._read_waits = False
            self._ready()

    # The end

    def write_eof(self) -> None:
        """Ends this side when all data is sent. Later data from the client is discarded."""
        if not self._ends:
            self._ends = True
            if not self._held and self._state is _State.OPEN:
                self._end()

    def close(self) -> None:
        """Ends this side when all data is sent, and waits up to `shutdown_timeout_s` for the client to end its side."""
        if not self._closing:
            self._closing = True
            self.write_eof()
            if self._state is not _State.LOST:
                self._timer = self._loop.call_later(self._shutdown_timeout_s, self.abort)

    def abort(self) -> None:
        """Closes the socket at once, and discards held data."""
        self._lose(None)

    def _end(self) -> None:
        if self._closing and not self._reading:
            # The client has ended its side.
            self._lose(None)
            return
        self._state = _State.ENDED
        with suppress(OSError, ValueError):
            # Sends the alert close_notify. The call then fails, because the client has not sent its own alert yet.
            self._socket.unwrap()
        with suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_WR)
        self.resume_reading()

    def _lose(self, error: OSError | None) -> None:
        """Closes the socket, and calls the protocol in the next turn of the loop."""
        if self._state is _State.LOST:
            return
        made = self._state is not _State.HANDSHAKE
        self._state = _State.LOST
        self._closing = True
        self._held = memoryview(b"")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._reading = False
        self._socket.close()
        self._loop.call_soon(self._tell, made, error)

    def _tell(self, made: bool, error: OSError | None) -> None:
        # The protocol and the callback refer to this transport. Without this, only the garbage collector frees them.
        protocol, failed = self._protocol, self._failed
        self._protocol = self._failed = None
        if made:
            assert protocol is not None
            protocol.connection_lost(error)
        elif failed is not None:
            failed(error or ConnectionAbortedError("the connection was given up"))
