"""`edk-bridge tail` as a process, with other pauses."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson

from tests.support.waiting import LIMIT_S, eventually

SCRIPT = """
from bridge.commands import tail
tail.FIRST_PAUSE_S, tail.LONGEST_PAUSE_S, tail.LASTING_S, tail.PING_S = {pauses}
tail.PAUSE_WHEN_FULL_S = 8 * tail.FIRST_PAUSE_S
from bridge.cli import main
main()
"""
IMPATIENT = "0.02, 0.1, 0.0, 60.0"


class Tailing:
    """The command while it runs."""

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
    """The command; killed at the end if it still runs. What goes to another standard error is not in `said`."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("BRIDGE_")}
    process = await asyncio.create_subprocess_exec(
        # As from a terminal: what runs in the background ignores Ctrl-C, and whatever it starts does.
        *("env", "--default-signal=INT", sys.executable, "-c", SCRIPT.format(pauses=pauses), "tail", *arguments),
        env=environment,
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


class InTail:
    """One follower among others."""

    def __init__(self, tail: Tailing) -> None:
        self.tail = tail
        self._told: list[list[Any]] = []
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.tail.process.stdout is not None
        async for line in self.tail.process.stdout:
            self._told.append(["update", orjson.loads(line)])

    async def told(self) -> list[list[Any]]:
        """Updates, and where some are missing that it was said: `["missed"]`; where it was refused: `["refused"]`."""
        missed = [["missed"] for line in self.tail.said if "missing" in line]
        return [*self._told, *missed, *(["refused"] for line in self.tail.said if "refuses" in line)]

    async def stop(self) -> None:
        """Asks it to end."""
        self.tail.process.terminate()


@asynccontextmanager
async def in_tail(*arguments: str, pauses: str = IMPATIENT) -> AsyncIterator[InTail]:
    """The command as a follower."""
    async with tailing(*arguments, pauses=pauses) as tail:
        follower = InTail(tail)
        yield follower
    await follower.reading
