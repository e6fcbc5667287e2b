"""Standard error and standard output for an event loop: a thread writes, and the loop never waits for a reader.

A write blocks while a pipe is full, or while Ctrl-S has stopped a terminal. O_NONBLOCK is no way out: it holds for each
program that shares the pipe or the terminal.

The whole stream is replaced, not only the handler of the log. Warnings, tracebacks and errors of commands go the same
way, in order.
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
"""About 5,000 lines of a log. More are dropped."""

LAST_S = 1.0
"""For the last lines, at the end of the process: the error that ends it may be among them."""

IN_ORDER_S = 0.1
"""The patience of a command that shows something on two streams."""

DESCRIPTORS = {"stdout": 1, "stderr": 2}


class QueuedOutput(io.RawIOBase):
    """Writes to a descriptor from a thread. Drops and counts lines while the queue is full, or the write fails."""

    def __init__(
        self, descriptor: int, report: Callable[[int], object], limit_bytes: int, patience_s: float = 0.0
    ) -> None:
        """`report` gets the number of dropped lines once lines can be written again. The thread calls it.

        `flush` waits up to `patience_s` for the thread, so that lines of two streams stay in order. It waits no more
        once that was in vain, until something is written again.
        """
        super().__init__()
        self.lines_dropped = 0
        """Since the start."""
        self._descriptor = descriptor
        self._report = report
        self._limit_bytes = limit_bytes
        self._patience_s = patience_s
        # A terminal that is gone does not say any more that it was one.
        self._is_terminal = os.isatty(descriptor)
        # Its lock is reentrant: garbage collection may run, and warn, at any point of this class.
        self._changed = threading.Condition()
        self._queue: deque[bytes] = deque()
        self._size_bytes = 0
        self._writing = False
        self._blocked = False
        """Whether `flush` has waited in vain, and nothing was written since."""
        self._given_up = False
        """The same for `drain`."""
        self._unreported = 0
        self._torn = False
        """Whether the last write failed within a line."""
        self._ending = False
        self._ended = False
        # A thread that is blocked in a write must not keep the process.
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        self._thread.start()

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """Only for questions about the descriptor: what is written to it overtakes the queue."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether it was a terminal at the start."""
        return self._is_terminal

    def write(self, data: "ReadableBuffer", /) -> int:
        """Queues whole lines. Never blocks, and never fails."""
        chunk = bytes(data)
        # A lock that the thread holds while the interpreter ends is never released.
        if self._ended:
            return len(chunk)
        with self._changed:
            # The thread's own report has to fit into a full queue. It writes one after some lines have left the queue.
            if self._size_bytes + len(chunk) <= self._limit_bytes or threading.get_ident() == self._thread.ident:
                self._queue.append(chunk)
                self._size_bytes += len(chunk)
                self._changed.notify_all()
            else:
                self._drop(chunk)
        return len(chunk)

    def flush(self) -> None:
        """Waits for the thread, within `patience_s`."""
        if self._patience_s and not self._blocked:
            self._blocked = not self._wait(self._patience_s)

    def drain(self, timeout_s: float) -> bool:
        """Whether all is written. Waits for that, but no longer than this."""
        self._given_up = not self._wait(timeout_s)
        return not self._given_up

    def end(self) -> None:
        """Writes what is queued, unless `drain` has waited in vain, and ends the thread. Later lines are discarded."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        try:
            self._thread.join(0.0 if self._given_up else LAST_S)
        finally:
            # Also after Ctrl-C.
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
        """Waits for lines. Returns as many as a pipe takes at once, not mixed with those of other programs."""
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
        """Blocks until all is written. Returns what can't be written."""
        newline = b"\n" if self._torn else b""
        data = newline + batch
        done = 0
        while done < len(data):
            try:
                done += os.write(self._descriptor, data[done:])
            except BlockingIOError:
                # Another program has set O_NONBLOCK.
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
    """The queue behind a stream, if `install` has put one there."""
    buffer = getattr(stream, "buffer", None)
    return buffer if isinstance(buffer, QueuedOutput) else None


def install(name: Literal["stdout", "stderr"], report: Callable[[int], object], patience_s: float = 0.0) -> None:
    """Replaces `sys.stdout` or `sys.stderr` until the process ends. One that is closed becomes /dev/null.

    The arguments are those of QueuedOutput. A stream without a descriptor stays as it is.
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
    # For what is written after this: the last words of the interpreter.
    atexit.register(output.end)
    # Without write_through, a line that is written in parts is one entry of the queue.
    wrapper = io.TextIOWrapper(output, stream.encoding, stream.errors, line_buffering=True)  # type: ignore[type-var]  # RawIOBase has what it needs
    setattr(sys, name, wrapper)


def _null(descriptor: int) -> TextIO:
    """/dev/null as a stream, and as the descriptor, which would else be the next socket's."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.fstat(descriptor)
    except OSError:
        os.dup2(null, descriptor)
    return os.fdopen(null, "w", encoding="utf-8")
