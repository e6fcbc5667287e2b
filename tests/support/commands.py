"""`edk-bridge` as its user runs it: to its end, on a terminal, or as `tail`, which runs until it is stopped."""

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
"""A folder without a `.env` of the developer's own."""


@dataclass
class Ended:
    """What is left of a command."""

    code: int
    printed: list[str]
    said: list[str]
    """On standard error, line by line."""


ROOT = Path(__file__).parents[2]

MEASURED = (
    {"COVERAGE_PROCESS_START": str(ROOT / "pyproject.toml"), "COVERAGE_FILE": str(ROOT / ".coverage")}
    if THOROUGH
    else {}
)
"""Variables with which a Python process measures coverage. `make test-all` measures the unit tests and the commands.

With coverage everywhere, `make test-all` would take two minutes longer."""


def plain_environment(**variables: str) -> dict[str, str]:
    """The environment of the tests without the developer's own settings.

    It is for commands that the unit tests cover: coverage doubles the processor time of a start.
    """
    return {name: text for name, text in os.environ.items() if not name.startswith("BRIDGE_")} | variables


def environment(**variables: str) -> dict[str, str]:
    """The environment of a command whose coverage is measured."""
    return plain_environment(**MEASURED, **variables)


async def ran(*arguments: str, limit_s: float = LIMIT_S, **variables: str) -> Ended:
    """What is left of a command without a terminal; nothing that it said is a traceback.

    Raises TimeoutError, with the command killed, if it has not ended within the limit.
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
            printed, said = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.communicate()
        raise
    assert b"Traceback" not in said, said.decode()
    assert process.returncode is not None
    return Ended(process.returncode, printed.decode().splitlines(), said.decode().splitlines())


class OnTerminal:
    """A command whose input, output and errors are one terminal. What it shows is kept, as it came."""

    def __init__(self, process: asyncio.subprocess.Process, descriptor: int) -> None:
        self.process = process
        self.shown = b""
        self._descriptor = descriptor
        self._reading = asyncio.create_task(asyncio.to_thread(self._read))

    def _read(self) -> None:
        # Of a terminal whose other side is closed, reading fails.
        with suppress(OSError):
            while chunk := os.read(self._descriptor, 4096):
                self.shown += chunk

    def type(self, text: str) -> None:
        """As somebody would at the keyboard."""
        os.write(self._descriptor, text.encode())

    async def ended(self) -> int:
        """Its exit code, once it has ended by itself and all is shown."""
        async with asyncio.timeout(LIMIT_S):
            code = await self.process.wait()
            await self._reading
        assert b"Traceback" not in self.shown, self.shown.decode()
        return code


@asynccontextmanager
async def on_terminal(
    *arguments: str, start: tuple[str, ...] = ("-m", "bridge"), **variables: str
) -> AsyncIterator[OnTerminal]:
    """The command on a terminal of 80 columns; killed at the end if it still runs."""
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
tail.FIRST_PAUSE_S, tail.LONGEST_PAUSE_S, tail.STABLE_S, tail.PING_S = {pauses}
tail.PAUSE_WHEN_FULL_S = 8 * tail.FIRST_PAUSE_S
from bridge.cli import main
main()
"""
"""`tail` with other pauses."""
IMPATIENT = "0.02, 0.1, 0.0, 60.0"


class Tailing:
    """`edk-bridge tail` while it runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said: list[str] = []
        """On standard error, line by line."""
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        if self.process.stderr is None:
            return
        async for line in self.process.stderr:
            self.said.append(line.decode().removesuffix("\n"))

    async def says(self, words: str, times: int = 1) -> None:
        """Returns when it has said so often what begins so."""
        await eventually(f"it says {words!r}", lambda: sum(line.startswith(words) for line in self.said) >= times)

    async def prints(self, *texts: bytes) -> None:
        """Returns when it has printed these lines, as they are and no other."""
        assert self.process.stdout is not None
        for text in texts:
            async with asyncio.timeout(LIMIT_S):
                assert await self.process.stdout.readline() == text + b"\n"

    async def ended(self) -> int:
        """Its exit code, once it has ended by itself; nothing that it said is a traceback."""
        async with asyncio.timeout(LIMIT_S):
            code = await self.process.wait()
            await self._reading
        assert "Traceback" not in "\n".join(self.said), self.said
        return code


@asynccontextmanager
async def tailing(
    *arguments: str,
    pauses: str = IMPATIENT,
    stdout: int = asyncio.subprocess.PIPE,
    stderr: int = asyncio.subprocess.PIPE,
) -> AsyncIterator[Tailing]:
    """`edk-bridge tail`; killed at the end if it still runs. What goes to another standard error is not in `said`."""
    process = await asyncio.create_subprocess_exec(
        # As from a terminal: what runs in the background ignores Ctrl-C, and whatever it starts does.
        *("env", "--default-signal=INT", sys.executable, "-c", TAIL_SCRIPT.format(pauses=pauses), "tail", *arguments),
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
