"""Tests of what the kernel reports about real connections over loopback."""

from __future__ import annotations

import errno
import select
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from bridge.server.transport import tcp

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The bridge's end of a connection, and the client's end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with ours, client:
        yield ours, client


def test_bytes_count_once_the_client_has_them(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, client = pair
    before = tcp.acknowledged_bytes(ours)
    assert before is not None
    ours.sendall(b"x" * 1000)
    # The client has read all bytes, so its kernel has acknowledged these bytes, or will acknowledge them soon.
    received = client.recv(1000, socket.MSG_WAITALL)
    client.sendall(b"y")
    ours.recv(1)
    after = tcp.acknowledged_bytes(ours)
    assert after is not None
    assert after - before == len(received) == 1000


def test_end_of_the_client_shows_without_a_read(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, client = pair
    assert not tcp.has_ended(ours)
    client.shutdown(socket.SHUT_WR)
    ours.recv(1, socket.MSG_PEEK)
    assert tcp.has_ended(ours)


def test_closed_socket_is_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    ours.close()
    with pytest.raises(OSError, match="Bad file"):
        tcp.has_ended(ours)
    with pytest.raises(OSError, match="Bad file"):
        tcp.acknowledged_bytes(ours)


def test_kernel_without_tcp_info_reports_nothing(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "_HAS_TCP_INFO", False)
    assert tcp.acknowledged_bytes(pair[0]) is None
    assert not tcp.has_ended(pair[0])


def test_close_after_reset_on_close_resets_the_connection(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, client = pair
    tcp.reset_on_close(ours)
    ours.close()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_reset_of_a_socket_that_is_closed_or_missing_does_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    ours.close()
    tcp.reset_on_close(ours)
    tcp.reset_on_close(None)


def test_text_of_a_peer_is_its_address_and_port() -> None:
    assert tcp.PeerName("fd00::7", 54321).text == "fd00::7 port 54321"


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this kernel has no TCP_USER_TIMEOUT")
@pytest.mark.parametrize(("timeout_s", "timeout_ms"), [(120.0, 120_000), (0.1, 100), (0.0001, 1), (86400, 86_400_000)])
def test_user_timeout_is_set_in_milliseconds_and_never_to_the_default(
    pair: tuple[socket.socket, socket.socket], timeout_s: float, timeout_ms: int
) -> None:
    ours, _ = pair
    tcp.set_user_timeout(ours, timeout_s)
    assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == timeout_ms


def test_user_timeout_of_a_closed_socket_is_ignored(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    ours.close()
    tcp.set_user_timeout(ours, 1.0)


def test_kernel_without_user_timeout_keeps_its_own(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = pair
    monkeypatch.setattr(tcp, "_USER_TIMEOUT", None)
    monkeypatch.setattr(socket.socket, "setsockopt", None)
    tcp.set_user_timeout(ours, 1.0)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(errno.ETIMEDOUT, "timed out"), True),
        (OSError(errno.EHOSTUNREACH, "no route to host"), True),
        (OSError(errno.ENETUNREACH, "network is unreachable"), True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), False),
        (BrokenPipeError(errno.EPIPE, "broken pipe"), False),
        (RuntimeError("a fault of the bridge"), False),
        (None, False),
    ],
)
def test_timeout_of_the_kernel_is_told_from_other_ends(
    pair: tuple[socket.socket, socket.socket], error: Exception | None, *, expected: bool
) -> None:
    ours, client = pair
    client.shutdown(socket.SHUT_WR)
    ours.recv(1)
    assert tcp.has_timed_out(ours, error) is expected


@pytest.mark.parametrize("error", [None, BrokenPipeError(errno.EPIPE, "broken pipe")])
@pytest.mark.parametrize(
    ("info", "expected"),
    [(b"\x07\x00\x02", True), (b"\x07\x00\x00", False), (b"\x01\x00\x02", False), (b"\x08\x00\x02", False)],
    ids=["closed after retransmissions", "closed", "established", "ended by the client"],
)
def test_timeout_that_a_flush_has_ignored_is_found_in_the_state_of_the_connection(
    error: Exception | None, info: bytes, *, expected: bool
) -> None:
    """`test_vanished.py` has the real states."""

    class Client(socket.socket):
        def getsockopt(self, *_: int) -> bytes:  # type: ignore[override]  # with a size, the real method returns bytes
            return info

    with Client() as client:
        assert tcp.has_timed_out(client, error) is expected


@pytest.mark.parametrize("has_info", [True, False])
def test_timeout_of_a_closed_socket_is_unknown(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, *, has_info: bool
) -> None:
    monkeypatch.setattr(tcp, "_HAS_TCP_INFO", has_info)
    ours, _ = pair
    ours.close()
    assert not tcp.has_timed_out(ours, None)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this kernel has no TCP_USER_TIMEOUT")
def test_kernel_ends_the_connection_of_a_client_that_acknowledges_nothing_new(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """The client reads nothing, so that it can't acknowledge more than its kernel holds."""
    ours, client = pair
    ours.setblocking(False)
    tcp.set_user_timeout(ours, 0.05)
    with suppress(BlockingIOError):
        while True:
            ours.send(b"x" * 2**16)
    poll = select.poll()
    poll.register(ours, 0)
    assert poll.poll(20_000)
    with pytest.raises(TimeoutError) as raised:
        ours.recv(1)
    assert tcp.has_timed_out(ours, raised.value)
    client.close()
