"""Tests of output through a thread.

The thread writes lines in order. Lines that do not fit into the queue are dropped and counted.
"""

from __future__ import annotations

import asyncio
import atexit
import fcntl
import io
import os
import pty
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from bridge import queued_output
from bridge.queued_output import QueuedOutput, install, queue_of
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import TextIO

CAPACITY = 4096
LIMIT_S = 10.0


class Pipe:
    """A pipe with room for one page of memory, to which a queue writes."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, CAPACITY)
        self.outputs: list[QueuedOutput] = []
        self.reported: list[int] = []

    def output(self, limit_bytes: int = 1000, patience_s: float = 0.0) -> QueuedOutput:
        output = QueuedOutput(self.writer, self._report, limit_bytes, patience_s)
        self.outputs.append(output)
        return output

    def _report(self, lines: int) -> None:
        self.reported.append(lines)
        self.outputs[0].write(b"%d dropped\n" % lines)

    def fill(self) -> None:
        """Fills the pipe, so that the next write to it blocks."""
        os.write(self.writer, b"x" * CAPACITY)

    def read(self) -> bytes:
        """Returns the data in the pipe without waiting for more."""
        return os.read(self.reader, 2**16)

    def close(self) -> None:
        """Ends the output thread, even if it is blocked in a write."""
        if self.reader >= 0:
            os.close(self.reader)
        for output in self.outputs:
            output.end()
            output._thread.join(LIMIT_S)
            assert not output._thread.is_alive()
        os.close(self.writer)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


async def is_blocked(output: QueuedOutput) -> None:
    """Waits until the output thread has taken a line that it can't write."""
    await eventually("the thread writes", lambda: output._writing and not output._queue)


def test_empty_write_is_not_the_end(pipe: Pipe) -> None:
    output = pipe.output()
    assert output.write(b"") == 0
    output.write(b"line\n")
    assert output.drain(LIMIT_S)
    assert pipe.read() == b"line\n"


def test_lines_are_written_in_order(pipe: Pipe) -> None:
    output = pipe.output()
    for number in range(20):
        assert output.write(b"%d\n" % number) == len(str(number)) + 1
    assert output.drain(LIMIT_S)
    assert pipe.read().split() == [str(number).encode() for number in range(20)]
    assert (output.lines_dropped, pipe.reported) == (0, [])


async def test_lines_beyond_the_limit_are_dropped_counted_and_reported_where_they_are_missing(pipe: Pipe) -> None:
    output = pipe.output(limit_bytes=10)
    pipe.fill()
    output.write(b"first\n")
    await is_blocked(output)
    # The queue can grow to exactly its limit.
    for line in (b"12\n", b"123456\n", b"a\nb\n", b"c\n"):
        output.write(line)
    assert (output.lines_dropped, pipe.reported) == (3, [])
    assert not output.drain(0.0)
    pipe.read()
    assert output.drain(LIMIT_S)
    output.write(b"later\n")
    assert output.drain(LIMIT_S)
    assert pipe.read() == b"first\n12\n123456\n3 dropped\nlater\n"
    assert (output.lines_dropped, pipe.reported) == (3, [3])


async def test_lines_that_wait_are_written_as_many_at_once_as_a_pipe_takes_whole(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = pipe.output(limit_bytes=20_000)
    pipe.fill()
    output.write(b"first\n")
    await is_blocked(output)
    for size in (2000, 2096, 1, 5000, 1):
        output.write(b"x" * (size - 1) + b"\n")
    written = recorded(monkeypatch, pipe.writer)
    reading = asyncio.create_task(asyncio.to_thread(read_until, pipe.reader, CAPACITY + 6 + 9098))
    await eventually("all lines are written", lambda: output.drain(0.0))
    await reading
    assert written == [4096, 1, 5000, 1]


def read_until(descriptor: int, size: int) -> None:
    while size:
        size -= len(os.read(descriptor, 2**16))


WRITE = os.write


def recorded(monkeypatch: pytest.MonkeyPatch, descriptor: int, write: Callable[[int, bytes], int] = WRITE) -> list[int]:
    """Replaces `os.write` by `write` for a descriptor. Returns a list to which the size of each write is added."""
    sizes: list[int] = []

    def record(number: int, data: bytes) -> int:
        if number == descriptor:
            sizes.append(len(data))
            return write(number, data)
        return WRITE(number, data)

    monkeypatch.setattr(os, "write", record)
    return sizes


def test_line_that_can_not_be_written_is_counted_and_reported_after_the_next_that_can(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is almost full takes only a part of a line, and later has room again."""
    output = pipe.output()
    room = [4]

    def write(number: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        done = WRITE(number, data[: room[0]])
        room[0] -= done
        return done

    recorded(monkeypatch, pipe.writer, write)
    for line in (b"first\n", b"second\n"):
        output.write(line)
        assert output.drain(LIMIT_S)
    assert (output.lines_dropped, pipe.reported) == (2, [])
    room[0] = 1000
    output.write(b"third\n")
    assert output.drain(LIMIT_S)
    output.write(b"fourth\n")
    assert output.drain(LIMIT_S)
    # If only a part of a line was written, this part becomes a line of its own.
    assert pipe.read() == b"firs\nthird\n2 dropped\nfourth\n"
    assert (output.lines_dropped, pipe.reported) == (2, [2])


async def test_descriptor_that_another_program_made_non_blocking_is_waited_for(pipe: Pipe) -> None:
    output = pipe.output()
    pipe.fill()
    os.set_blocking(pipe.writer, False)
    output.write(b"first\n")
    await is_blocked(output)
    assert not output.drain(0.0)
    pipe.read()
    assert output.drain(LIMIT_S)
    assert pipe.read() == b"first\n"
    assert output.lines_dropped == 0


def test_pipe_without_a_reader_takes_nothing(pipe: Pipe) -> None:
    output = pipe.output()
    os.close(pipe.reader)
    pipe.reader = -1
    for _ in range(3):
        output.write(b"line\n")
        assert output.drain(LIMIT_S)
    assert (output.lines_dropped, pipe.reported) == (3, [])


async def test_flush_waits_once_for_a_reader_and_again_after_a_read(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = pipe.output(patience_s=0.01)
    output.write(b"first\n")
    output.flush()
    assert pipe.read() == b"first\n"
    waits: list[float] = []
    original = output._wait

    def wait(timeout_s: float) -> bool:
        waits.append(timeout_s)
        return original(timeout_s)

    monkeypatch.setattr(output, "_wait", wait)
    pipe.fill()
    for _ in range(3):
        output.write(b"second\n")
        output.flush()
    assert waits == [0.01]
    pipe.read()
    assert original(LIMIT_S)
    output.write(b"third\n")
    output.flush()
    assert waits == [0.01] * 2


def test_flush_without_patience_does_not_wait(pipe: Pipe) -> None:
    output = pipe.output()
    pipe.fill()
    output.write(b"first\n")
    output.flush()
    assert not output._blocked


def test_end_writes_what_is_queued_and_discards_what_comes_later(pipe: Pipe) -> None:
    output = pipe.output()
    output.write(b"first\n")
    output.end()
    assert not output._thread.is_alive()
    assert pipe.read() == b"first\n"
    assert output.write(b"later\n") == 6
    assert not output.drain(LIMIT_S)
    output.end()


async def test_end_does_not_wait_a_second_time_for_a_reader(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queued_output, "LAST_S", 3600.0)
    output = pipe.output()
    pipe.fill()
    output.write(b"first\n")
    assert not output.drain(0.0)
    output.end()
    assert output._thread.is_alive()


async def test_end_waits_for_a_reader_within_its_limit(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queued_output, "LAST_S", 0.01)
    output = pipe.output()
    pipe.fill()
    output.write(b"first\n")
    output.end()
    assert output._thread.is_alive()


@pytest.mark.parametrize("flushed", [False, True])
def test_end_waits_even_after_a_flush_that_timed_out(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch, *, flushed: bool
) -> None:
    """Although `flush` waits only a short time, a slow reader still gets the last lines."""
    output = pipe.output(patience_s=0.01)
    pipe.fill()
    output.write(b"first\n")
    if flushed:
        output.flush()
    waits: list[float] = []
    monkeypatch.setattr(output._thread, "join", waits.append)
    output.end()
    monkeypatch.undo()
    assert waits == [queued_output.LAST_S]


def test_write_within_a_write_does_not_block(pipe: Pipe) -> None:
    """A garbage collection may run at any point, even during a write, and may itself write a warning."""
    output = pipe.output()
    with output._changed:
        output.write(b"first\n")
    assert output.drain(LIMIT_S)
    assert pipe.read() == b"first\n"


def test_terminal_stays_one_after_it_is_gone() -> None:
    ours, its = pty.openpty()
    output = QueuedOutput(its, lambda _: None, 1000)
    try:
        assert output.isatty()
        assert output.writable()
        os.close(ours)
        assert not os.isatty(its)
        assert output.isatty()
        output.write(b"line\n")
        assert output.drain(LIMIT_S)
        assert output.lines_dropped == 1
    finally:
        output.end()
        os.close(its)


# Installation


@contextmanager
def installed(monkeypatch: pytest.MonkeyPatch, stream: TextIO | None) -> Iterator[TextIO]:
    """Makes `stream` the standard error, replaces it by a queued stream, and yields the queued stream."""
    monkeypatch.setattr(sys, "stderr", stream)
    install("stderr", lambda _: None)
    assert sys.stderr is not None
    output = queue_of(sys.stderr)
    try:
        yield sys.stderr
    finally:
        if output is not None:
            output.end()
            atexit.unregister(output.end)


def test_stream_is_replaced_by_one_that_writes_whole_lines_to_the_same_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with (tmp_path / "log").open("w", encoding="latin-1", errors="backslashreplace") as file:
        file.write("before\n")
        with installed(monkeypatch, file) as stream:
            output = queue_of(stream)
            assert output is not None
            assert (stream.fileno(), stream.isatty()) == (file.fileno(), False)
            with output._changed:
                stream.write("a ")
                stream.write("line: \xfc \u20ac\n")
                assert list(output._queue) == [b"a line: \xfc \\u20ac\n"]
            assert output.drain(LIMIT_S)
            install("stderr", lambda _: None)
            assert sys.stderr is stream
    assert (tmp_path / "log").read_bytes() == b"before\na line: \xfc \\u20ac\n"


def test_stream_without_a_descriptor_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = io.StringIO()
    with installed(monkeypatch, memory) as stream:
        assert stream is memory
        assert queue_of(stream) is None
    assert queue_of(None) is None


@pytest.mark.parametrize("which", ["open", "closed", "closed, as a lower one is"])
def test_stream_that_is_closed_becomes_the_null_device(monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    descriptors = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]
    descriptor = descriptors.pop()
    if which != "open":
        os.close(descriptor)
    if which == "closed, as a lower one is":
        os.close(descriptors.pop())
    monkeypatch.setitem(queued_output.DESCRIPTORS, "stderr", descriptor)
    with installed(monkeypatch, None) as stream:
        stream.write("to nothing\n")
        stream.flush()
        assert queue_of(stream) is None
        assert not stream.isatty()
        # `install` must not replace a descriptor that was already in use.
        readable = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        assert readable == (which == "open")
    if stream.fileno() != descriptor:
        descriptors.append(descriptor)
    stream.close()
    for each in descriptors:
        os.close(each)
