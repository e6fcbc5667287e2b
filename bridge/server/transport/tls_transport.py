"""A TLS transport that encrypts data only when it sends the data, and reads few bytes in each turn of the event loop.

The TLS transports of asyncio and uvloop keep two buffers for each connection, and encrypt all data at once. With this
transport, all connections share two buffers, because it moves the bytes to or from the socket right after each call of
OpenSSL. A connection holds only the bytes that its socket did not take. If data is written in pieces, a connection
holds at most one record.

Although `ssl.SSLSocket` needs no buffers, the bridge does not use this class, for two reasons. With `ssl.SSLSocket`,
OpenSSL would keep reading while a client sends key updates, and block the event loop. With `ssl.SSLSocket`, OpenSSL
would fail if a key update arrived while a record waited to be sent.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import Any

from bridge.server.transport.poller import Poller
from bridge.server.transport.socket_transport import SocketTransport
from bridge.server.transport.tcp import PeerName

RECORD_BYTES = 16384
"""The largest payload of a TLS record (RFC 8446, section 5.1)."""

RAW_READ_BYTES = 4096
"""The maximum number of bytes that are read from a socket in a turn of the event loop.

A read of this size holds 150 key updates, which take 4 ms.
"""

RECORD_OVERHEAD_BYTES = 64
"""The maximum number of bytes that a TLS record has in addition to its data, with common ciphers."""

MAX_SURPLUS_BYTES = 2**16
"""The maximum number of bytes from a client that are neither data nor the overhead of data.

For example, 2400 key updates reach this maximum. A client that exceeds this maximum is disconnected.
"""

MAX_DISCARDED_BYTES = 2**18
"""The maximum number of bytes that are read and discarded after the bridge's side has ended. The connection of a client
that exceeds this maximum is reset.

The bytes are read because closing a socket with unread bytes resets the connection, and a reset may destroy data that
was sent to the client."""

MAX_HELD_ANSWER_BYTES = 2**16
"""The maximum number of bytes of answers to key updates that are held, because the client reads nothing. A client that
exceeds this maximum is disconnected."""

UNREAD_ANSWERS = (
    "after the TLS handshake, the client requested key updates and did not read the answers; the client is disconnected"
)
"""The error of a connection whose answers exceed `MAX_HELD_ANSWER_BYTES`."""

_RAW_BUFFER = memoryview(bytearray(RAW_READ_BYTES))
"""The buffer that all transports share for bytes from a socket."""

_INCOMING, _OUTGOING = ssl.MemoryBIO(), ssl.MemoryBIO()
"""OpenSSL's buffers, which all transports of the process share. The outgoing buffer is empty whenever code outside this
module runs. The incoming buffer is empty whenever a transport begins to decrypt."""


class _State(Enum):
    HANDSHAKE = "the TLS handshake is not complete"
    OPEN = "the bridge's side is open"
    ENDED = "the bridge's side has ended; later data from the client is discarded"


_OPEN = _State.OPEN
"""In Python 3.11, each access to an enum member runs Python code, and a flush compares the state of each connection."""


class TlsTransport(SocketTransport):
    """The server's side of a TLS connection over an accepted socket."""

    __slots__ = (
        "_discarded_bytes",
        "_held_answer_bytes",
        "_on_failed",
        "_shutdown_timeout_s",
        "_state",
        "_surplus_bytes",
        "_timer",
        "_tls",
        "_unread",
    )

    def __init__(
        self,
        poller: Poller,
        client: socket.socket,
        peername: PeerName,
        protocol: asyncio.BufferedProtocol,
        context: ssl.SSLContext,
        on_failed: Callable[[OSError], None],
        shutdown_timeout_s: float,
    ) -> None:
        """Takes over the socket. Call `begin` to start the TLS handshake.

        `on_failed` is called once if the handshake fails. If the handshake succeeds, the protocol's `connection_made`
        is called, and its `connection_lost` is called when the connection ends. `close` waits up to
        `shutdown_timeout_s` for the client to end its side.
        """
        super().__init__(poller, client, peername, protocol)
        self._on_failed: Callable[[OSError], None] | None = on_failed
        self._shutdown_timeout_s = shutdown_timeout_s
        self._unread = b""
        """Data that was read from the socket, but not decrypted because reading is paused."""
        self._discarded_bytes = 0
        self._surplus_bytes = 0
        self._held_answer_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._state = _State.HANDSHAKE
        self._tls = context.wrap_bio(_INCOMING, _OUTGOING, server_side=True)

    def begin(self) -> None:
        self._begin_watching()
        self._on_readable()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Returns the value for the name `socket`, `peername` or `sslcontext`, as asyncio does.

        Callers may use the returned socket only to read or set its options.
        """
        return self._tls.context if name == "sslcontext" else super().get_extra_info(name, default)

    # Reading

    def resume_reading(self) -> None:
        was_reading = self.is_reading()
        super().resume_reading()
        if self.is_reading() and not was_reading:
            # The kernel does not report bytes that were already read from the descriptor.
            self._poller.call_soon(self._decrypt_unread)

    def _decrypt_unread(self) -> None:
        if self.is_reading() and self._state is _State.OPEN and (self._unread or self._tls.pending()):
            raw, self._unread = self._unread, b""
            self._decrypt(raw)

    def _on_readable(self) -> None:
        if self._state is _OPEN and (self._unread or self._tls.pending()):
            # A client that was throttled may have more data in the socket, but the data that was read before is first.
            self._decrypt_unread()
            return
        try:
            count = self._socket.recv_into(_RAW_BUFFER)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._close_socket(error)
            return
        if self._state is _State.ENDED:
            self._discarded_bytes += count
            if not count or self._discarded_bytes > MAX_DISCARDED_BYTES:
                self._close_socket(None)
        elif count:
            raw, self._unread = self._unread + _RAW_BUFFER[:count], b""
            self._decrypt(raw)
        elif self._state is _State.HANDSHAKE:
            self._close_socket(ConnectionAbortedError("the client ended the connection"))
        else:
            self._end_by_client()

    def _decrypt(self, raw: bytes) -> None:
        """Decrypts bytes from the client, and passes the data to the protocol, until reading is paused."""
        assert not _INCOMING.pending
        _INCOMING.write(raw)
        data_bytes = 0
        try:
            if self._state is _State.HANDSHAKE:
                self._do_handshake()
            while self.is_reading() and self._state is _State.OPEN:
                count = self._read()
                if not count:
                    self._end_by_client()
                data_bytes += count + RECORD_OVERHEAD_BYTES
        except ssl.SSLWantReadError:
            pass
        except OSError as error:
            self._close_socket(error)
        except Exception as error:
            self._fail(error)
        finally:
            self._unread = _INCOMING.read()
        self._surplus_bytes = max(0, self._surplus_bytes + len(raw) - len(self._unread) - data_bytes)
        if self._surplus_bytes > MAX_SURPLUS_BYTES:
            self._close_socket(ConnectionAbortedError("too many TLS messages without data"))

    def _do_handshake(self) -> None:
        try:
            self._tls.do_handshake()
        finally:
            self._send_encrypted()
        self._surplus_bytes = 0
        if not self._lost:
            self._state = _State.OPEN
            self._on_failed = None
            assert self._protocol is not None
            self._protocol.connection_made(self)

    def _read(self) -> int:
        assert self._protocol is not None
        buffer: memoryview = self._protocol.get_buffer(-1)  # type: ignore[assignment]  # typeshed knows only Buffer
        try:
            count: int = self._tls.read(len(buffer), buffer)  # type: ignore[assignment]  # with a buffer it is a number
        finally:
            # OpenSSL may have answered a key update, or sent an alert.
            held_bytes = len(self._unsent)
            self._send_encrypted()
            if held_bytes:
                self._held_answer_bytes += len(self._unsent) - held_bytes
                if self._held_answer_bytes > MAX_HELD_ANSWER_BYTES:
                    self._close_socket(ConnectionAbortedError(UNREAD_ANSWERS))
        if count and not self._lost:
            self._protocol.buffer_updated(count)
        return count

    # Writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypts and sends the data, and holds the part that the socket does not take.

        To limit how much data is held, write the data in pieces. Does nothing after the bridge's side has ended.
        """
        if not self._ends and data and self._state is _OPEN and self._encrypt(data):
            self._send_encrypted()

    def encrypt(self, data: bytes) -> bytes:
        """Encrypts data for a caller that writes the records to the socket itself, without delay.

        If the socket does not take all of the records, the caller must pass them to `keep`. Returns no records if the
        connection has ended, or if the transport holds older records and keeps the new ones after them.
        """
        if self._ends or self._state is not _OPEN or not self._encrypt(data):
            return b""
        if self._unsent:
            self._send_encrypted()
        return _OUTGOING.read()

    def keep(self, records: bytes, taken: int) -> None:
        """Holds records from `encrypt`, of which the socket took only `taken` bytes, until the socket has room."""
        if not self._lost:
            self._hold(records[taken:])

    def fileno(self) -> int:
        """Returns the descriptor of the socket, or -1 if the connection has ended."""
        return -1 if self._lost else self._socket.fileno()

    def _encrypt(self, data: bytes | bytearray | memoryview) -> bool:
        """Puts the encrypted data into OpenSSL's outgoing buffer. On an error, closes the socket and returns False."""
        try:
            written = self._tls.write(data)
            while written < len(data):
                written += self._tls.write(memoryview(data)[written:])
        except OSError as error:
            _OUTGOING.read()
            self._close_socket(error)
            return False
        return True

    def _send_encrypted(self) -> None:
        """Sends the bytes in OpenSSL's outgoing buffer."""
        encrypted = _OUTGOING.read()
        if encrypted and not self._lost:
            self._send(encrypted)

    # The end

    def close(self) -> None:
        """Ends the bridge's side when all data is sent, and waits up to `shutdown_timeout_s` for the client's end."""
        if not self._closing:
            self._closing = True
            self.write_eof()
            if not self._lost:
                self._timer = asyncio.get_running_loop().call_later(self._shutdown_timeout_s, self.abort)

    def _end(self) -> None:
        if self._client_ended or self._state is not _State.OPEN:
            self._close_socket(None)
            return
        self._state = _State.ENDED
        with suppress(OSError, ValueError):
            # `unwrap` writes the alert close_notify, and then fails, because the client has not sent this alert yet.
            self._tls.unwrap()
        alert = _OUTGOING.read()
        with suppress(OSError):
            self._socket.send(alert)
        self._shut_down()
        self._unread = b""
        self.resume_reading()

    def _close_socket(self, error: OSError | None) -> None:
        self._unread = b""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super()._close_socket(error)

    def _finish(self, error: OSError | None) -> None:
        if self._state is _State.HANDSHAKE:
            self._protocol = None
            on_failed, self._on_failed = self._on_failed, None
            if on_failed is not None:
                on_failed(error or ConnectionAbortedError("the connection was aborted"))
        super()._finish(error)
