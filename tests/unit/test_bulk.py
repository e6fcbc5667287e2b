"""Writes to many sockets at once, beside what `test_live` holds of every way to write: what the kernel may refuse."""

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

from bridge.fanout import bulk
from bridge.fanout.bulk import BATCH, Bulk

if TYPE_CHECKING:
    from collections.abc import Iterator

COUNT = 2 * BATCH + 3


class Pairs:
    """Sockets with their other ends."""

    def __init__(self, stack: ExitStack, count: int) -> None:
        self.near, self.far = zip(*(socket.socketpair() for _ in range(count)), strict=True)
        for end in (*self.near, *self.far):
            end.setblocking(False)
            stack.enter_context(end)
        self.descriptors = array("i", [end.fileno() for end in self.near])

    def received(self) -> list[bytes]:
        return [end.recv(1000) for end in self.far]


def fill(end: socket.socket) -> None:
    """Until it takes nothing any more."""
    with suppress(BlockingIOError):
        while True:
            end.send(bytes(100_000))


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    with ExitStack() as stack:
        yield Pairs(stack, COUNT)


def test_more_sockets_than_fit_into_one_call_get_everything(pairs: Pairs) -> None:
    everybody = Bulk()
    assert everybody.write(pairs.descriptors, b"first") == []
    assert everybody.write(pairs.descriptors, b"second") == []
    assert pairs.received() == [b"firstsecond"] * COUNT


@pytest.mark.parametrize("bad", [0, 1, BATCH - 1, BATCH, COUNT - 1])
def test_descriptor_that_is_none_keeps_nobody_from_getting_everything(pairs: Pairs, bad: int) -> None:
    pairs.descriptors[bad] = -1
    assert Bulk().write(pairs.descriptors, b"frames") == [(-1, 0)]
    del pairs.descriptors[bad]
    assert [end.recv(1000) for number, end in enumerate(pairs.far) if number != bad] == [b"frames"] * (COUNT - 1)


def test_full_sockets_are_not_waited_for_wherever_they_are(pairs: Pairs) -> None:
    full = [0, BATCH - 1, BATCH, COUNT - 1]
    for number in full:
        fill(pairs.near[number])
    assert Bulk().write(pairs.descriptors, b"frames") == [(pairs.descriptors[number], 0) for number in full]


def test_descriptors_may_change_from_one_write_to_the_next(pairs: Pairs) -> None:
    some = Bulk()
    assert some.write(pairs.descriptors[:3], b"three") == []
    assert some.write(pairs.descriptors[1:2], b"one") == []
    assert [end.recv(1000) for end in pairs.far[:3]] == [b"three", b"threeone", b"three"]
    assert some.write(array("i"), b"nobody") == []


def test_context_of_the_kernel_ends_with_the_object() -> None:
    # In the unit of /proc/sys/fs/aio-max-nr; others on this machine may have some, too.
    def taken() -> int:
        return int(Path("/proc/sys/fs/aio-nr").read_text())

    many = [Bulk() for _ in range(8)]
    most = taken()
    many.clear()
    gc.collect()
    assert taken() <= most - 8 * BATCH


def test_machine_whose_calls_are_not_known_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    with pytest.raises(OSError, match="not implemented") as refusal:
        Bulk()
    assert refusal.value.errno == errno.ENOSYS


def test_kernel_that_has_no_room_for_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "BATCH", 2**22)
    with pytest.raises(OSError, match=os.strerror(errno.EAGAIN)):
        Bulk()


def test_results_that_can_not_be_had_are_an_error_and_no_silence(pairs: Pairs) -> None:
    bad = Bulk()
    bad._events = ctypes.c_void_p(1)
    with pytest.raises(OSError, match=os.strerror(errno.EFAULT)):
        bad.write(pairs.descriptors[:3], b"frames")
