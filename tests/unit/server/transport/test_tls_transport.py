"""Tests of TlsTransport over real sockets, with OpenSSL at both ends."""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import ssl
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bridge.server.tls import Tls
from bridge.server.transport.poller import READ, make_poller
from bridge.server.transport.tcp import PeerName
from bridge.server.transport.tls_transport import (
    MAX_DISCARDED_BYTES,
    MAX_HELD_ANSWER_BYTES,
    MAX_SURPLUS_BYTES,
    RECORD_BYTES,
    TlsTransport,
)
from tests.support.certificates import certificate
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.both_loops

SHUTDOWN_S = 0.3
PEERNAME = PeerName("127.0.0.1", 54321)
MUCH = bytes(range(256)) * 4096
"""Data of 1 MiB. While the client does not read, the sockets can't take this much."""


class Recorder(asyncio.BufferedProtocol):
    """Records the calls of the transport, and reads into a small buffer."""

    def __init__(self, buffer_bytes: int = 4096) -> None:
        self.buffer = memoryview(bytearray(buffer_bytes))
        self.received = bytearray()
        self.reads = 0
        self.calls: list[str] = []
        self.on_data: Callable[[], None] = lambda: None
        self.error: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.calls.append("made")

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received += self.buffer[:nbytes]
        self.reads += 1
        self.on_data()

    def eof_received(self) -> None:
        self.calls.append("eof")

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc
        self.calls.append("lost")


class Client:
    """The client's end of the TLS connection.

    The client's OpenSSL reads from and writes to memory, so that a test sees each step.

    `pump` moves bytes between the memory of the client's OpenSSL and a socket.
    """

    def __init__(self, far: socket.socket) -> None:
        self.socket = far
        far.setblocking(False)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing)
        self.ended = False
        """True after the bridge has ended its side of the TCP connection."""

    def pump(self) -> None:
        """Moves bytes between OpenSSL and the socket."""
        if data := self.outgoing.read():
            with suppress(OSError):
                self.socket.sendall(data)
        with suppress(BlockingIOError, ConnectionError):
            while not self.ended:
                data = self.socket.recv(2**16)
                self.incoming.write(data)
                self.ended = not data

    def shakes_hands(self) -> bool:
        self.pump()
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            self.pump()
            return False
        self.pump()
        return True

    def read(self) -> bytes:
        """Returns all data that has arrived."""
        self.pump()
        read = bytearray()
        with suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            while data := self.tls.read(2**16):
                read += data
        return bytes(read)

    def send(self, data: bytes) -> None:
        self.tls.write(data)
        self.pump()


class Pair:
    """Both ends of a TLS connection."""

    def __init__(
        self, context: ssl.SSLContext, near: socket.socket | None = None, far: socket.socket | None = None
    ) -> None:
        if near is None or far is None:
            near, far = socket.socketpair()
        self.near = near
        self.protocol = Recorder()
        self.failures: list[OSError] = []
        self.context = context
        self.poller = make_poller(asyncio.get_running_loop(), lambda: None)
        self.transport = TlsTransport(
            self.poller, near, PEERNAME, self.protocol, self.context, self.failures.append, SHUTDOWN_S
        )
        self.client = Client(far)
        self.transport.begin()

    async def connect(self) -> None:
        await eventually("the TLS handshake is complete", self.client.shakes_hands)
        await eventually("the protocol is connected", lambda: self.protocol.calls == ["made"])
        self.protocol.calls.clear()
        self.client.read()  # reads the session tickets before the test begins

    async def lost(self) -> None:
        await eventually("the protocol's connection_lost is called", lambda: "lost" in self.protocol.calls)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return Tls(*certificate(tmp_path_factory.mktemp("certificate"), "localhost")).context


@pytest.fixture
async def pair(context: ssl.SSLContext) -> AsyncIterator[Pair]:
    pair = Pair(context)
    yield pair
    pair.transport.abort()
    await asyncio.sleep(0)
    pair.client.socket.close()


@pytest.fixture
async def connected(pair: Pair) -> Pair:
    await pair.connect()
    return pair


# Data in both directions


async def test_bytes_go_both_ways(connected: Pair) -> None:
    connected.client.send(b"from the client")
    await eventually("the data is read", lambda: connected.protocol.received == b"from the client")
    connected.transport.write(b"from the bridge")
    assert connected.client.read() == b"from the bridge"
    assert connected.protocol.calls == []


async def test_transport_has_the_methods_that_a_connection_uses(connected: Pair) -> None:
    transport = connected.transport
    assert transport.get_extra_info("sslcontext") is connected.context
    assert transport.get_extra_info("socket").fileno() >= 0
    assert transport.get_extra_info("peername") == PEERNAME
    assert transport.get_extra_info("cipher", "none") == "none"
    assert transport.get_protocol() is connected.protocol
    assert transport.can_write_eof()
    assert (transport.is_reading(), transport.is_closing(), transport.get_write_buffer_size()) == (True, False, 0)
    other = Recorder()
    transport.set_protocol(other)
    connected.client.send(b"x")
    await eventually("the other protocol reads", lambda: other.received == b"x")
    transport.set_protocol(connected.protocol)
    transport.abort()
    await connected.lost()
    assert transport.get_extra_info("socket").fileno() == -1
    assert transport.is_closing()


async def test_request_that_arrives_with_the_end_of_the_handshake_is_read(pair: Pair) -> None:
    def shakes_hands_and_asks() -> bool:
        if not pair.client.shakes_hands():
            return False
        pair.client.send(b"request")
        return True

    await eventually("the client has sent its request", shakes_hands_and_asks)
    await eventually("the data is read", lambda: pair.protocol.received == b"request")


async def test_all_that_openssl_has_decrypted_is_read(connected: Pair) -> None:
    """This test sends a TLS record that is larger than the read buffer.

    After the first read, the socket is no longer readable, but OpenSSL still has the rest of the record.
    """
    connected.client.send(MUCH[:RECORD_BYTES])
    await eventually("all data is read", lambda: connected.protocol.received == MUCH[:RECORD_BYTES])
    assert connected.protocol.reads >= RECORD_BYTES // 4096


async def test_nothing_is_read_while_reading_is_paused_and_all_of_it_afterwards(connected: Pair) -> None:
    protocol, transport = connected.protocol, connected.transport
    protocol.on_data = transport.pause_reading
    connected.client.send(MUCH[:RECORD_BYTES])
    await eventually("some data is read", lambda: protocol.reads == 1)
    transport.pause_reading()
    assert not transport.is_reading()
    for _ in range(5):
        await asyncio.sleep(0)
    assert protocol.reads == 1
    # The socket is empty, but OpenSSL still has data.
    protocol.on_data = lambda: None
    transport.resume_reading()
    transport.resume_reading()
    await eventually("the rest of the data is read", lambda: protocol.received == MUCH[:RECORD_BYTES])


async def test_reading_that_is_paused_again_at_once_stays_paused(connected: Pair) -> None:
    connected.protocol.on_data = connected.transport.pause_reading
    connected.client.send(MUCH[:RECORD_BYTES])
    await eventually("some data is read", lambda: connected.protocol.reads == 1)
    connected.transport.resume_reading()
    connected.transport.pause_reading()
    await asyncio.sleep(0)
    assert connected.protocol.reads == 1


# Clients that read slowly


async def test_data_that_the_socket_does_not_take_is_held_and_arrives_complete(connected: Pair) -> None:
    transport, protocol = connected.transport, connected.protocol
    transport.write(MUCH)
    transport.write(b"end")
    assert 0 < transport.get_write_buffer_size() <= len(MUCH) + 3
    assert protocol.calls == ["pause"]
    read = bytearray()

    def all_arrived() -> bool:
        nonlocal read
        read += connected.client.read()
        return read == MUCH + b"end"

    await eventually("all data has arrived", all_arrived)
    await eventually("the transport resumes writing", lambda: protocol.calls == ["pause", "resume"])
    assert transport.get_write_buffer_size() == 0


async def test_both_ends_write_at_once(connected: Pair) -> None:
    """A transport that is busy writing still reads, and a transport that is busy reading still writes."""
    connected.transport.write(MUCH)
    connected.client.send(b"1")
    await eventually("the data is read", lambda: connected.protocol.received == b"1")
    read = bytearray()

    def all_arrived() -> bool:
        nonlocal read
        read += connected.client.read()
        return read == MUCH

    await eventually("all data has arrived", all_arrived)
    connected.client.send(b"2")
    await eventually("the data is read", lambda: connected.protocol.received == b"12")


async def test_write_detects_a_client_that_is_gone(connected: Pair) -> None:
    connected.transport.pause_reading()
    connected.client.socket.close()
    connected.transport.write(b"x")
    await connected.lost()
    connected.transport.write(b"x")
    connected.transport.resume_reading()
    assert isinstance(connected.protocol.error, OSError)
    assert connected.protocol.calls == ["lost"]


# Records that a flush writes


async def test_records_of_a_flush_are_written_by_the_caller(connected: Pair) -> None:
    records = connected.transport.encrypt(b"update")
    assert connected.client.read() == b""
    assert os.write(connected.transport.fileno(), records) == len(records)
    assert connected.client.read() == b"update"
    connected.transport.write(b"ping")
    assert connected.client.read() == b"ping"
    assert connected.protocol.calls == []


@pytest.mark.parametrize("taken", [0, 1, 10])
async def test_records_that_the_socket_does_not_take_are_sent_first(connected: Pair, taken: int) -> None:
    transport, protocol = connected.transport, connected.protocol
    records = transport.encrypt(b"update")
    os.write(transport.fileno(), records[:taken])
    transport.keep(records, taken)
    assert protocol.calls == ["pause"]
    assert transport.get_write_buffer_size() == len(records) - taken
    assert transport.encrypt(b", next") == b""
    transport.write(b", last")
    read = bytearray()

    def all_arrived() -> bool:
        nonlocal read
        read += connected.client.read()
        return len(read) == 18

    await eventually("all data has arrived", all_arrived)
    assert read == b"update, next, last"
    await eventually("the transport resumes writing", lambda: protocol.calls == ["pause", "resume"])


async def test_ended_transport_returns_no_records_and_keeps_none(connected: Pair) -> None:
    transport = connected.transport
    records = transport.encrypt(b"update")
    transport.abort()
    transport.keep(records, 0)
    assert transport.encrypt(b"late") == b""
    assert (transport.fileno(), transport.get_write_buffer_size()) == (-1, 0)
    await connected.lost()
    assert connected.protocol.calls == ["lost"]


async def test_transport_whose_side_has_ended_returns_no_records(connected: Pair) -> None:
    connected.transport.write_eof()
    assert connected.transport.encrypt(b"late") == b""
    assert connected.client.read() == b""


async def test_kept_records_of_a_client_that_is_gone_end_the_connection(connected: Pair) -> None:
    connected.transport.pause_reading()
    records = connected.transport.encrypt(b"update")
    connected.client.socket.close()
    connected.transport.keep(records, 0)
    await connected.lost()
    assert isinstance(connected.protocol.error, OSError)


async def test_failed_encryption_closes_the_socket_and_returns_no_records(connected: Pair) -> None:
    with suppress(ssl.SSLError):
        connected.transport._tls.unwrap()
    assert connected.transport.encrypt(b"update") == b""
    await connected.lost()
    assert isinstance(connected.protocol.error, ssl.SSLError)


# The end


async def test_end_of_this_side_is_seen_by_the_client_and_what_it_sends_then_is_discarded(connected: Pair) -> None:
    transport, protocol, client = connected.transport, connected.protocol, connected.client
    transport.write(b"answer")
    transport.write_eof()
    transport.write_eof()
    transport.write(b"late")
    assert client.read() == b"answer"
    assert client.ended
    client.send(b"a body that is not read")
    client.socket.shutdown(socket.SHUT_WR)
    await connected.lost()
    assert protocol.received == b""
    assert protocol.error is None


async def test_end_of_this_side_follows_the_held_data(connected: Pair) -> None:
    connected.transport.write(MUCH)
    connected.transport.write_eof()
    read = bytearray()

    def ended() -> bool:
        nonlocal read
        read += connected.client.read()
        return connected.client.ended

    await eventually("the client has seen the end", ended)
    assert read == MUCH


async def test_client_that_ends_its_side_first_still_reads_its_answer(connected: Pair) -> None:
    connected.transport.write(MUCH)
    connected.transport.write_eof()
    with suppress(ssl.SSLError):
        connected.client.tls.unwrap()  # sends close_notify; otherwise, OpenSSL would end both directions
    connected.client.pump()
    await eventually("the protocol has seen the end", lambda: "eof" in connected.protocol.calls)
    read = bytearray()

    def all_arrived() -> bool:
        nonlocal read
        read += connected.client.read()
        return read == MUCH

    await eventually("all data has arrived", all_arrived)
    await connected.lost()


@pytest.mark.parametrize("notified", [True, False])
async def test_end_of_the_client_side_ends_the_connection(connected: Pair, *, notified: bool) -> None:
    if notified:
        with suppress(ssl.SSLWantReadError):
            connected.client.tls.unwrap()
        connected.client.pump()
    else:
        connected.client.socket.shutdown(socket.SHUT_WR)
    await connected.lost()
    assert connected.protocol.calls == ["eof", "lost"]
    assert connected.protocol.error is None


@pytest.mark.parametrize("data", [b"", b"\x17\x03\x03"], ids=["nothing", "a part of a record"])
async def test_reset_by_the_client_ends_the_connection_whatever_arrived_with_it(
    context: ssl.SSLContext, data: bytes
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as far:
        pair = Pair(context, listener.accept()[0], far)
        await pair.connect()
        far.send(data)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        await pair.lost()


async def test_client_that_sends_too_much_after_the_end_of_this_side_is_disconnected(connected: Pair) -> None:
    connected.transport.write_eof()

    def is_cut() -> bool:
        with suppress(OSError):
            connected.client.socket.send(b"x" * 2**16)
        return "lost" in connected.protocol.calls

    await eventually("the client is disconnected", is_cut)
    assert connected.transport._discarded_bytes > MAX_DISCARDED_BYTES


async def test_close_waits_for_the_end_of_the_client(connected: Pair) -> None:
    connected.transport._shutdown_timeout_s = 3600
    connected.transport.close()
    connected.transport.close()
    assert connected.transport.is_closing()
    assert connected.client.read() == b""
    assert connected.client.ended
    assert connected.protocol.calls == []
    connected.client.socket.close()
    await connected.lost()


async def test_close_ends_the_connection_of_a_client_that_does_not_end(connected: Pair) -> None:
    connected.transport.close()
    await connected.lost()
    assert connected.client.read() == b""
    assert connected.client.ended


async def test_abort_ends_the_connection_at_once_whatever_is_held(connected: Pair) -> None:
    connected.transport.write(MUCH)
    connected.transport.abort()
    connected.transport.abort()
    assert connected.transport.get_write_buffer_size() == 0
    await connected.lost()
    assert connected.protocol.calls == ["pause", "lost"]


async def test_garbage_ends_the_connection(connected: Pair) -> None:
    connected.client.socket.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
    await connected.lost()
    assert isinstance(connected.protocol.error, ssl.SSLError)


async def test_protocol_that_fails_ends_its_connection_alone(connected: Pair) -> None:
    reported: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    def fail() -> None:
        raise RuntimeError("a bug")

    connected.protocol.on_data = fail
    connected.client.send(b"x")
    await connected.lost()
    assert [str(context["exception"]) for context in reported] == ["a bug"]


# The handshake


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b""], ids=["HTTP", "nothing"])
async def test_failed_handshake_is_reported_once_and_not_to_the_protocol(pair: Pair, said: bytes) -> None:
    pair.client.socket.sendall(said)
    pair.client.socket.shutdown(socket.SHUT_WR)
    await eventually("the handshake fails", lambda: pair.failures)
    pair.transport.abort()
    await asyncio.sleep(0)
    assert len(pair.failures) == 1
    assert isinstance(pair.failures[0], ssl.SSLError if said else ConnectionAbortedError)
    assert pair.protocol.calls == []


async def test_aborted_handshake_fails(pair: Pair) -> None:
    pair.transport.abort()
    await eventually("the handshake fails", lambda: pair.failures)
    assert isinstance(pair.failures[0], ConnectionAbortedError)


async def test_close_during_the_handshake_is_its_end_in_time(pair: Pair) -> None:
    pair.transport.close()
    await eventually("the handshake fails", lambda: pair.failures)


def libssl() -> str | None:
    """Returns the path of the OpenSSL library that this process has loaded, or None."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    return next((line.split()[-1] for line in lines if "libssl" in line), None)


def send_key_updates(client: Client, count: int, *, requested: bool) -> None:
    """Sends TLS 1.3 key updates through OpenSSL itself, because Python has no function for them."""
    library = ctypes.CDLL(libssl())
    # OpenSSL's SSL object is the second field of CPython's object, after its header.
    openssl = ctypes.c_void_p(ctypes.c_void_p.from_address(id(client.tls._sslobj) + 24).value)  # type: ignore[attr-defined]  # private, and there is no public way
    for _ in range(count):
        assert library.SSL_key_update(openssl, int(requested)) == 1
        assert library.SSL_do_handshake(openssl) == 1


key_updates = pytest.mark.skipif(
    libssl() is None or sys.version_info >= (3, 14), reason="needs libssl and the SSL object of Python 3.13 or older"
)


@key_updates
async def test_client_that_sends_key_updates_without_end_is_disconnected_and_blocks_nothing(connected: Pair) -> None:
    send_key_updates(connected.client, MAX_SURPLUS_BYTES // 20, requested=False)
    connected.client.socket.settimeout(5)
    sending = asyncio.create_task(asyncio.to_thread(connected.client.pump))
    await eventually("the client is disconnected", lambda: "lost" in connected.protocol.calls)
    await sending
    assert isinstance(connected.protocol.error, ConnectionAbortedError)


@key_updates
async def test_key_updates_while_data_is_held_are_answered_and_nothing_is_lost(connected: Pair) -> None:
    connected.transport.write(MUCH)
    assert connected.protocol.calls == ["pause"]
    send_key_updates(connected.client, 3, requested=True)
    connected.client.send(b"between")
    await eventually("the data is read", lambda: connected.protocol.received == b"between")
    connected.transport.write(b"end")
    read = bytearray()

    def all_arrived() -> bool:
        nonlocal read
        read += connected.client.read()
        return read == MUCH + b"end"

    await eventually("all data has arrived", all_arrived)
    connected.client.send(b" and after")
    await eventually("the data is read", lambda: connected.protocol.received == b"between and after")


@key_updates
async def test_client_that_requests_key_updates_and_reads_nothing_is_disconnected(connected: Pair) -> None:
    connected.transport.write(MUCH)

    def is_cut() -> bool:
        # Data between the key updates keeps them from being a surplus.
        with suppress(OSError):
            for _ in range(100):
                send_key_updates(connected.client, 1, requested=True)
                connected.client.tls.write(b"x")
            connected.client.socket.send(connected.client.outgoing.read())
        return "lost" in connected.protocol.calls

    await eventually("the client is disconnected", is_cut)
    assert isinstance(connected.protocol.error, ConnectionAbortedError)
    assert str(connected.protocol.error) == (
        "after the TLS handshake, the client requested key updates and did not read the answers; "
        "the client is disconnected"
    )
    assert connected.transport._held_answer_bytes > MAX_HELD_ANSWER_BYTES


async def test_protocol_that_takes_over_a_transport_with_held_data_is_paused(connected: Pair) -> None:
    connected.transport.write(MUCH)
    other = Recorder()
    connected.transport.set_protocol(other)
    assert other.calls == ["pause"]
    await eventually(
        "all data has arrived", lambda: connected.client.read() == b"" and other.calls == ["pause", "resume"]
    )
    connected.transport.set_protocol(connected.protocol)


async def test_data_that_was_read_before_is_decrypted_before_the_socket_is_read_again(connected: Pair) -> None:
    connected.protocol.on_data = connected.transport.pause_reading
    for _ in range(3):
        connected.client.send(b"x" * 1000)
    await eventually("some data is read", lambda: connected.protocol.received)
    assert connected.transport._unread
    kept = len(connected.transport._unread)
    connected.client.send(b"y" * 1000)
    connected.transport._watch(READ)  # like `resume_reading`, before the call that it schedules
    connected.transport.on_ready(READ)
    assert len(connected.transport._unread) < kept
    connected.protocol.on_data = lambda: None
    connected.transport.resume_reading()
    await eventually("all data is read", lambda: len(connected.protocol.received) == 4000)


async def test_data_in_records_of_any_size_is_no_surplus(connected: Pair) -> None:
    for size in (1, 6, 100, RECORD_BYTES):
        for _ in range(5):
            connected.client.send(b"x" * size)
    total = 5 * (1 + 6 + 100 + RECORD_BYTES)
    await eventually("all data is read", lambda: len(connected.protocol.received) == total)
    assert connected.transport._surplus_bytes == 0
