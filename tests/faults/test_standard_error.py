"""If the log can't be written, or nobody reads it, the bridge runs and stops as usual and counts the dropped lines."""

import asyncio
import fcntl
import os
import pty
import signal
import socket
import sys
import termios
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import orjson
import pytest

from tests.support.broker.ports import free_port
from tests.support.clients import get
from tests.support.commands import AWAY, plain_environment, tailing
from tests.support.followers import scripted_bridge
from tests.support.running import COMMAND
from tests.support.waiting import LIMIT_S, eventually

UNREACHABLE = "amqp://guest:guest@127.0.0.1:1/"

SMALL_QUEUE = """
from bridge import queued_output
queued_output.LIMIT_BYTES = 1500
from bridge.cli import main
main()
"""
"""`edk-bridge` with a small queue for log lines, so that it drops lines early."""

BROKEN = """
from bridge.cli import main, serve
async def bug(*_):
    raise RuntimeError("a bug")
serve.run_bridge = bug
main()
"""
"""`edk-bridge serve` with a bug, which ends with a traceback."""

ANSWER_LIMIT_S = 5.0
"""The maximum time for the bridge to answer, in seconds. If the bridge is blocked, no answer comes."""

HELD = "another-program-has-written-this"


class Running:
    """A running bridge.

    The test chooses where the bridge's standard error goes. The test also chooses the port, so that the test need not
    read it from the log.
    """

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port

    async def get(self, path: str, host: str = "localhost") -> tuple[int, bytes]:
        """Returns the status and the body of the answer. Raises TimeoutError if the bridge is blocked."""
        async with asyncio.timeout(ANSWER_LIMIT_S):
            return await get(self.port, path, host=host)

    async def is_alive(self) -> bool:
        """Whether `/healthz` answers."""
        with suppress(ConnectionError, IndexError):
            return (await self.get("/healthz"))[0] == 200
        return False

    async def listens(self) -> None:
        """Waits until `/healthz` answers."""
        await eventually("the bridge listens", self.is_alive)

    async def no_longer_listens(self) -> None:
        """Waits until the bridge no longer accepts connections, because it has then handled the first signal."""

        async def is_refused() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except ConnectionRefusedError:
                return True
            writer.transport.abort()
            return False

        await eventually("the bridge stops listening", is_refused)

    async def lines_dropped(self) -> int:
        """Returns the number of dropped log lines, from the metrics."""
        _, body = await self.get("/metrics")
        [line] = [each for each in body.decode().splitlines() if each.startswith("bridge_log_lines_dropped_total ")]
        return int(float(line.partition(" ")[2]))

    async def ended(self, limit_s: float = LIMIT_S) -> int:
        """Waits for the end of the process, and returns its exit code."""
        async with asyncio.timeout(limit_s):
            return await self.process.wait()


@asynccontextmanager
async def bridge(
    stderr: int | None, *arguments: str, command: Sequence[str] = COMMAND, **variables: str
) -> AsyncIterator[Running]:
    """Starts a bridge with a broker that can't be reached. Kills the bridge at the end if it still runs."""
    port = free_port()
    settings = {"BRIDGE_AMQP_URL": UNREACHABLE, "BRIDGE_HOST": "127.0.0.1", "BRIDGE_PORT": str(port)}
    settings |= {"BRIDGE_REJECT_EXCHANGE": "off", "BRIDGE_SHUTDOWN_TIMEOUT": "0.2s"}
    process = await asyncio.create_subprocess_exec(
        *(*command, "serve", *arguments),
        env=plain_environment(**{**settings, **variables}),
        stderr=stderr,
        cwd=AWAY,
    )
    try:
        yield Running(process, port)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class FullPipe:
    """A full pipe, as if another program had filled it."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        size = fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 4096)
        os.write(self.writer, HELD.encode().ljust(size - 1) + b"\n")
        self.text = b""
        """The bytes that were read from the pipe."""
        self._reading: asyncio.Task[None] | None = None

    def read(self) -> None:
        """Closes this process's writing end of the pipe, and begins to read.

        Reading ends when the bridge closes its writing end.
        """
        os.close(self.writer)
        self.writer = -1
        self._reading = asyncio.create_task(asyncio.to_thread(self._read))

    def _read(self) -> None:
        while chunk := os.read(self.reader, 2**16):
            self.text += chunk

    async def lines(self) -> list[str]:
        """Waits until the bridge ends, and returns all lines that it has written to the pipe."""
        assert self._reading is not None
        await self._reading
        first, *others = self.text.decode().splitlines()
        assert first.rstrip() == HELD
        return others

    def close(self) -> None:
        """Closes both ends of the pipe if they are open."""
        for descriptor in (self.reader, self.writer):
            if descriptor >= 0:
                os.close(descriptor)


@pytest.fixture
def pipe() -> Iterator[FullPipe]:
    full = FullPipe()
    yield full
    full.close()


def events(lines: list[str]) -> list[str]:
    return [str(orjson.loads(line)["event"]) for line in lines]


async def test_bridge_serves_and_stops_while_the_pipe_of_its_log_is_full(pipe: FullPipe) -> None:
    async with bridge(pipe.writer) as running:
        await running.listens()
        for _ in range(3):
            # Each refused client causes a log line.
            assert (await running.get("/updates", host="elsewhere.example"))[0] == 403
        assert await running.is_alive()
        running.process.send_signal(signal.SIGTERM)
        assert await running.ended() == 0


async def test_second_signal_ends_a_bridge_at_once_although_nothing_reads_its_last_lines(pipe: FullPipe) -> None:
    async with bridge(pipe.writer, BRIDGE_SHUTDOWN_TIMEOUT="1h") as running:
        await running.listens()
        running.process.send_signal(signal.SIGTERM)
        await running.no_longer_listens()
        running.process.send_signal(signal.SIGTERM)
        assert await running.ended() == 128 + signal.SIGTERM


async def test_every_line_is_written_before_the_end_if_the_pipe_is_read_within_the_shutdown_timeout(
    pipe: FullPipe,
) -> None:
    async with bridge(pipe.writer, BRIDGE_SHUTDOWN_TIMEOUT="1h") as running:
        await running.listens()
        running.process.send_signal(signal.SIGTERM)
        await running.no_longer_listens()
        pipe.read()
        assert await running.ended() == 0
        lines = events(await pipe.lines())
    assert lines[0] == "listening"
    assert lines[-2:] == ["stopping", "stopped"]


async def test_dropped_lines_are_counted_and_reported_where_they_are_missing(pipe: FullPipe) -> None:
    async with bridge(pipe.writer, command=(sys.executable, "-P", "-c", SMALL_QUEUE)) as running:
        await running.listens()

        async def drops() -> bool:
            # Each request causes a log line.
            running.process.send_signal(signal.SIGHUP)
            return await running.lines_dropped() > 0

        await eventually("the bridge drops lines", drops)
        # The bridge may handle a signal late, but it handles the last signal before it answers this request.
        dropped = await running.lines_dropped()
        pipe.read()
        await eventually("the log reports the dropped lines", lambda: b"log lines dropped" in pipe.text)
        running.process.send_signal(signal.SIGTERM)
        assert await running.ended() == 0
        lines = await pipe.lines()
    found = events(lines)
    at = found.index("log lines dropped")
    reports = [orjson.loads(line) for line, event in zip(lines, found, strict=True) if event == "log lines dropped"]
    assert {(report["level"], report["logger"]) for report in reports} == {("warning", "bridge")}
    assert sum(report["lines"] for report in reports) >= dropped
    # The log reports the dropped lines only after the lines that were already in the queue.
    assert set(found[1:at]) == {
        "broker not available; trying again",
        "no certificate to reload (BRIDGE_TLS_CERTIFICATE is not set)",
    }
    assert found[-1] == "stopped"


CLOSED = ("sh", "-c", 'exec "$@" 2>&-', "sh")


@pytest.mark.parametrize("style", ["auto", "text", "json"])
async def test_bridge_runs_without_standard_error(style: str) -> None:
    async with bridge(None, "--log-format", style, command=(*CLOSED, *COMMAND)) as running:
        await running.listens()
        assert (await running.get("/updates", host="elsewhere.example"))[0] == 403
        # If descriptor 2 were free, the bridge's next socket would get this number. C code would then write its errors
        # to this socket.
        assert Path(f"/proc/{running.process.pid}/fd/2").samefile(os.devnull)  # noqa: ASYNC240 - /proc never blocks
        running.process.send_signal(signal.SIGTERM)
        assert await running.ended() == 0


async def test_bridge_with_its_log_on_a_full_disk_runs_and_counts_the_lines() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        async with bridge(full) as running:
            await running.listens()

            async def counts() -> bool:
                return await running.lines_dropped() > 0

            await eventually("the lines are counted", counts)
            running.process.send_signal(signal.SIGTERM)
            assert await running.ended() == 0
    finally:
        os.close(full)


async def test_error_that_can_not_be_written_leaves_the_exit_code() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        async with bridge(full, BRIDGE_PREFETCH="many") as running:
            assert await running.ended() == 2
    finally:
        os.close(full)


async def test_bridge_continues_after_its_log_lost_its_reader(pipe: FullPipe) -> None:
    async with bridge(pipe.writer) as running:
        await running.listens()
        os.close(pipe.reader)
        pipe.reader = -1
        assert (await running.get("/updates", host="elsewhere.example"))[0] == 403
        assert await running.is_alive()
        running.process.send_signal(signal.SIGTERM)
        assert await running.ended() == 0


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """Yields the two descriptors of a pseudo-terminal: that of the terminal emulator, and that of the program."""
    ours, its = pty.openpty()
    descriptors = [ours, its]
    try:
        yield ours, its
    finally:
        for descriptor in descriptors:
            with suppress(OSError):
                os.close(descriptor)


async def test_bridge_on_a_terminal_with_its_output_stopped_serves_and_stops() -> None:
    with terminal() as (ours, its):
        # This call stops the terminal's output, as Ctrl-S does.
        termios.tcflow(its, termios.TCOOFF)
        async with bridge(its) as running:
            await running.listens()
            assert (await running.get("/updates", host="elsewhere.example"))[0] == 403
            assert await running.is_alive()
            running.process.send_signal(signal.SIGTERM)
            assert await running.ended() == 0
        os.set_blocking(ours, False)
        with pytest.raises(BlockingIOError):
            os.read(ours, 1)


async def test_bridge_without_its_terminal_stops_on_sighup() -> None:
    """If the terminal is gone, `isatty` returns False. The bridge must remember that it had a terminal."""
    with terminal() as (ours, its):
        async with bridge(its) as running:
            await running.listens()
            os.close(its)
            os.close(ours)
            running.process.send_signal(signal.SIGHUP)
            assert await running.ended() == 0


@pytest.mark.parametrize("full", [False, True])
async def test_error_that_ends_the_bridge_is_its_last_line_and_waits_for_no_reader(pipe: FullPipe, full: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        variables = {"BRIDGE_PORT": str(taken.getsockname()[1]), "BRIDGE_ALLOWED_NETWORKS": "8.8.0.0/16"}
        async with bridge(pipe.writer, **variables) as running:
            if not full:
                pipe.read()
            assert await running.ended() == 2
    if not full:
        warning, error = await pipe.lines()
        assert events([warning]) == ["BRIDGE_ALLOWED_NETWORKS allows public addresses"]
        assert error.startswith("edk-bridge: can't listen on 127.0.0.1 port ")


@pytest.mark.parametrize("full", [False, True])
async def test_traceback_that_ends_the_bridge_waits_for_no_reader(pipe: FullPipe, full: bool) -> None:
    async with bridge(pipe.writer, command=(sys.executable, "-P", "-c", BROKEN)) as running:
        if not full:
            pipe.read()
        assert await running.ended() == 1
    if not full:
        lines = await pipe.lines()
        assert (lines[0], lines[-1]) == ("Traceback (most recent call last):", "RuntimeError: a bug")


@pytest.mark.parametrize("what", ["a full pipe", "a full disk"])
async def test_tail_prints_and_ends_although_its_standard_error_is_blocked_or_full(pipe: FullPipe, what: str) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    stderr = full if what == "a full disk" else pipe.writer
    try:
        async with scripted_bridge() as source, tailing(source.url, stderr=stderr) as tail:
            await eventually("the command is connected", lambda: source.asked)
            await tail.prints(source.emit({"killmailId": 1}))
            source.drop()
            await eventually("the command is connected again", lambda: len(source.asked) > 1)
            await tail.prints(source.emit({"killmailId": 2}))
            tail.process.send_signal(signal.SIGTERM)
            assert await tail.ended() == 128 + signal.SIGTERM
    finally:
        os.close(full)
