"""Output streams for an event loop.

A thread writes to standard error or output, so the event loop never waits for a reader.

A direct write blocks while a pipe is full, or while Ctrl-S has stopped a terminal. The flag O_NONBLOCK is not an
alternative, because this flag would affect each program that shares the pipe or the terminal.

`install` replaces the entire stream, not only the handler of the log. Warnings, tracebacks, errors of commands, and log
lines are written in the right order, because they all use the same queue.
"""

import atexit
import io
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["IN_ORDER_S", "LIMIT_BYTES", "QueuedOutput", "install", "queue_of"]

LIMIT_BYTES = 2**20
"""The maximum size of the queue, which holds about 5,000 log lines. Lines that don't fit into the queue are dropped."""

LAST_S = 1.0
"""The maximum time that the process waits, at its end, for the last lines to be written.

The last lines may contain the error that ended the process.
"""

IN_ORDER_S = 0.1
"""The value of `patience_s` for commands that write to both standard output and standard error."""

DESCRIPTORS = {"stdout": 1, "stderr": 2}


class QueuedOutput(io.RawIOBase):
    """Writes to a file descriptor from a thread. Drops and counts lines while the queue is full or writes fail."""

    def __init__(
        self, descriptor: int, report: Callable[[int], object], limit_bytes: int, patience_s: float = 0.0
    ) -> None:
        """As soon as lines can be written again, the thread calls `report` with the number of dropped lines.

        `flush` waits up to `patience_s` for the thread, so that the lines of two streams stay in order. After a call of
        `flush` has timed out, later calls return at once, until the thread has written something.
        """
        super().__init__()
        self.lines_dropped = 0
        """The number of lines dropped since this object was created."""
        self._descriptor = descriptor
        self._report = report
        self._limit_bytes = limit_bytes
        self._patience_s = patience_s
        # `isatty` returns False for a closed terminal, so its answer is stored while the terminal is open.
        self._is_terminal = os.isatty(descriptor)
        # The lock is reentrant, because garbage collection may run at any point in this class's code, and write a
        # warning.
        self._changed = threading.Condition()
        self._queue: deque[bytes] = deque()
        self._size_bytes = 0
        self._writing = False
        self._blocked = False
        """Whether a wait in `flush` has timed out and no line has been written since."""
        self._given_up = False
        """Whether a wait in `drain` has timed out and no line has been written since."""
        self._unreported = 0
        self._torn = False
        """Whether the last write failed in the middle of a line."""
        self._ending = False
        self._ended = False
        # The thread is a daemon, because the process must be able to end while the thread is blocked in a write.
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        self._thread.start()

    def writable(self) -> bool:
        """Always returns True."""
        return True

    def fileno(self) -> int:
        """Returns the descriptor, which callers may query but not write to.

        Data that a caller wrote directly to the descriptor would appear before lines that are still in the queue.
        """
        return self._descriptor

    def isatty(self) -> bool:
        """Returns whether the descriptor was a terminal when this object was created."""
        return self._is_terminal

    def write(self, data: "ReadableBuffer", /) -> int:
        """Queues whole lines. Never blocks, and never fails."""
        chunk = bytes(data)
        # After `end`, no lock is taken, because the thread may have stopped while it held the lock.
        if self._ended or not chunk:
            return len(chunk)
        with self._changed:
            # The report of dropped lines is added even if the queue is full. The queue can't grow without limit,
            # because the thread calls `report` only after it has written lines.
            if self._size_bytes + len(chunk) <= self._limit_bytes or threading.get_ident() == self._thread.ident:
                self._queue.append(chunk)
                self._size_bytes += len(chunk)
                self._changed.notify_all()
            else:
                self._drop(chunk)
        return len(chunk)

    def flush(self) -> None:
        """Waits until the thread has written all lines, or until `patience_s` has passed."""
        if self._patience_s and not self._blocked:
            self._blocked = not self._wait(self._patience_s)

    def drain(self, timeout_s: float) -> bool:
        """Waits until all lines are written, or until `timeout_s` has passed. Returns whether all lines are written."""
        self._given_up = not self._wait(timeout_s)
        return not self._given_up

    def end(self) -> None:
        """Writes the queued lines and ends the thread.

        Does not wait if `drain` timed out. Lines written later are discarded.
        """
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        try:
            self._thread.join(0.0 if self._given_up else LAST_S)
        finally:
            # This assignment is in `finally`, because Ctrl-C may interrupt `join`.
            self._ended = True

    def _wait(self, timeout_s: float) -> bool:
        if self._ended or threading.get_ident() == self._thread.ident:
            return False
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue and not self._writing, timeout_s)

    def _run(self) -> None:
        while batch := self._next():
            rest = self._write_out(batch)
            with self._changed:
                if rest:
                    self._drop(rest)
                    dropped = 0
                else:
                    self._blocked = self._given_up = False
                    dropped, self._unreported = self._unreported, 0
            if dropped:
                self._report(dropped)

    def _next(self) -> bytes:
        """Waits until lines are queued.

        Returns as many lines as a pipe takes in one atomic write, and at least one line.
        """
        with self._changed:
            self._writing = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._queue or self._ending)
            self._writing = True
            batch: list[bytes] = []
            size_bytes = 0
            while self._queue and (not batch or size_bytes + len(self._queue[0]) <= select.PIPE_BUF):
                batch.append(self._queue.popleft())
                size_bytes += len(batch[-1])
            self._size_bytes -= size_bytes
        return b"".join(batch)

    def _write_out(self, batch: bytes) -> bytes:
        """Blocks until the batch is written. Returns the part of the batch that can't be written."""
        newline = b"\n" if self._torn else b""
        data = newline + batch
        done = 0
        while done < len(data):
            try:
                done += os.write(self._descriptor, data[done:])
            except BlockingIOError:
                # Another program has set O_NONBLOCK on the shared pipe or terminal.
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()
            except OSError:
                break
        if done:
            self._torn = done < len(data) and data[done - 1 : done] != b"\n"
        return data[max(done, len(newline)) :]

    def _drop(self, chunk: bytes) -> None:
        lines = chunk.count(b"\n")
        self.lines_dropped += lines
        self._unreported += lines


def queue_of(stream: TextIO | None) -> QueuedOutput | None:
    """Returns the queue behind a stream, or None if `install` has not replaced the stream."""
    buffer = getattr(stream, "buffer", None)
    return buffer if isinstance(buffer, QueuedOutput) else None


def install(name: Literal["stdout", "stderr"], report: Callable[[int], object], patience_s: float = 0.0) -> None:
    """Replaces `sys.stdout` or `sys.stderr` until the process ends. A closed stream becomes /dev/null.

    The parameters `report` and `patience_s` are those of QueuedOutput. A stream without a descriptor is not replaced.
    """
    stream: TextIO | None = getattr(sys, name)
    if stream is None:
        setattr(sys, name, _null(DESCRIPTORS[name]))
        return
    if queue_of(stream) is not None:
        return
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return
    with suppress(OSError):
        stream.flush()
    output = QueuedOutput(descriptor, report, LIMIT_BYTES, patience_s)
    # Even lines that are queued after the end of the event loop are written, such as the traceback of an unhandled
    # exception.
    atexit.register(output.end)
    # The argument `write_through` is not set, so the wrapper collects the parts of a line, and the queue gets whole
    # lines.
    wrapper = io.TextIOWrapper(output, stream.encoding, stream.errors, line_buffering=True)  # type: ignore[type-var]  # RawIOBase has what it needs
    setattr(sys, name, wrapper)


def _null(descriptor: int) -> TextIO:
    """Opens /dev/null as a stream, and also under the number `descriptor` if this number is free.

    If the descriptor stayed free, the next socket would get it.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.fstat(descriptor)
    except OSError:
        os.dup2(null, descriptor)
    return os.fdopen(null, "w", encoding="utf-8")
