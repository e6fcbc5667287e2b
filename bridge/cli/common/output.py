"""Standard output for a command that goes on while nobody takes what it prints.

Whoever writes to a pipe that is full waits, and an event loop must not: Ctrl-C would not be seen. Of what is printed,
this file knows that it is JSON, or holds nothing that a terminal could take for a command.
"""

import asyncio
import json
import os
import select
import stat

from bridge.cli.common.colors import colored
from bridge.cli.common.streams import ESCAPE


class Output:
    """One descriptor, for lines. Made inside a running event loop."""

    def __init__(self, descriptor: int, in_color: bool = False, encoding: str = "utf-8") -> None:
        self._descriptor = descriptor
        self._in_color = in_color
        self._encoding = encoding
        self._loop = asyncio.get_running_loop()
        self._on_terminal = os.isatty(descriptor)
        self._is_pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
        self._waits = True

    async def line(self, text: str) -> None:
        """Prints a line of JSON. Raises BrokenPipeError, or another OSError, where nobody takes it any more.

        What a terminal might take for a command is escaped, which is the same JSON: that can only be in a string.
        Colored output is for a terminal, also through a pager. Characters that the encoding does not have are escaped
        too.
        """
        if (self._on_terminal or self._in_color) and not text.isprintable():
            text = "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
        if self._in_color:
            text = colored(text)
        rest = memoryview(text.encode(self._encoding, ESCAPE) + b"\n")
        while rest:
            await self._writable()
            try:
                # So much goes into a pipe that takes anything at all.
                rest = rest[os.write(self._descriptor, rest[: select.PIPE_BUF]) :]
            except BlockingIOError:
                # Another program has made it one that never waits, and was faster.
                await asyncio.sleep(0)

    async def abandoned(self) -> None:
        """Returns when nobody reads the pipe any more; never, where it is none."""
        gone = asyncio.Event()
        if self._is_pipe:
            # There is nothing to read from this end: what wakes the loop is an error.
            self._loop.add_reader(self._descriptor, gone.set)
        try:
            await gone.wait()
        finally:
            self._loop.remove_reader(self._descriptor)

    async def _writable(self) -> None:
        if not self._waits:
            return
        ready = asyncio.Event()
        try:
            self._loop.add_writer(self._descriptor, ready.set)
        except PermissionError:
            # A file, for which epoll has no waiting.
            self._waits = False
            return
        try:
            await ready.wait()
        finally:
            self._loop.remove_writer(self._descriptor)
