"""Runs `edk-bridge` as a user does: a command that ends by itself, a command on a terminal, or `tail`."""

import asyncio
import os
import pty
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.examples import THOROUGH
from tests.support.waiting import LIMIT_S, eventually

AWAY = Path(__file__).parent
"""A working directory without the developer's own `.env`."""


@dataclass
class Ended:
    """The exit code and the output of a command that has ended."""

    code: int
    printed: list[str]
    errors: list[str]
    """The lines on standard error."""


ROOT = Path(__file__).parents[2]

MEASURED = (
    {"COVERAGE_PROCESS_START": str(ROOT / "pyproject.toml"), "COVERAGE_FILE": str(ROOT / ".coverage")}
    if THOROUGH
    else {}
)
"""Environment variables that make a Python process measure its coverage.

`make test-all` measures only unit tests and commands.

If all programs measured coverage, `make test-all` would take two minutes longer."""


def plain_environment(**variables: str) -> dict[str, str]:
    """Returns the environment of the tests without the developer's own settings.

    Use this environment for commands that the unit tests cover, because coverage doubles the processor time of a start.
    """
    return {name: text for name, text in os.environ.items() if not name.startswith("BRIDGE_")} | variables


def environment(**variables: str) -> dict[str, str]:
    """Returns the environment of a command whose coverage is measured."""
    return plain_environment(**MEASURED, **variables)


async def ran(*arguments: str, limit_s: float = LIMIT_S, **variables: str) -> Ended:
    """Runs a command without a terminal, and checks that it printed no traceback.

    Kills the command and raises TimeoutError if it has not ended within the limit.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bridge", *arguments),
        env=environment(**variables),
        cwd=AWAY,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(limit_s):
            printed, error_output = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.communicate()
        raise
    assert b"Traceback" not in error_output, error_output.decode()
    assert process.returncode is not None
    return Ended(process.returncode, printed.decode().splitlines(), error_output.decode().splitlines())


class OnTerminal:
    """A command with a terminal for input, output and errors. All output of the command is stored unchanged."""

    def __init__(self, process: asyncio.subprocess.Process, descriptor: int) -> None:
        self.process = process
        self.shown = b""
        self._descriptor = descriptor
        self._reading = asyncio.create_task(asyncio.to_thread(self._read))

    def _read(self) -> None:
        # When the other side of the terminal is closed, a read fails.
        with suppress(OSError):
            while chunk := os.read(self._descriptor, 4096):
                self.shown += chunk

    def type(self, text: str) -> None:
        """Types text, as a user does on the keyboard."""
        os.write(self._descriptor, text.encode())

    async def ended(self) -> int:
        """Waits until the command has ended by itself and all its output is read. Returns the exit code."""
        async with asyncio.timeout(LIMIT_S):
            code = await self.process.wait()
            await self._reading
        assert b"Traceback" not in self.shown, self.shown.decode()
        return code


@asynccontextmanager
async def on_terminal(
    *arguments: str, start: tuple[str, ...] = ("-m", "bridge"), **variables: str
) -> AsyncIterator[OnTerminal]:
    """Runs the command on a terminal of 80 columns. Kills the command at the end if it still runs."""
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *("env", "--default-signal=INT", sys.executable, *start, *arguments),
        env=environment(**{"TERM": "xterm", "COLUMNS": "80", **variables}),
        cwd=AWAY,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    running = OnTerminal(process, ours)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await running._reading
        os.close(ours)


TAIL_SCRIPT = """
from bridge.cli import tail
from bridge.cli.follow.transport import FollowTiming
names = "first_pause_s", "longest_pause_s", "stable_s", "ping_s"
tail.TIMING = FollowTiming(**dict(zip(names, [{pauses}])), pause_when_full_s=8 * [{pauses}][0], {more})
from bridge.cli import main
main()
"""
"""A program that runs `edk-bridge tail` with times that the test chooses."""
IMPATIENT = "0.02, 0.1, 0.0, 60.0"


class Tailing:
    """A running `edk-bridge tail`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.errors: list[str] = []
        """The lines on standard error so far."""
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        if self.process.stderr is None:
            return
        async for line in self.process.stderr:
            self.errors.append(line.decode().removesuffix("\n"))

    async def reports(self, words: str, times: int = 1) -> None:
        """Waits until `times` lines on standard error begin with the text `words`."""
        await eventually(
            f"the command reports {words!r}", lambda: sum(line.startswith(words) for line in self.errors) >= times
        )

    async def prints(self, *texts: bytes) -> None:
        """Waits until the command has printed exactly these lines."""
        assert self.process.stdout is not None
        for text in texts:
            async with asyncio.timeout(LIMIT_S):
                assert await self.process.stdout.readline() == text + b"\n"

    async def ended(self) -> int:
        """Waits until the command has ended by itself, and checks that it printed no traceback.

        Returns the exit code.
        """
        async with asyncio.timeout(LIMIT_S):
            code = await self.process.wait()
            await self._reading
        assert "Traceback" not in "\n".join(self.errors), self.errors
        return code


@asynccontextmanager
async def tailing(
    *arguments: str,
    pauses: str = IMPATIENT,
    timing: str = "",
    stdout: int = asyncio.subprocess.PIPE,
    stderr: int = asyncio.subprocess.PIPE,
) -> AsyncIterator[Tailing]:
    """Runs `edk-bridge tail`. `timing` has more arguments of `FollowTiming`.

    Kills the command at the end if it still runs. If `stderr` is not a pipe, `errors` stays empty.
    """
    script = TAIL_SCRIPT.format(pauses=pauses, more=timing)
    process = await asyncio.create_subprocess_exec(
        # SIGINT has its default effect, as on a terminal. A program in the background ignores Ctrl-C, and so do the
        # programs that it starts.
        *("env", "--default-signal=INT", sys.executable, "-c", script, "tail", *arguments),
        env=environment(),
        stdout=stdout,
        stderr=stderr,
        limit=2**22,
    )
    running = Tailing(process)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await running._reading
