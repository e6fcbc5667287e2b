"""Tests of TcpTransport, and of its base SocketTransport, over real sockets."""

from __future__ import annotations

import asyncio
import errno
import gc
import select
import socket
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from bridge.server.transport import tcp
from bridge.server.transport.poller import READ, WRITE, EpollPoller, LoopPoller, make_poller
from bridge.server.transport.tcp import PeerName
from bridge.server.transport.tcp_transport import TcpTransport
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from bridge.server.transport.poller import Pollable, Poller

pytestmark = pytest.mark.both_loops

PEERNAME = PeerName("127.0.0.1", 54321)
MUCH = bytes(range(256)) * 4096
"""Data of 1 MiB. While the client does not read, the sockets can't take this much."""

BUFFER_BYTES = 4096
SOCKET_BUFFER_BYTES = 2**16


class Recorder(asyncio.BufferedProtocol):
    """Records the calls of the transport, and reads into a small buffer."""

    def __init__(self) -> None:
        self.transport: TcpTransport | None = None
        self.buffer = memoryview(bytearray(BUFFER_BYTES))
        self.received = bytearray()
        self.reads = 0
        self.calls: list[str] = []
        self.error: Exception | None = None
        self.open_at_end: bool | None = None
        """Whether the socket was still open when `connection_lost` was called."""
        self.on_made: Callable[[], object] = lambda: None
        self.on_data: Callable[[], object] = lambda: None
        self.on_eof: Callable[[], object] = lambda: None
        self.on_resume: Callable[[], object] = lambda: None
        self.on_lost: Callable[[], object] = lambda: None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, TcpTransport)
        self.transport = transport
        self.calls.append("made")
        self.on_made()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received += self.buffer[:nbytes]
        self.reads += 1
        self.on_data()

    def eof_received(self) -> None:
        self.calls.append("eof")
        self.on_eof()

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")
        self.on_resume()

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc
        self.calls.append("lost")
        if self.transport is not None:
            self.open_at_end = self.transport.get_extra_info("socket").fileno() >= 0
        self.on_lost()


class FailingPoller:
    """A poller that can't watch another socket while `error` is set."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self.error: OSError | None = None
        self.call_soon = poller.call_soon
        self.close = poller.close

    def watch(self, descriptor: int, owner: Pollable, before: int, events: int) -> None:
        if self.error is not None and not before:
            raise self.error
        self._poller.watch(descriptor, owner, before, events)


class Client:
    """The client's end of the connection."""

    def __init__(self, far: socket.socket) -> None:
        self.socket = far
        far.setblocking(False)
        self.read = bytearray()
        """All data that has arrived."""
        self.ended = False
        """True after the bridge has ended its side of the connection."""

    def pump(self) -> None:
        """Reads all data that has arrived."""
        with suppress(BlockingIOError, ConnectionError):
            while not self.ended:
                data = self.socket.recv(2**16)
                self.read += data
                self.ended = not data

    def pump_a_little(self) -> None:
        with suppress(BlockingIOError):
            self.read += self.socket.recv(2**14)

    async def gets(self, data: bytes) -> None:
        """Waits until all data has arrived."""

        def arrived() -> bool:
            self.pump()
            return len(self.read) >= len(data)

        await eventually("all data has arrived", arrived)
        assert self.read == data

    async def sees_the_end(self) -> None:
        def ended() -> bool:
            self.pump()
            return self.ended

        await eventually("the client has seen the end", ended)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def end(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Resets the connection."""
        tcp.reset_on_close(self.socket)
        self.socket.close()


def unix_sockets() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


def tcp_sockets() -> tuple[socket.socket, socket.socket]:
    with socket.socket() as listener:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            listener.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        far = socket.socket()
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            far.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        far.connect(listener.getsockname())
        return listener.accept()[0], far


class Pair:
    """Both ends of a connection. Call `begin` to start reading at the bridge's end."""

    def __init__(self, *, is_tcp: bool, has_epoll: bool) -> None:
        self.near, far = tcp_sockets() if is_tcp else unix_sockets()
        loop = asyncio.get_running_loop()
        self.poller = FailingPoller(make_poller(loop, lambda: None) if has_epoll else LoopPoller(loop, lambda: None))
        self.protocol = Recorder()
        self.transport = TcpTransport(self.poller, self.near, PEERNAME, self.protocol)
        self.client = Client(far)
        self.reported: list[str] = []
        """The texts of the exceptions that the exception handler of the event loop was called with."""
        loop.set_exception_handler(lambda _, context: self.reported.append(str(context["exception"])))

    def begin(self) -> None:
        self.transport.begin()
        assert self.protocol.calls == ["made"]
        self.protocol.calls.clear()

    def fill(self) -> None:
        """Writes MUCH, of which the transport holds a part."""
        self.transport.write(MUCH)
        assert self.transport.get_write_buffer_size() > 0
        assert self.protocol.calls == ["pause"]
        self.protocol.calls.clear()

    async def readable(self) -> None:
        """Waits until the kernel has the client's bytes, or the end of its data."""
        await eventually("the socket is readable", lambda: select.select([self.near], [], [], 0)[0])

    async def lost(self) -> None:
        await eventually("the protocol's connection_lost is called", lambda: "lost" in self.protocol.calls)
        await settle()
        assert self.protocol.calls.count("lost") == 1
        assert self.protocol.open_at_end is not False
        assert self.near.fileno() == -1
        assert self.transport.is_closing()

    async def close(self) -> None:
        self.poller.error = None
        self.protocol.on_lost = lambda: None
        self.transport.abort()
        await settle()
        assert self.protocol.calls.count("lost") <= 1
        self.near.close()
        self.client.socket.close()
        self.poller.close()


async def settle() -> None:
    """Runs several turns of the event loop."""
    for _ in range(10):
        await asyncio.sleep(0)


KINDS = {
    "socket pair": {"is_tcp": False, "has_epoll": True},
    "TCP": {"is_tcp": True, "has_epoll": True},
    "TCP without epoll": {"is_tcp": True, "has_epoll": False},
}

only_tcp = pytest.mark.parametrize("new", ["TCP", "TCP without epoll"], indirect=True)
"""Only these connections have resets."""


@pytest.fixture(params=KINDS)
async def new(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    """A pair that has not begun."""
    pair = Pair(**KINDS[request.param])
    yield pair
    await pair.close()


@pytest.fixture
async def pair(new: Pair) -> Pair:
    new.begin()
    return new


def fail() -> None:
    raise RuntimeError("a bug")


# The beginning


async def test_protocol_is_connected_before_it_gets_the_bytes_that_arrived_earlier(new: Pair) -> None:
    new.client.send(b"request")
    await new.readable()
    assert not new.transport.is_reading()
    received_when_made: list[bytes] = []
    new.protocol.on_made = lambda: received_when_made.append(bytes(new.protocol.received))
    new.transport.begin()
    # The request is read at once, without a turn of the event loop.
    assert received_when_made == [b""]
    assert new.protocol.received == b"request"
    assert new.transport.is_reading()


async def test_nothing_is_read_at_the_beginning_if_nothing_has_arrived(new: Pair) -> None:
    new.begin()
    assert (new.protocol.reads, new.protocol.calls) == (0, [])
    new.client.send(b"request")
    await eventually("the data is read", lambda: new.protocol.received == b"request")


async def test_client_that_has_left_before_the_beginning_is_disconnected(new: Pair) -> None:
    new.client.send(b"request")
    new.client.socket.close()
    await new.readable()
    new.transport.begin()
    await new.lost()
    assert new.protocol.received == b"request"
    assert new.protocol.calls == ["made", "eof", "lost"]


@only_tcp
async def test_client_that_has_reset_the_connection_before_the_beginning_is_disconnected(new: Pair) -> None:
    new.client.reset()
    await new.readable()
    new.transport.begin()
    await new.lost()
    assert new.protocol.calls == ["made", "lost"]
    assert isinstance(new.protocol.error, ConnectionResetError)


@pytest.mark.parametrize("end", ["abort", "close", "pause_reading"])
async def test_protocol_that_ends_or_pauses_in_connection_made_reads_nothing(new: Pair, end: str) -> None:
    new.client.send(b"request")
    await new.readable()
    new.protocol.on_made = getattr(new.transport, end)
    new.transport.begin()
    await settle()
    assert new.protocol.received == b""
    assert new.protocol.calls == (["made"] if end == "pause_reading" else ["made", "lost"])


async def test_protocol_that_fails_at_the_first_read_is_disconnected(new: Pair) -> None:
    new.client.send(b"request")
    await new.readable()
    new.protocol.on_data = fail
    new.transport.begin()
    await new.lost()
    assert new.reported == ["a bug"]


async def test_socket_that_the_kernel_cannot_watch_fails_the_beginning_and_is_closed_by_abort(new: Pair) -> None:
    new.poller.error = OSError(errno.ENOSPC, "no space")
    with pytest.raises(OSError, match="no space"):
        new.transport.begin()
    assert new.protocol.calls == []
    assert not new.transport.is_reading()
    new.transport.abort()
    await new.lost()
    await new.client.sees_the_end()
    assert new.protocol.calls == ["lost"]


# Data in both directions


async def test_bytes_go_both_ways(pair: Pair) -> None:
    pair.client.send(b"from the client")
    await eventually("the data is read", lambda: pair.protocol.received == b"from the client")
    pair.transport.write(b"from ")
    pair.transport.write(bytearray(b"the "))
    pair.transport.write(memoryview(b"the bridge")[4:])
    await pair.client.gets(b"from the bridge")
    assert pair.protocol.calls == []


async def test_transport_has_the_methods_that_a_connection_uses(pair: Pair) -> None:
    transport = pair.transport
    assert transport.get_extra_info("socket") is pair.near
    assert transport.get_extra_info("peername") == PEERNAME
    assert transport.get_extra_info("sslcontext") is None
    assert transport.get_extra_info("cipher", "none") == "none"
    assert transport.get_protocol() is pair.protocol
    assert transport.can_write_eof()
    assert (transport.is_reading(), transport.is_closing(), transport.get_write_buffer_size()) == (True, False, 0)
    assert not pair.near.getblocking()
    transport.abort()
    assert transport.is_closing()
    assert not transport.is_reading()
    await pair.lost()
    assert transport.get_extra_info("socket").fileno() == -1


async def test_another_protocol_takes_over(pair: Pair) -> None:
    other = Recorder()
    pair.transport.set_protocol(other)
    pair.client.send(b"x")
    await eventually("the other protocol reads", lambda: other.received == b"x")
    pair.client.end()
    await eventually("the other protocol's connection_lost is called", lambda: "lost" in other.calls)
    assert other.calls == ["eof", "lost"]
    assert pair.protocol.received == b""
    assert pair.protocol.calls == []


async def test_protocol_that_is_replaced_after_abort_does_not_learn_of_the_end(pair: Pair) -> None:
    other = Recorder()
    pair.transport.abort()
    pair.transport.set_protocol(other)
    await eventually("the other protocol's connection_lost is called", lambda: other.calls == ["lost"])
    assert pair.protocol.calls == []


# Reading


async def test_all_data_is_read_in_pieces_of_the_buffer(pair: Pair) -> None:
    pair.client.send(MUCH[: 5 * BUFFER_BYTES])
    await eventually("all data is read", lambda: pair.protocol.received == MUCH[: 5 * BUFFER_BYTES])
    assert pair.protocol.reads >= 5


async def test_transport_reads_once_when_its_socket_is_ready(pair: Pair) -> None:
    pair.client.send(MUCH[: 3 * BUFFER_BYTES])
    await pair.readable()
    before = pair.protocol.reads
    pair.transport.on_ready(READ)
    assert pair.protocol.reads == before + 1


async def test_readiness_without_data_or_without_room_does_nothing(pair: Pair) -> None:
    pair.transport.on_ready(READ | WRITE)
    assert (pair.protocol.reads, pair.protocol.calls) == (0, [])
    pair.fill()
    held = pair.transport.get_write_buffer_size()
    pair.transport.on_ready(READ | WRITE)
    assert (pair.protocol.reads, pair.protocol.calls) == (0, [])
    assert 0 < pair.transport.get_write_buffer_size() <= held


async def test_nothing_is_read_while_reading_is_paused_and_all_of_it_afterwards(pair: Pair) -> None:
    protocol, transport = pair.protocol, pair.transport
    protocol.on_data = transport.pause_reading
    pair.client.send(MUCH[: 3 * BUFFER_BYTES])
    await eventually("some data is read", lambda: protocol.reads == 1)
    transport.pause_reading()
    assert not transport.is_reading()
    await settle()
    assert protocol.reads == 1
    protocol.on_data = lambda: None
    transport.resume_reading()
    transport.resume_reading()
    assert transport.is_reading()
    await eventually("the rest of the data is read", lambda: protocol.received == MUCH[: 3 * BUFFER_BYTES])


async def test_reading_that_is_paused_again_at_once_stays_paused(pair: Pair) -> None:
    pair.protocol.on_data = pair.transport.pause_reading
    pair.client.send(MUCH[: 3 * BUFFER_BYTES])
    await eventually("some data is read", lambda: pair.protocol.reads == 1)
    pair.transport.resume_reading()
    pair.transport.pause_reading()
    await settle()
    assert pair.protocol.reads == 1


async def test_stale_readiness_of_a_paused_or_ended_transport_is_ignored(pair: Pair) -> None:
    pair.client.send(b"x")
    await pair.readable()
    pair.transport.pause_reading()
    received = bytes(pair.protocol.received)
    pair.transport.on_ready(READ | WRITE)
    assert pair.protocol.received == received
    pair.transport.abort()
    pair.transport.on_ready(READ | WRITE)
    assert pair.protocol.received == received
    await pair.lost()


# Clients that read slowly


async def test_data_that_the_socket_does_not_take_is_held_and_arrives_complete_and_in_order(pair: Pair) -> None:
    transport, protocol = pair.transport, pair.protocol
    transport.write(MUCH)
    held = transport.get_write_buffer_size()
    assert 0 < held < len(MUCH)
    transport.write(b"1")
    transport.write(bytearray(b"2"))
    transport.write(memoryview(b"3"))
    assert transport.get_write_buffer_size() == held + 3
    assert protocol.calls == ["pause"]
    await pair.client.gets(MUCH + b"123")
    await eventually("the transport resumes writing", lambda: protocol.calls == ["pause", "resume"])
    assert transport.get_write_buffer_size() == 0
    transport.write(b"4")
    await pair.client.gets(MUCH + b"1234")
    assert protocol.calls == ["pause", "resume"]


async def test_transport_resumes_only_after_the_socket_has_taken_all_data(pair: Pair) -> None:
    pair.fill()
    held = pair.transport.get_write_buffer_size()

    def takes_a_part() -> bool:
        pair.client.pump_a_little()
        return pair.transport.get_write_buffer_size() < held

    await eventually("the socket has taken more data", takes_a_part)
    assert pair.transport.get_write_buffer_size() > 0
    assert pair.protocol.calls == []
    pair.transport.write(b"end")
    await pair.client.gets(MUCH + b"end")
    await eventually("the transport resumes writing", lambda: pair.protocol.calls == ["resume"])


async def test_protocol_that_writes_when_it_resumes_is_paused_again(pair: Pair) -> None:
    def write_again() -> None:
        pair.protocol.on_resume = lambda: pair.transport.write(b"end")
        pair.transport.write(MUCH)

    pair.fill()
    pair.protocol.on_resume = write_again
    await pair.client.gets(MUCH + MUCH + b"end")
    assert pair.protocol.calls == ["resume", "pause", "resume"]


async def test_data_is_held_while_the_socket_takes_nothing(pair: Pair) -> None:
    with suppress(BlockingIOError):
        while True:
            pair.near.send(MUCH)
    # TCP may accept some more bytes soon, after the client's kernel has acknowledged bytes.
    await settle()
    sent = bytearray()
    pair.transport.write(b"late")
    pair.transport.write(b"r")

    def arrived() -> bool:
        pair.client.pump()
        sent.extend(pair.client.read)
        pair.client.read.clear()
        return sent.endswith(b"later")

    await eventually("all data has arrived", arrived)


async def test_held_data_is_a_copy_of_the_rest_and_nothing_else(pair: Pair) -> None:
    """A view would keep the whole of a large frame in memory for each client that reads slowly."""
    data = bytearray(MUCH)
    view = memoryview(data)
    pair.transport.write(view)
    view.release()
    data.clear()  # fails while the transport has a view of the data
    held = pair.transport.get_write_buffer_size()
    assert 0 < held < len(MUCH)
    assert isinstance(pair.transport._unsent.obj, bytes)
    assert len(pair.transport._unsent.obj) == held
    pair.transport.write(b"end")
    assert len(pair.transport._unsent.obj) == held + 3
    await pair.client.gets(MUCH + b"end")
    await eventually("the transport resumes writing", lambda: pair.protocol.calls == ["pause", "resume"])
    assert pair.transport._unsent.obj == b""


async def test_empty_data_is_not_written(pair: Pair) -> None:
    pair.transport.write(b"")
    pair.fill()
    held = pair.transport._unsent
    pair.transport.write(b"")
    assert pair.transport._unsent is held


async def test_both_ends_write_at_once(pair: Pair) -> None:
    """A transport that is busy writing still reads, and a transport that is busy reading still writes."""
    pair.fill()
    pair.client.send(b"1")
    await eventually("the data is read", lambda: pair.protocol.received == b"1")
    pair.transport.pause_reading()
    pair.client.send(b"2")
    await pair.client.gets(MUCH)
    await eventually("the transport resumes writing", lambda: pair.protocol.calls == ["resume"])
    assert pair.protocol.received == b"1"
    pair.transport.resume_reading()
    await eventually("the data is read", lambda: pair.protocol.received == b"12")


@pytest.mark.parametrize("action", ["write", "resume_reading"])
async def test_socket_that_the_kernel_cannot_watch_again_ends_the_connection(pair: Pair, action: str) -> None:
    """The transport does not watch the socket while reading is paused, so the poller must register it again."""
    pair.transport.pause_reading()
    pair.poller.error = OSError(errno.ENOSPC, "no space")
    if action == "write":
        pair.transport.write(MUCH)
    else:
        pair.transport.resume_reading()
    await pair.lost()
    assert pair.protocol.error is pair.poller.error


# The end of the bridge's side


async def test_end_of_this_side_is_seen_by_the_client_and_what_it_sends_then_is_read(pair: Pair) -> None:
    transport, protocol, client = pair.transport, pair.protocol, pair.client
    transport.write(b"answer")
    transport.write_eof()
    transport.write_eof()
    transport.write(b"late")
    await client.sees_the_end()
    assert client.read == b"answer"
    assert not transport.is_closing()
    client.send(b"a body")
    await eventually("the data is read", lambda: protocol.received == b"a body")
    client.end()
    await pair.lost()
    assert protocol.calls == ["eof", "lost"]
    assert protocol.error is None


async def test_end_of_this_side_follows_the_held_data(pair: Pair) -> None:
    pair.fill()
    pair.transport.write(b"end")
    pair.transport.write_eof()
    pair.transport.write_eof()
    pair.transport.write(b"late")
    await pair.client.sees_the_end()
    assert pair.client.read == MUCH + b"end"
    assert pair.protocol.calls == []
    assert pair.transport.is_reading()
    pair.client.end()
    await pair.lost()
    assert pair.protocol.calls == ["eof", "lost"]


@only_tcp
async def test_end_of_this_side_after_a_reset_does_not_fail(new: Pair) -> None:
    new.begin()
    new.transport.pause_reading()
    new.client.reset()
    await new.readable()
    new.transport.write_eof()
    new.transport.resume_reading()
    await new.lost()
    assert isinstance(new.protocol.error, ConnectionResetError)


async def test_write_eof_after_the_end_does_nothing(pair: Pair) -> None:
    pair.transport.abort()
    pair.transport.write_eof()
    await pair.lost()
    pair.transport.write_eof()
    pair.transport.close()
    pair.transport.abort()
    await settle()
    assert pair.protocol.calls == ["lost"]


# Closing


async def test_close_ends_the_connection_without_an_error(pair: Pair) -> None:
    pair.transport.write(b"bye")
    pair.transport.close()
    pair.transport.close()
    pair.transport.write(b"late")
    assert pair.transport.is_closing()
    assert not pair.transport.is_reading()
    assert pair.protocol.calls == []  # the protocol is called in a later turn
    await pair.client.sees_the_end()
    assert pair.client.read == b"bye"
    await pair.lost()
    assert pair.protocol.calls == ["lost"]
    assert pair.protocol.error is None


async def test_close_waits_until_all_held_data_is_sent_and_reads_nothing(pair: Pair) -> None:
    pair.fill()
    pair.transport.write(b"end")
    pair.transport.close()
    pair.transport.close()
    pair.transport.write_eof()
    pair.transport.write(b"late")
    assert pair.transport.is_closing()
    assert not pair.transport.is_reading()
    await settle()
    assert pair.protocol.calls == []
    await pair.client.sees_the_end()
    assert pair.client.read == MUCH + b"end"
    await pair.lost()
    assert pair.protocol.calls == ["lost"]
    assert pair.protocol.error is None


@pytest.mark.parametrize("held", [b"", MUCH], ids=["nothing held", "data held"])
async def test_close_after_write_eof_closes_when_all_data_is_sent(pair: Pair, held: bytes) -> None:
    pair.transport.write(held)
    pair.protocol.calls.clear()
    pair.transport.write_eof()
    pair.transport.close()
    await pair.client.sees_the_end()
    assert pair.client.read == held
    await pair.lost()
    assert pair.protocol.calls == ["lost"]


@pytest.mark.parametrize("first", ["write", "write_eof", "close"])
async def test_abort_ends_the_connection_at_once_whatever_is_held(pair: Pair, first: str) -> None:
    pair.fill()
    if first != "write":
        getattr(pair.transport, first)()
    pair.transport.abort()
    pair.transport.abort()
    assert pair.transport.get_write_buffer_size() == 0
    pair.transport.write(b"late")
    pair.transport.resume_reading()
    assert not pair.transport.is_reading()
    assert pair.protocol.calls == []  # the protocol is called in a later turn
    await pair.lost()
    await pair.client.sees_the_end()
    assert len(pair.client.read) < len(MUCH)
    assert MUCH.startswith(pair.client.read)
    assert pair.protocol.calls == ["lost"]
    assert pair.protocol.error is None


@pytest.mark.parametrize("end", ["abort", "close"])
async def test_protocol_that_ends_the_connection_in_a_read_reads_nothing_more(pair: Pair, end: str) -> None:
    pair.protocol.on_data = getattr(pair.transport, end)
    pair.client.send(MUCH[: 2 * BUFFER_BYTES])
    await pair.lost()
    assert pair.protocol.reads == 1
    assert pair.protocol.calls == ["lost"]


async def test_protocol_that_takes_over_a_transport_with_held_data_is_paused(pair: Pair) -> None:
    pair.fill()
    other = Recorder()
    pair.transport.set_protocol(other)
    assert other.calls == ["pause"]
    pair.transport.set_protocol(pair.protocol)
    pair.protocol.calls.clear()


async def test_close_at_once_frees_the_descriptor_before_the_protocol_is_called(pair: Pair) -> None:
    pair.fill()
    pair.transport.close_at_once()
    assert pair.transport.get_extra_info("socket").fileno() == -1
    assert pair.protocol.calls == []
    pair.transport.close_at_once()
    await eventually("the protocol's connection_lost is called", lambda: pair.protocol.calls == ["lost"])
    await pair.client.sees_the_end()


async def test_protocol_that_aborts_in_a_read_while_data_is_held_is_not_resumed(pair: Pair) -> None:
    pair.fill()
    pair.protocol.on_data = pair.transport.abort
    pair.client.send(b"x")
    await pair.lost()
    assert pair.protocol.calls == ["lost"]


async def test_socket_is_open_until_the_protocol_has_been_called(pair: Pair) -> None:
    open_then: list[int] = []
    pair.protocol.on_lost = lambda: open_then.append(pair.near.fileno())
    descriptor = pair.near.fileno()
    pair.transport.abort()
    assert pair.near.fileno() == descriptor
    await pair.lost()
    assert open_then == [descriptor]


async def test_methods_do_nothing_in_connection_lost_and_afterwards(pair: Pair) -> None:
    def use() -> None:
        pair.transport.write(b"late")
        pair.transport.write_eof()
        pair.transport.pause_reading()
        pair.transport.resume_reading()
        pair.transport.close()
        pair.transport.abort()

    pair.protocol.on_lost = use
    pair.client.end()
    await pair.lost()
    use()
    await pair.client.sees_the_end()
    assert pair.client.read == b""
    assert pair.protocol.calls == ["eof", "lost"]
    assert not pair.transport.is_reading()
    assert pair.transport.get_write_buffer_size() == 0


# The end of the client's side


async def test_end_of_the_client_side_ends_the_connection(pair: Pair) -> None:
    pair.client.send(b"last")
    pair.client.end()
    await pair.lost()
    assert pair.protocol.received == b"last"
    assert pair.protocol.calls == ["eof", "lost"]
    assert pair.protocol.error is None
    await pair.client.sees_the_end()


async def test_client_that_ends_its_side_still_gets_the_held_data_and_nothing_more(pair: Pair) -> None:
    pair.fill()
    pair.client.end()
    await eventually("the protocol has seen the end", lambda: "eof" in pair.protocol.calls)
    assert pair.transport.is_closing()
    pair.transport.write(b"late")
    pair.transport.resume_reading()
    pair.transport.close()
    assert not pair.transport.is_reading()
    await pair.client.sees_the_end()
    assert pair.client.read == MUCH
    await pair.lost()
    assert pair.protocol.calls == ["eof", "lost"]
    assert pair.protocol.error is None


async def test_client_that_ends_its_side_gets_an_answer_to_this(pair: Pair) -> None:
    pair.protocol.on_eof = lambda: pair.transport.write(MUCH)
    pair.client.end()
    await pair.client.sees_the_end()
    assert pair.client.read == MUCH
    await pair.lost()
    assert pair.protocol.calls == ["eof", "pause", "lost"]


@pytest.mark.parametrize("end", ["abort", "close", "write_eof"])
@pytest.mark.parametrize("held", [b"", MUCH], ids=["nothing held", "data held"])
async def test_protocol_may_end_the_connection_at_the_end_of_the_client_side(pair: Pair, end: str, held: bytes) -> None:
    pair.transport.write(held)
    pair.protocol.calls.clear()
    pair.protocol.on_eof = getattr(pair.transport, end)
    pair.client.end()
    await pair.client.sees_the_end()
    assert pair.client.read == held or end == "abort"
    await pair.lost()
    assert pair.protocol.calls == ["eof", "lost"]


async def test_client_that_ends_its_side_after_the_bridge_is_disconnected(pair: Pair) -> None:
    pair.fill()
    pair.transport.write_eof()
    pair.client.end()
    await eventually("the protocol has seen the end", lambda: "eof" in pair.protocol.calls)
    await pair.client.sees_the_end()
    assert pair.client.read == MUCH
    await pair.lost()
    assert pair.protocol.calls == ["eof", "lost"]


async def test_end_of_the_client_side_is_not_seen_while_reading_is_paused(pair: Pair) -> None:
    pair.transport.pause_reading()
    pair.client.end()
    await pair.readable()
    await settle()
    assert pair.protocol.calls == []
    pair.transport.resume_reading()
    await pair.lost()
    assert pair.protocol.calls == ["eof", "lost"]


# Resets


@only_tcp
async def test_reset_by_the_client_ends_the_connection(new: Pair) -> None:
    new.begin()
    new.client.reset()
    await new.lost()
    assert new.protocol.calls == ["lost"]
    assert isinstance(new.protocol.error, ConnectionResetError)


@only_tcp
@pytest.mark.parametrize("action", ["resume_reading", "write"])
async def test_reset_while_reading_is_paused_is_seen_by_the_next_read_or_write(new: Pair, action: str) -> None:
    new.begin()
    new.transport.pause_reading()
    new.client.reset()
    await new.readable()
    await settle()
    assert new.protocol.calls == []
    if action == "write":
        new.transport.write(b"x")
        new.transport.write(b"x")
    else:
        new.transport.resume_reading()
    await new.lost()
    assert new.protocol.calls == ["lost"]
    assert isinstance(new.protocol.error, (ConnectionResetError, BrokenPipeError))


@only_tcp
@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("end", [None, "write_eof", "close"])
async def test_reset_while_data_is_held_ends_the_connection(new: Pair, end: str | None, *, reads: bool) -> None:
    new.begin()
    if not reads:
        new.transport.pause_reading()
    new.fill()
    if end is not None:
        getattr(new.transport, end)()
    new.client.reset()
    await new.lost()
    assert new.transport.get_write_buffer_size() == 0
    assert new.protocol.calls == ["lost"]
    assert isinstance(new.protocol.error, (ConnectionResetError, BrokenPipeError))


@only_tcp
async def test_reset_after_the_end_of_the_client_side_discards_the_held_data(new: Pair) -> None:
    new.begin()
    new.fill()
    new.client.end()
    await eventually("the protocol has seen the end", lambda: "eof" in new.protocol.calls)
    new.client.reset()
    await new.lost()
    assert new.protocol.calls == ["eof", "lost"]
    assert isinstance(new.protocol.error, (ConnectionResetError, BrokenPipeError))


async def test_write_detects_a_client_that_is_gone(pair: Pair) -> None:
    pair.transport.pause_reading()
    pair.client.socket.close()

    def is_cut() -> bool:
        pair.transport.write(b"x")
        return "lost" in pair.protocol.calls

    await eventually("the protocol's connection_lost is called", is_cut)
    pair.transport.resume_reading()
    await pair.lost()
    assert isinstance(pair.protocol.error, (ConnectionResetError, BrokenPipeError))
    assert pair.protocol.calls == ["lost"]


# Faults of the bridge


@pytest.mark.parametrize("held", [b"", MUCH], ids=["nothing held", "data held"])
async def test_protocol_that_fails_in_a_read_ends_its_connection(pair: Pair, held: bytes) -> None:
    pair.transport.write(held)
    pair.protocol.calls.clear()
    pair.protocol.on_data = fail
    pair.client.send(b"x")
    await pair.lost()
    assert pair.reported == ["a bug"]
    assert pair.protocol.calls == ["lost"]
    assert pair.protocol.error is None
    assert pair.transport.get_write_buffer_size() == 0
    await pair.client.sees_the_end()


async def test_protocol_that_fails_at_the_end_of_the_client_side_ends_its_connection(pair: Pair) -> None:
    pair.protocol.on_eof = fail
    pair.client.end()
    await pair.lost()
    assert pair.reported == ["a bug"]
    assert pair.protocol.calls == ["eof", "lost"]


async def test_protocol_that_fails_when_it_resumes_ends_its_connection(pair: Pair) -> None:
    pair.fill()
    pair.protocol.on_resume = fail
    await pair.client.gets(MUCH)
    await pair.lost()
    assert pair.reported == ["a bug"]
    assert pair.protocol.calls == ["resume", "lost"]


async def test_protocol_that_fails_after_its_abort_is_reported_and_ends_once(pair: Pair) -> None:
    def abort_and_fail() -> None:
        pair.transport.abort()
        fail()

    pair.protocol.on_data = abort_and_fail
    pair.client.send(b"x")
    await pair.lost()
    assert pair.reported == ["a bug"]
    assert pair.protocol.calls == ["lost"]


async def test_socket_of_a_protocol_that_fails_in_connection_lost_is_closed(pair: Pair) -> None:
    pair.protocol.on_lost = fail
    pair.transport.abort()
    await pair.lost()
    assert pair.reported == ["a bug"]
    await pair.client.sees_the_end()


async def test_protocol_that_fails_does_not_affect_another_connection(pair: Pair) -> None:
    near, far = socket.socketpair()
    other = Recorder()
    transport = TcpTransport(pair.poller, near, PEERNAME, other)
    transport.begin()
    pair.protocol.on_data = fail
    pair.client.send(b"x")
    far.send(b"y")
    await pair.lost()
    await eventually("the other protocol reads", lambda: other.received == b"y")
    far.close()
    await eventually("the other connection ends", lambda: "lost" in other.calls)


# Memory


@pytest.mark.parametrize("is_reset", [False, True])
@pytest.mark.parametrize("held", [b"", MUCH], ids=["nothing held", "data held"])
@pytest.mark.parametrize("kind", KINDS)
async def test_ended_connection_leaves_nothing_to_the_garbage_collector(
    kind: str, held: bytes, *, is_reset: bool
) -> None:
    gc.collect()
    gc.disable()
    try:
        pair = Pair(**KINDS[kind])
        poller, client = pair.poller, pair.client
        left: list[weakref.ref[object]] = [weakref.ref(pair.protocol), weakref.ref(pair.near)]
        pair.begin()
        pair.transport.write(held)
        if is_reset:
            client.reset()
            await pair.lost()
        else:
            pair.transport.abort()
            await pair.lost()
            client.socket.close()
        asyncio.get_running_loop().set_exception_handler(None)
        del pair
        await settle()
        assert [each() for each in left] == [None, None]
        if isinstance(poller._poller, EpollPoller):
            assert poller._poller._owners == {}
        poller.close()
    finally:
        gc.enable()
