"""The same bytes to many sockets, with two system calls for hundreds of them instead of one for each.

Linux takes a list of writes at once (`io_submit(2)`, made for files). To a socket it does them there and then, one
after the other, without waiting where there is no room; the second call asks what became of them. A delivery costs a
seventh less than with `os.write`, and less than in a loop in C that calls `send` (`make bench`, paced).

What is written here of the kernel is from its `fs/aio.c` and `include/uapi/linux/aio_abi.h`. Containers usually allow
it, unlike io_uring.

This file must never know whose sockets they are.
"""

import ctypes
import errno
import os
import platform
import socket
import struct
import sys
from array import array
from collections.abc import Iterable
from contextlib import suppress
from weakref import finalize

BATCH = 512
"""Sockets for each pair of calls: what describes them stays in the processor's own caches."""

CALLS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}
"""By machine, the numbers of io_setup, io_destroy, io_getevents and io_submit: the C library has no names for them."""

IOCB = struct.Struct("=QIiHhIQQqQII")
"""One write: number, key, flags, operation, priority, descriptor, address, count, offset, and three that stay 0."""

DESCRIPTOR_AT = 20

WRITE_VECTOR = 8
"""The operation. Its address is a vector's, and all share one: that alone says what is to be written this time."""

EVENT = struct.Struct("=QQqq")
"""What became of one write: its number, its address, the bytes taken or the negative error, and one that stays 0."""


def try_write(descriptor: int, frames: bytes) -> int:
    """Writes to one socket; returns the bytes that it took."""
    try:
        return os.write(descriptor, frames)
    except OSError:
        # Full, or broken: the transport will find out.
        return 0


def try_write_all(descriptors: Iterable[int], frames: bytes) -> list[tuple[int, int]]:
    """Writes to every socket; returns those that did not take everything, each with the bytes that it took."""
    short: list[tuple[int, int]] = []
    size, write = len(frames), os.write
    for descriptor in descriptors:
        # Not write_one: with a thousand sockets its call would be one percent of all (`make bench`, paced).
        try:
            taken = write(descriptor, frames)
        except OSError:
            taken = 0
        if taken != size:
            short.append((descriptor, taken))
    return short


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


class IoSubmitWriter:
    """Writes to many sockets at once. Its context of the kernel's ends with it."""

    def __init__(self) -> None:
        """Raises OSError where the system does not have it or allow it, has no room for it, or means files only."""
        numbers = CALLS.get(platform.machine())
        if sys.platform != "linux" or numbers is None or sys.maxsize < 2**32:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        setup, destroy, self._get_events, self._submit = map(ctypes.c_long, numbers)
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._call.restype = ctypes.c_long
        self._context = ctypes.c_ulong(0)
        if self._call(setup, ctypes.c_long(BATCH), ctypes.byref(self._context)):
            raise _error()
        # Not at the end of the program: it takes some milliseconds, and the kernel does it by itself then.
        finalize(self, self._call, destroy, self._context).atexit = False
        self._vector = _Vector()
        iocbs, events = bytearray(IOCB.size * BATCH), bytearray(EVENT.size * BATCH)
        for number in range(BATCH):
            fields = (number, 0, 0, WRITE_VECTOR, 0, 0, ctypes.addressof(self._vector), 1, 0, 0, 0, 0)
            IOCB.pack_into(iocbs, IOCB.size * number, *fields)
        first = _address(iocbs)
        self._iocbs = (ctypes.c_void_p * BATCH)(*(first + IOCB.size * number for number in range(BATCH)))
        self._descriptors = memoryview(iocbs).cast("i")[DESCRIPTOR_AT // 4 :: IOCB.size // 4]
        self._events = ctypes.c_void_p(_address(events))
        words = memoryview(events).cast("q")
        self._numbers, self._results = words[0 :: EVENT.size // 8], words[2 :: EVENT.size // 8]
        self._whole = memoryview(array("q", [0] * BATCH))
        """What the results are when every socket has taken everything."""
        self._broken = False
        """True once results could not be had: what the context holds then must never pass for other writes' results."""
        self._try()

    def write(self, descriptors: "array[int]", frames: bytes) -> list[tuple[int, int]]:
        """Writes to every socket; returns those that did not take everything, each with the bytes that it took."""
        size = len(frames)
        self._vector.base, self._vector.length = frames, size
        if self._whole[0] != size:
            self._whole = memoryview(array("q", [size]) * BATCH)
        short: list[tuple[int, int]] = []
        for start in range(0, len(descriptors), BATCH):
            batch = descriptors[start : start + BATCH]
            if self._broken:
                short += try_write_all(batch, frames)
            else:
                self._write(batch, frames, short)
        return short

    def _try(self) -> None:
        """A kernel that is not Linux itself (gVisor, say) may have the calls, and refuse each write to a socket."""
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            if self.write(array("i", [near.fileno()]), b"x") or self._broken:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def _write(self, batch: "array[int]", frames: bytes, short: list[tuple[int, int]]) -> None:
        count = len(batch)
        self._descriptors[:count] = memoryview(batch)
        done = max(0, self._call(self._submit, self._context, ctypes.c_long(count), self._iocbs))
        if done < count:
            # One that the kernel will not even try ends the list before it.
            short += try_write_all(batch[done:], frames)
        submitted, known = batch[:done], len(short)
        while done:
            least = ctypes.c_long(done)
            ended = self._call(self._get_events, self._context, least, least, self._events, None)
            if ended < 0 and ctypes.get_errno() == errno.EINTR:
                continue
            if ended < 0:
                short[known:] = self._abort(submitted)
                return
            if self._results[:ended] != self._whole[:ended]:
                results = zip(self._numbers[:ended], self._results[:ended], strict=True)
                short += [(batch[number], max(0, taken)) for number, taken in results if taken != len(frames)]
            done -= ended

    def _abort(self, descriptors: "array[int]") -> list[tuple[int, int]]:
        """Ends sockets of which nobody knows what they took: better a client that reconnects than one with a hole."""
        self._broken = True
        for descriptor in descriptors:
            with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as forsaken:
                forsaken.shutdown(socket.SHUT_RDWR)
        return [(descriptor, 0) for descriptor in descriptors]


def _address(memory: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
