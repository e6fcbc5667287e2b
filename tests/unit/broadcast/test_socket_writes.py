"""Tests of writes to many sockets at once.

The tests that apply to every way of writing to sockets are in `test_live_set`.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import platform
import socket
from array import array
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bridge.broadcast import socket_writes
from bridge.broadcast.socket_writes import BATCH_SOCKETS, IoSubmitWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

COUNT = 2 * BATCH_SOCKETS + 3


class Pairs:
    """Some pairs of connected sockets."""

    def __init__(self, stack: ExitStack, count: int) -> None:
        self.near, self.far = zip(*(socket.socketpair() for _ in range(count)), strict=True)
        for end in (*self.near, *self.far):
            end.setblocking(False)
            stack.enter_context(end)
        self.descriptors = array("i", [end.fileno() for end in self.near])

    def received(self) -> list[bytes]:
        return [end.recv(1000) for end in self.far]


def fill(end: socket.socket) -> None:
    """Writes to the socket until it is full."""
    with suppress(BlockingIOError):
        while True:
            end.send(bytes(100_000))


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    with ExitStack() as stack:
        yield Pairs(stack, COUNT)


def test_more_sockets_than_fit_into_one_call_get_everything(pairs: Pairs) -> None:
    everybody = IoSubmitWriter()
    assert everybody.write(pairs.descriptors, b"first") == []
    assert everybody.write(pairs.descriptors, b"second") == []
    assert pairs.received() == [b"firstsecond"] * COUNT


@pytest.mark.parametrize("bad", [0, 1, BATCH_SOCKETS - 1, BATCH_SOCKETS, COUNT - 1])
def test_invalid_descriptor_does_not_keep_other_sockets_from_getting_everything(pairs: Pairs, bad: int) -> None:
    pairs.descriptors[bad] = -1
    assert IoSubmitWriter().write(pairs.descriptors, b"frames") == [(-1, 0)]
    del pairs.descriptors[bad]
    assert [end.recv(1000) for number, end in enumerate(pairs.far) if number != bad] == [b"frames"] * (COUNT - 1)


def test_full_sockets_do_not_block_the_others(pairs: Pairs) -> None:
    full = [0, BATCH_SOCKETS - 1, BATCH_SOCKETS, COUNT - 1]
    for number in full:
        fill(pairs.near[number])
    assert IoSubmitWriter().write(pairs.descriptors, b"frames") == [(pairs.descriptors[number], 0) for number in full]


def test_descriptors_may_change_from_one_write_to_the_next(pairs: Pairs) -> None:
    some = IoSubmitWriter()
    assert some.write(pairs.descriptors[:3], b"three") == []
    assert some.write(pairs.descriptors[1:2], b"one") == []
    assert [end.recv(1000) for end in pairs.far[:3]] == [b"three", b"threeone", b"three"]
    assert some.write(array("i"), b"nobody") == []


def test_each_socket_gets_its_own_bytes_although_some_sockets_do_not_take_theirs(pairs: Pairs) -> None:
    records = [str(number).encode() * (1 + number % 3) for number in range(COUNT)]
    some = IoSubmitWriter()
    full = [0, BATCH_SOCKETS - 1, BATCH_SOCKETS, COUNT - 1]
    for number in full:
        fill(pairs.near[number])
    assert some.write_each(pairs.descriptors, records) == [(number, 0) for number in full]
    received = [end.recv(1000) for number, end in enumerate(pairs.far) if number not in full]
    assert received == [record for number, record in enumerate(records) if number not in full]
    assert some.write_each(pairs.descriptors[1:2], [b"one"]) == []
    assert some.write_each(array("i"), []) == []
    assert some.write(pairs.descriptors[1:3], b"same") == []
    assert [end.recv(1000) for end in pairs.far[1:3]] == [b"onesame", b"same"]


@pytest.mark.parametrize("bad", [0, 1, BATCH_SOCKETS - 1, BATCH_SOCKETS, COUNT - 1])
def test_invalid_descriptor_does_not_keep_other_sockets_from_getting_their_own_bytes(pairs: Pairs, bad: int) -> None:
    records = [str(number).encode() for number in range(COUNT)]
    pairs.descriptors[bad] = -1
    assert IoSubmitWriter().write_each(pairs.descriptors, records) == [(bad, 0)]
    received = [end.recv(1000) for number, end in enumerate(pairs.far) if number != bad]
    assert received == [record for number, record in enumerate(records) if number != bad]


def test_context_of_the_kernel_is_freed_with_the_object() -> None:
    def contexts() -> int:
        """Counts the AIO contexts that the kernel has for this process.

        For each context, the kernel maps a buffer for the results into the memory of this process.
        """
        return Path("/proc/self/maps").read_text().count("/[aio]")

    gc.collect()
    before = contexts()
    some = IoSubmitWriter()
    assert contexts() == before + 1
    del some
    gc.collect()
    assert contexts() == before


def test_machine_with_unknown_system_call_numbers_is_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    with pytest.raises(OSError, match="not implemented") as refusal:
        IoSubmitWriter()
    assert refusal.value.errno == errno.ENOSYS


def test_kernel_without_room_for_the_context_raises_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_writes, "BATCH_SOCKETS", 2**22)
    with pytest.raises(OSError, match=os.strerror(errno.EAGAIN)):
        IoSubmitWriter()


class Faulty:
    """Replaces the writer's system calls, and makes one call of io_getevents fail."""

    def __init__(self, some: IoSubmitWriter, at: int, number: int) -> None:
        self._call = some._call
        self._asks = some._get_events
        self._left = at
        self._number = number

    def __call__(self, call: ctypes.c_long, *arguments: object) -> int:
        if call is self._asks:
            self._left -= 1
            if self._left == 0:
                ctypes.set_errno(self._number)
                return -1
        done: int = self._call(call, *arguments)
        return done


def test_lost_results_shut_down_their_sockets_and_no_client_misses_bytes(pairs: Pairs) -> None:
    some = IoSubmitWriter()
    some._call = Faulty(some, 2, errno.EFAULT)  # type: ignore[assignment]  # an error that can't be caused on Linux
    aborted = list(pairs.descriptors[BATCH_SOCKETS : 2 * BATCH_SOCKETS])
    fill(pairs.near[2 * BATCH_SOCKETS])
    assert some.write(pairs.descriptors, b"first") == [
        *((descriptor, 0) for descriptor in aborted),
        (pairs.descriptors[2 * BATCH_SOCKETS], 0),
    ]
    # After the error, the writer makes a separate call for each socket, because the AIO context may still return old
    # results.
    assert [taken for _, taken in some.write(pairs.descriptors, b"second")] == [0] * (BATCH_SOCKETS + 1)
    for far in (*pairs.far[:BATCH_SOCKETS], *pairs.far[2 * BATCH_SOCKETS + 1 :]):
        assert far.recv(1000) == b"firstsecond"
    for far in pairs.far[BATCH_SOCKETS : 2 * BATCH_SOCKETS]:
        assert far.recv(1000) in (b"", b"first")
        assert far.recv(1000) == b""


def test_lost_results_of_different_records_shut_down_their_sockets(pairs: Pairs) -> None:
    some = IoSubmitWriter()
    some._call = Faulty(some, 1, errno.EFAULT)  # type: ignore[assignment]  # an error that can't be caused on Linux
    records = [b"a record"] * COUNT
    assert some.write_each(pairs.descriptors, records) == [(number, 0) for number in range(BATCH_SOCKETS)]
    for far in pairs.far[BATCH_SOCKETS:]:
        assert far.recv(1000) == b"a record"


def test_call_interrupted_by_a_signal_is_repeated(pairs: Pairs) -> None:
    some = IoSubmitWriter()
    some._call = Faulty(some, 1, errno.EINTR)  # type: ignore[assignment]  # a signal at this exact moment
    assert some.write(pairs.descriptors, b"frames") == []
    assert pairs.received() == [b"frames"] * COUNT


def test_kernel_that_refuses_to_write_to_sockets_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """When an IoSubmitWriter writes to a socket, gVisor refuses each write with the error ESPIPE.

    This test causes ESPIPE by writing at an offset, which a socket does not support.
    """
    layout = socket_writes.IOCB

    class Displaced:
        size = layout.size

        @staticmethod
        def pack_into(memory: bytearray, at: int, *fields: int) -> None:
            layout.pack_into(memory, at, *fields[:8], 1, *fields[9:])

    monkeypatch.setattr(socket_writes, "IOCB", Displaced)
    with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
        IoSubmitWriter()
