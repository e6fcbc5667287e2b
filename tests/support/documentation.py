"""The code blocks of the documentation, so that tests run them unchanged.

A test names a block by its document, its heading and its number: `code_block("README.md", "Publish")`. The three
arguments of `code_block` must be literals, because `tests/unit/test_documentation.py` reads them to find blocks that no
test runs.
"""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

from tests.support.waiting import LIMIT_S

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


class Block(NamedTuple):
    """A fenced code block."""

    document: str
    """The path of the document in the project."""
    heading: str
    """The nearest heading above the block."""
    number: int
    """The position of the block among the blocks below its heading, from 0."""
    language: str
    """The word after the fence, which may be empty."""
    text: str
    line: int


def blocks(document: str) -> list[Block]:
    """Returns all code blocks of a document. Raises ValueError if a fence is not closed."""
    found: list[Block] = []
    heading = ""
    fence: re.Match[str] | None = None
    start, content = 0, list[str]()
    for line, text in enumerate((ROOT / document).read_text().splitlines(), 1):
        if fence is None:
            if title := re.fullmatch(r"#+ (.+)", text):
                heading = title[1]
            elif fence := re.fullmatch(r"( *)```(\S*)", text):
                start, content = line, []
        elif text == f"{fence[1]}```":
            number = sum(block.heading == heading for block in found)
            code = dedent("".join(f"{each}\n" for each in content))
            found.append(Block(document, heading, number, fence[2], code, start))
            fence = None
        else:
            content.append(text)
    if fence is not None:
        raise ValueError(f"{document}:{start}: the code block has no end")
    return found


def code_block(document: str, heading: str, number: int = 0) -> str:
    """Returns the text of a code block. Raises LookupError if the document has no such block."""
    for block in blocks(document):
        if (block.heading, block.number) == (heading, number):
            return block.text
    raise LookupError(f"{document} has no code block {number} below the heading {heading!r}")


def adapted(text: str, *changes: tuple[str, str]) -> str:
    """Replaces the parts of an example that must differ in a test, such as an address.

    Raises LookupError if a text is missing.
    """
    for old, new in changes:
        if old not in text:
            raise LookupError(f"the example does not contain {old!r}:\n{text}")
        text = text.replace(old, new)
    return text


async def shell(command: str, folder: Path, limit_s: float = LIMIT_S, /, **variables: str) -> bytes:
    """Runs a shell command with `edk-bridge` in the PATH. Returns the command's output, including errors.

    The command inherits no settings of the bridge. Raises AssertionError with the output if the exit code is not 0.
    """
    environment = {name: text for name, text in os.environ.items() if not name.startswith("BRIDGE_")}
    environment |= {"PATH": f"{BIN}:{environment['PATH']}", **variables}
    process = await asyncio.create_subprocess_shell(
        command, cwd=folder, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(limit_s):
        output, _ = await process.communicate()
    assert process.returncode == 0, output
    return output


@asynccontextmanager
async def program(*command: str | Path, folder: Path) -> AsyncIterator[asyncio.StreamReader]:
    """Runs a program, yields its output, and ends the program and its children if it has not ended."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdout=asyncio.subprocess.PIPE, process_group=0
    )
    try:
        assert process.stdout is not None
        yield process.stdout
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def printed_line(output: asyncio.StreamReader, pattern: str) -> str:
    """Waits for the first output line that matches `pattern`, and returns this line."""
    async with asyncio.timeout(LIMIT_S):
        while line := await output.readline():
            if re.search(pattern, line.decode()):
                return line.decode()
    raise AssertionError(f"the program has ended without {pattern!r}")
