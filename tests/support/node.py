"""A program that Node runs, as a child process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.waiting import LIMIT_S


@asynccontextmanager
async def node_program(node: str, script: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The script, running; killed at the end if it still runs. `node` is Node's command."""
    process = await asyncio.create_subprocess_exec(
        node,
        script.name,
        *arguments,
        cwd=script.parent,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**20,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def line(process: asyncio.subprocess.Process) -> bytes:
    """The next line that it prints, without its end."""
    assert process.stdout is not None
    async with asyncio.timeout(LIMIT_S):
        return (await process.stdout.readline()).removesuffix(b"\n")
