"""Tests that each socket of a live set gets all bytes, or that the set returns how many bytes the socket took."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.broadcast import live_set, socket_writes
from bridge.broadcast.live_set import (
    ENCRYPTED_BYTES,
    GROUP_BYTES,
    GROUP_SOCKETS,
    BroadcastWriter,
    LiveSet,
    TlsSocket,
    encrypted_connections,
    group_sockets,
)
from bridge.broadcast.socket_writes import BATCH_SOCKETS, try_write

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator, Sequence

FRAMES = bytes(range(256)) * 1000
"""Frames that are too large in total for a single write to a socket with a small buffer."""


class Peer:
    """A slot without a connection."""

    def __init__(self, descriptor: int | None) -> None:
        self.descriptor = descriptor
        self.slot = -1

    @property
    def tls_socket(self) -> TlsSocket:
        raise AssertionError("the connection does not use TLS")


class TlsPeer(Peer):
    """A slot that uses TLS, without a connection."""

    def __init__(self) -> None:
        super().__init__(None)

    @property
    def tls_socket(self) -> TlsSocket:
        return cast("TlsSocket", self)


class Client(Peer):
    """A slot with a real socket, and the other end of this socket."""

    def __init__(self, *, little_room: bool = False) -> None:
        self.near, self.far = socket.socketpair()
        for end in (self.near, self.far):
            end.setblocking(False)
        if little_room:
            self.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        super().__init__(self.near.fileno())

    def read(self) -> bytes:
        read = bytearray()
        while True:
            try:
                read += self.far.recv(65536)
            except BlockingIOError:
                return bytes(read)

    def fill(self) -> None:
        """Writes to the socket until it is full."""
        while True:
            try:
                self.near.send(FRAMES)
            except BlockingIOError:
                return

    def end(self) -> None:
        self.near.close()
        self.far.close()


class TlsClient(Client):
    """A slot with a real socket, whose transport encrypts by adding angle brackets."""

    def __init__(self, live: LiveSet[Peer], *, little_room: bool = False) -> None:
        super().__init__(little_room=little_room)
        self._live = live
        self.descriptor = None
        self.kept: list[bytes] = []
        self.fault: Exception | None = None
        self.is_closed = False

    @property
    def tls_socket(self) -> TlsSocket:
        return self

    def fileno(self) -> int:
        assert not self.is_closed
        return self.near.fileno()

    def encrypt(self, data: bytes) -> bytes:
        if self.fault is not None:
            raise self.fault
        return b"" if self.is_closed else b"<" + data + b">"

    def keep(self, records: bytes, taken: int) -> None:
        self.kept.append(records[taken:])
        self._live.discard(self)


class LiveSockets(LiveSet[Peer]):
    """A live set of connections with real sockets."""

    def __init__(self, stack: ExitStack) -> None:
        super().__init__()
        self._stack = stack
        self._writer = BroadcastWriter()

    def write(self, frames: bytes) -> list[tuple[Peer, int]]:
        self.begin_round(1)
        return [each for _, short, _ in self._writer.write([self], frames) for each in short]

    def encrypt(self, frames: bytes) -> list[tuple[Peer, Exception]]:
        self.begin_round(1)
        failed = []
        while self.tls_sockets.next_unserved is not None:
            failed += self._writer.encrypt(self, frames)[1]
        return failed

    def client(self, *, little_room: bool = False) -> Client:
        client = Client(little_room=little_room)
        self._stack.callback(client.end)
        self.add(client)
        return client

    def tls_client(self, *, little_room: bool = False) -> TlsClient:
        client = TlsClient(self, little_room=little_room)
        self._stack.callback(client.end)
        self.add(client)
        return client


@pytest.fixture(params=["each", "many at once", "two at once"])
def sockets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveSockets]:
    """Runs each test once for each way of writing to sockets, because all ways must have the same results."""
    monkeypatch.setattr(live_set, "MIN_BATCHED_SOCKETS", 1000 if request.param == "each" else 1)
    if request.param == "two at once":
        monkeypatch.setattr(socket_writes, "BATCH_SOCKETS", 2)
    with ExitStack() as stack:
        yield LiveSockets(stack)


# Writing


def test_every_socket_gets_all_bytes_and_none_is_returned(sockets: LiveSockets) -> None:
    clients = [sockets.client() for _ in range(10)]
    assert sockets.write(b"first") == []
    assert sockets.write(b"second") == []
    assert [client.read() for client in clients] == [b"firstsecond"] * 10


def test_empty_set_is_written_to() -> None:
    live: LiveSet[Peer] = LiveSet()
    assert list(BroadcastWriter().write([live], b"frames")) == []


def test_socket_that_takes_a_part_is_returned_with_the_size_of_the_part(sockets: LiveSockets) -> None:
    before, slow, after = sockets.client(), sockets.client(little_room=True), sockets.client()
    frames = FRAMES[:50_000]
    [(returned, taken)] = sockets.write(frames)
    assert returned is slow
    assert 0 < taken < len(frames)
    assert slow.read() == frames[:taken]
    assert before.read() == after.read() == frames


def test_full_socket_is_returned_with_0_bytes(sockets: LiveSockets) -> None:
    before, full, after = sockets.client(), sockets.client(little_room=True), sockets.client()
    full.fill()
    assert sockets.write(b"frames") == [(full, 0)]
    assert b"frames" not in full.read()
    assert before.read() == after.read() == b"frames"


def test_socket_closed_by_its_peer_is_returned_with_0_bytes(
    sockets: LiveSockets,
) -> None:
    before, gone, after = sockets.client(), sockets.client(), sockets.client()
    gone.far.close()
    with pytest.raises(BrokenPipeError):
        os.write(gone.near.fileno(), b"frames")
    assert sockets.write(b"frames") == [(gone, 0)]
    assert before.read() == after.read() == b"frames"


def test_several_short_writes_are_returned_each_with_its_own_size(sockets: LiveSockets) -> None:
    clients = [sockets.client(little_room=number % 2 == 0) for number in range(6)]
    clients[1].far.close()
    clients[2].fill()
    frames = FRAMES[:50_000]
    returned = sockets.write(frames)
    assert [client for client, _ in returned] == [clients[number] for number in (0, 1, 2, 4)]
    assert [taken for _, taken in returned][1:3] == [0, 0]
    for slow, taken in returned:
        if slow in (clients[0], clients[4]):
            assert isinstance(slow, Client)
            assert slow.read() == frames[:taken] != b""
    assert clients[3].read() == clients[5].read() == frames


def test_returned_connection_stays_in_the_set_until_it_is_discarded(sockets: LiveSockets) -> None:
    clients = [sockets.client() for _ in range(5)]
    for client in clients[:4]:
        client.far.close()
    for short, _ in sockets.write(b"frames"):
        assert short in sockets
        sockets.discard(short)
    assert list(sockets) == [clients[4]]
    assert sockets.write(b"frames") == []


def test_next_frames_may_be_longer_or_shorter(sockets: LiveSockets) -> None:
    clients = [sockets.client() for _ in range(3)]
    for frames in (b"a", b"three", b"", b"ab"):
        assert sockets.write(frames) == []
    assert [client.read() for client in clients] == [b"athreeab"] * 3


def test_without_io_submit_each_socket_is_written_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live_set, "MIN_BATCHED_SOCKETS", 2)
    monkeypatch.setattr(socket_writes, "SYSCALL_NUMBERS", {})
    with ExitStack() as stack:
        sockets = LiveSockets(stack)
        first = sockets.client()
        assert sockets.write(b"one") == []
        assert capsys.readouterr().out == ""
        second = sockets.client()
        for frames in (b"two", b"three"):
            assert sockets.write(frames) == []
        assert (first.read(), second.read()) == (b"onetwothree", b"twothree")
    said = capsys.readouterr().out
    assert said.count("io_submit is not available") == 1
    assert "Function not implemented" in said


def test_discarded_connection_is_not_written_to(sockets: LiveSockets) -> None:
    clients = [sockets.client() for _ in range(3)]
    sockets.discard(clients[0])
    sockets.write(b"frames")
    assert [client.read() for client in clients] == [b"", b"frames", b"frames"]


def test_connection_with_tls_is_in_the_set_and_plain_frames_are_not_written_to_its_socket(
    sockets: LiveSockets,
) -> None:
    client, encrypted = sockets.client(), sockets.tls_client()
    assert sockets.tls_sockets.connections == [encrypted]
    assert (len(sockets), set(sockets)) == (2, {client, encrypted})
    assert encrypted in sockets
    assert sockets.write(b"frames") == []
    assert (client.read(), encrypted.read()) == (b"frames", b"")
    assert sockets.encrypt(b"frames") == []
    assert (client.read(), encrypted.read()) == (b"", b"<frames>")
    sockets.discard(encrypted)
    assert not sockets.tls_sockets.connections
    assert encrypted not in sockets


# Writing with TLS


def test_every_tls_socket_gets_its_own_records(sockets: LiveSockets) -> None:
    clients = [sockets.tls_client() for _ in range(10)]
    for frames in (b"first", b"2", b"third"):
        assert sockets.encrypt(frames) == []
    assert [client.read() for client in clients] == [b"<first><2><third>"] * 10
    assert [client.kept for client in clients] == [[]] * 10


@pytest.mark.parametrize(
    ("frames_bytes", "sockets"),
    [(0, GROUP_SOCKETS), (GROUP_BYTES // GROUP_SOCKETS, GROUP_SOCKETS), (GROUP_BYTES // 2, 2), (2 * GROUP_BYTES, 1)],
)
def test_number_of_sockets_to_write_to_is_bounded(frames_bytes: int, sockets: int) -> None:
    assert group_sockets(bytes(frames_bytes)) == sockets


def test_large_frames_are_written_to_few_sockets_at_once(sockets: LiveSockets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_set, "GROUP_BYTES", 15)
    for _ in range(7):
        sockets.client()
    sockets.begin_round(1)
    groups = BroadcastWriter().write([sockets], b"12345")
    assert [(count, more) for count, _, more in groups] == [(3, True), (3, True), (1, False)]


def test_empty_set_is_encrypted_for() -> None:
    live: LiveSet[Peer] = LiveSet()
    assert BroadcastWriter().encrypt(live, b"frames") == (0, [])


def test_transport_keeps_the_records_that_its_socket_does_not_take(sockets: LiveSockets) -> None:
    before, slow, full, gone, after = clients = [sockets.tls_client(little_room=at in (1, 2)) for at in range(5)]
    full.fill()
    gone.far.close()
    frames = FRAMES[:50_000]
    assert sockets.encrypt(frames) == []
    received = slow.read()
    assert 0 < len(received) < len(frames)
    assert [received + kept for kept in slow.kept] == [b"<" + frames + b">"]
    assert [full.kept, gone.kept] == [[b"<" + frames + b">"]] * 2
    assert [client in sockets for client in clients] == [True, False, False, False, True]
    assert sockets.encrypt(b"next") == []
    assert before.read() == after.read() == b"<" + frames + b"><next>"
    assert [len(client.kept) for client in clients] == [0, 1, 1, 1, 0]


def test_all_connections_with_tls_are_written_to_although_some_fail_and_some_are_closed(sockets: LiveSockets) -> None:
    closed, failing, *others = [sockets.tls_client() for _ in range(6)]
    closed.is_closed = True
    failing.fault = fault = RuntimeError("a bug")
    assert sockets.encrypt(b"frames") == [(failing, fault)]
    assert [client.read() for client in others] == [b"<frames>"] * 4
    assert closed.read() == failing.read() == b""
    assert [client.kept for client in (closed, failing, *others)] == [[]] * 6


@pytest.mark.parametrize("frames_bytes", [1, 10, ENCRYPTED_BYTES, 2 * ENCRYPTED_BYTES])
def test_at_most_the_maximum_is_encrypted_before_the_records_are_written(
    sockets: LiveSockets, monkeypatch: pytest.MonkeyPatch, frames_bytes: int
) -> None:
    """The sockets would take any number of bytes, because the test replaces the writes."""
    clients = [sockets.tls_client() for _ in range(5)]
    encrypted = 0
    batches = []

    def write_each(descriptors: array[int], records: Sequence[bytes]) -> list[tuple[int, int]]:
        nonlocal encrypted
        batches.append((encrypted, len(descriptors)))
        encrypted = 0
        return []

    def encrypt(data: bytes) -> bytes:
        nonlocal encrypted
        encrypted += len(data)
        return data

    monkeypatch.setattr(live_set, "ENCRYPTED_BYTES", 20)
    monkeypatch.setattr(live_set, "try_write_each", write_each)
    monkeypatch.setattr(live_set, "MIN_BATCHED_SOCKETS", 1000)
    for client in clients:
        monkeypatch.setattr(client, "encrypt", encrypt)
    assert sockets.encrypt(bytes(frames_bytes)) == []
    sizes = {1: [5], 10: [2, 2, 1]}.get(frames_bytes, [1] * 5)
    assert batches == [(frames_bytes * size, size) for size in sizes]


@pytest.mark.parametrize(
    ("frames_bytes", "connections"), [(0, BATCH_SOCKETS), (1, BATCH_SOCKETS), (16384, 32), (ENCRYPTED_BYTES + 1, 1)]
)
def test_number_of_connections_to_encrypt_for_is_bounded(frames_bytes: int, connections: int) -> None:
    assert encrypted_connections(bytes(frames_bytes)) == connections


def test_single_socket_is_written_to(sockets: LiveSockets) -> None:
    client, slow, full, gone = [sockets.client(little_room=True) for _ in range(4)]
    full.fill()
    gone.far.close()
    assert try_write(client.near.fileno(), b"frames") == 6
    assert client.read() == b"frames"
    taken = try_write(slow.near.fileno(), FRAMES)
    assert 0 < taken < len(FRAMES)
    assert slow.read() == FRAMES[:taken]
    assert try_write(full.near.fileno(), b"frames") == 0
    assert try_write(gone.near.fileno(), b"frames") == 0


# Membership


def test_connections_may_be_discarded_during_an_iteration() -> None:
    live: LiveSet[Peer] = LiveSet()
    peers = [TlsPeer() if number % 3 == 0 else Peer(number) for number in range(9)]
    for peer in peers:
        live.add(peer)
    seen = []
    for peer in live:
        seen.append(peer)
        live.discard(peer)
    assert sorted(map(id, seen)) == sorted(map(id, peers))
    assert len(live) == 0
    for peer in peers:
        live.add(peer)
    for peer in tuple(live.tls_sockets.connections):
        live.discard(peer)
    assert len(live) == 6


@given(st.lists(st.integers(0, 11), max_size=60))
def test_live_set_agrees_with_a_set_after_any_adds_and_discards(numbers: list[int]) -> None:
    """Each number stands for a peer, and adds this peer to the set.

    If the peer is already in the set, the peer is removed twice, as if its connection were closed and then lost.
    """
    live: LiveSet[Peer] = LiveSet()
    peers = [TlsPeer() if number % 4 == 3 else Peer(100 + number) for number in range(12)]
    model: set[Peer] = set()
    for number in numbers:
        peer = peers[number]
        if peer in model:
            model.remove(peer)
            live.discard(peer)
            live.discard(peer)
        else:
            model.add(peer)
            live.add(peer)
        assert len(live) == len(model)
        assert set(live) == model
        assert [each in live for each in peers] == [each in model for each in peers]
        direct = [each for each in live if each.descriptor is not None]
        assert [each.slot for each in direct] == list(range(len(direct)))
        assert list(live.sockets.values) == [each.descriptor for each in direct]
        encrypted = [each for each in live if each.descriptor is None]
        assert [each.slot for each in encrypted] == list(range(len(encrypted)))
        assert live.tls_sockets.values == [each.tls_socket for each in encrypted]
        assert {each.slot for each in peers if each not in model} <= {-1}
