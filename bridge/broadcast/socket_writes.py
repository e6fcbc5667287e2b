"""Writes to many sockets directly, without using their asyncio transports.

All sockets get the same bytes, or each socket gets its own bytes, which are encrypted with its own key.

`IoSubmitWriter` needs two system calls for hundreds of sockets. The system call `io_submit(2)`, which was made for
files, takes a list of writes. For sockets, `io_submit` writes immediately to one socket after the other, and does not
wait if a socket is full. A second system call, `io_getevents`, returns the results. A write with `io_submit` takes a
seventh less time than a write with `os.write`. A write with `io_submit` also takes less time than a write by a C loop
that calls `send` (`make bench`, paced). Unlike io_uring, these system calls are usually allowed in containers.

The memory layouts and the numbers of the system calls are from the kernel's `fs/aio.c` and
`include/uapi/linux/aio_abi.h`.
"""

import ctypes
import errno
import os
import platform
import socket
import struct
import sys
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import repeat
from weakref import finalize

BATCH_SOCKETS = 512
"""The maximum number of sockets in one pair of system calls.

The control blocks for this number of sockets still fit into the processor's caches.
"""

SYSCALL_NUMBERS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}
"""The numbers of the system calls io_setup, io_destroy, io_getevents and io_submit on each type of machine.

The C library has no functions for these system calls.
"""

IOCB = struct.Struct("=QIiHhIQQqQII")
"""The layout of a control block, which describes one write: number, key, flags, operation, priority, descriptor,
address, count, offset, and three fields that stay 0."""

DESCRIPTOR_OFFSET = 20
"""The offset of the descriptor in a control block, in bytes."""

IOCB_CMD_PWRITEV = 8
"""The operation in each control block.

The address in a control block is that of a vector, which in turn points to the bytes to write. If all sockets get the
same bytes, all control blocks share one vector. For new bytes, only this vector changes.
"""

IO_EVENT = struct.Struct("=QQqq")
"""The layout of the result of one write: number, address, the number of bytes written or the negative error number, and
a field that stays 0."""


def try_write(descriptor: int, frames: bytes) -> int:
    """Writes to one socket. Returns the number of bytes that the socket took."""
    try:
        return os.write(descriptor, frames)
    except OSError:
        # The socket is full, or its connection is lost. The transport will find out which of the two is true.
        return 0


def try_write_all(descriptors: Iterable[int], frames: bytes) -> list[tuple[int, int]]:
    """Writes to every socket.

    Returns the sockets that did not take all bytes, each with the number of bytes that it took.
    """
    short: list[tuple[int, int]] = []
    size, write = len(frames), os.write
    for descriptor in descriptors:
        # The loop does not call `try_write`: with a thousand sockets, the function calls would add 1 % to the time of
        # the writes (`make bench`, paced).
        try:
            taken = write(descriptor, frames)
        except OSError:
            taken = 0
        if taken != size:
            short.append((descriptor, taken))
    return short


def try_write_each(descriptors: Iterable[int], records: Sequence[bytes]) -> list[tuple[int, int]]:
    """Writes its own bytes to every socket.

    Returns the indexes of the sockets that did not take all bytes, each with the number of bytes that the socket took.
    """
    taken = map(try_write, descriptors, records)
    return [
        (index, size) for index, (size, record) in enumerate(zip(taken, records, strict=True)) if size != len(record)
    ]


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


class _ControlBlocks:
    """The control blocks of `BATCH_SOCKETS` writes."""

    def __init__(self, vectors: Iterable[int]) -> None:
        """`vectors` has the address of the vector of each write."""
        iocbs = bytearray(IOCB.size * BATCH_SOCKETS)
        for number, vector in zip(range(BATCH_SOCKETS), vectors, strict=False):
            IOCB.pack_into(iocbs, IOCB.size * number, number, 0, 0, IOCB_CMD_PWRITEV, 0, 0, vector, 1, 0, 0, 0, 0)
        first = _address(iocbs)
        self.pointers = (ctypes.c_void_p * BATCH_SOCKETS)(
            *(first + IOCB.size * number for number in range(BATCH_SOCKETS))
        )
        self.descriptors = memoryview(iocbs).cast("i")[DESCRIPTOR_OFFSET // 4 :: IOCB.size // 4]


class IoSubmitWriter:
    """Writes to many sockets at once. The kernel's context for the writes is freed when this object is deleted."""

    def __init__(self) -> None:
        """Raises OSError if the system calls do not exist, are not allowed, or support only files."""
        numbers = SYSCALL_NUMBERS.get(platform.machine())
        if sys.platform != "linux" or numbers is None or sys.maxsize < 2**32:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        setup, destroy, self._get_events, self._submit = map(ctypes.c_long, numbers)
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._call.restype = ctypes.c_long
        self._context = ctypes.c_ulong(0)
        if self._call(setup, ctypes.c_long(BATCH_SOCKETS), ctypes.byref(self._context)):
            raise _error()
        # The context is not freed at the end of the program: freeing it takes some milliseconds, and the kernel frees
        # it anyway.
        finalize(self, self._call, destroy, self._context).atexit = False
        self._vector = _Vector()
        self._alike = _ControlBlocks(repeat(ctypes.addressof(self._vector)))
        """The writes of `write`, which share one vector."""
        vectors = array("Q", bytes(ctypes.sizeof(_Vector) * BATCH_SOCKETS))
        first, size = vectors.buffer_info()[0], ctypes.sizeof(_Vector)
        self._each = _ControlBlocks(range(first, first + size * BATCH_SOCKETS, size))
        """The writes of `write_each`, which have a vector each."""
        self._bases, self._sizes = memoryview(vectors)[0::2], memoryview(vectors)[1::2]
        events = bytearray(IO_EVENT.size * BATCH_SOCKETS)
        self._events = ctypes.c_void_p(_address(events))
        words = memoryview(events).cast("q")
        self._numbers, self._results = words[0 :: IO_EVENT.size // 8], words[2 :: IO_EVENT.size // 8]
        self._complete = memoryview(array("q", [0] * BATCH_SOCKETS))
        """The results that a system call returns if every socket has taken all bytes."""
        self._broken = False
        """Whether the results of a system call were lost.

        A later call could receive the lost results, and mistake them for the results of its own writes.
        """
        self._probe()

    def write(self, descriptors: "array[int]", frames: bytes) -> list[tuple[int, int]]:
        """Writes the same bytes to every socket.

        Returns the sockets that did not take all bytes, each with the number of bytes that it took.
        """
        size = len(frames)
        self._vector.base, self._vector.length = frames, size
        if self._complete[0] != size:
            self._complete = memoryview(array("q", [size]) * BATCH_SOCKETS)
        short: list[tuple[int, int]] = []
        for start in range(0, len(descriptors), BATCH_SOCKETS):
            batch = descriptors[start : start + BATCH_SOCKETS]
            done, incomplete = self._submit_batch(self._alike, batch, self._complete)
            short += [(batch[number], taken) for number, taken in incomplete]
            if done < len(batch):
                short += try_write_all(batch[done:], frames)
        return short

    def write_each(self, descriptors: "array[int]", records: Sequence[bytes]) -> list[tuple[int, int]]:
        """Writes its own bytes to every socket.

        Returns the indexes of the sockets that did not take all bytes, each with the number of bytes that the socket
        took.
        """
        short: list[tuple[int, int]] = []
        for start in range(0, len(descriptors), BATCH_SOCKETS):
            batch, written = descriptors[start : start + BATCH_SOCKETS], records[start : start + BATCH_SOCKETS]
            count = len(batch)
            sizes = array("q", map(len, written))
            # The array of pointers keeps the bytes in memory during the call.
            pointers = (ctypes.c_char_p * count)(*written)
            self._bases[:count] = memoryview(pointers).cast("B").cast("Q")
            self._sizes[:count] = memoryview(sizes).cast("B").cast("Q")
            done, incomplete = self._submit_batch(self._each, batch, memoryview(sizes))
            incomplete += [(done + index, taken) for index, taken in try_write_each(batch[done:], written[done:])]
            short += [(start + number, taken) for number, taken in incomplete]
        return short

    def _probe(self) -> None:
        """Raises OSError if the system calls exist, but fail for every socket, as they do in gVisor."""
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            if self.write(array("i", [near.fileno()]), b"x") or self._broken:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def _submit_batch(
        self, blocks: _ControlBlocks, batch: "array[int]", sizes: "memoryview[int]"
    ) -> tuple[int, list[tuple[int, int]]]:
        """Makes at most `BATCH_SOCKETS` writes, whose vectors the caller has set. `sizes` has the size of each write.

        Returns the number of writes that were made, and the writes that are not complete: their numbers, and how many
        bytes each socket took. The caller must make the other writes itself.
        """
        if self._broken:
            return 0, []
        blocks.descriptors[: len(batch)] = memoryview(batch)
        # The kernel stops at the first socket to which it can't write.
        submitted = max(0, self._call(self._submit, self._context, ctypes.c_long(len(batch)), blocks.pointers))
        short: list[tuple[int, int]] = []
        left = submitted
        while left:
            least = ctypes.c_long(left)
            ended = self._call(self._get_events, self._context, least, least, self._events, None)
            if ended < 0 and ctypes.get_errno() == errno.EINTR:
                continue
            if ended < 0:
                self._abort(batch[:submitted])
                return submitted, [(number, 0) for number in range(submitted)]
            # The usual case is tested first: all results arrive at once, in order, and all writes are complete.
            if self._results[:ended] != sizes[:ended]:
                results = zip(self._numbers[:ended], self._results[:ended], strict=True)
                short += [(number, max(0, taken)) for number, taken in results if taken != sizes[number]]
            left -= ended
        return submitted, short

    def _abort(self, descriptors: "array[int]") -> None:
        """Shuts down the sockets, because it is unknown how many bytes each socket took.

        The clients of these sockets then reconnect, and so miss no bytes.
        """
        self._broken = True
        for descriptor in descriptors:
            with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as duplicate:
                duplicate.shutdown(socket.SHUT_RDWR)


def _address(memory: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
