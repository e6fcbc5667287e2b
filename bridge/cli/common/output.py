"""Standard output and standard error of the commands.

If the encoding of the stream does not have a character, the character is escaped.
"""

import asyncio
import codecs
import io
import json
import os
import select
import stat
import sys
from typing import TextIO

from bridge.cli.common.colors import colored

ESCAPE = "edk-bridge.escape"
"""The name of an error handler for encoders.

The handler escapes characters as JSON does (`\\u00e9`), so that JSON keeps its meaning.
"""


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error(ESCAPE, _escape)


def escape_unencodable() -> None:
    """Makes standard output and standard error escape all characters that their encodings do not have."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ESCAPE)


def json_encoding(stream: TextIO) -> str:
    """Returns the encoding for JSON: UTF-8 if it is the stream's encoding, or else ASCII, a subset of UTF-8."""
    return "utf-8" if codecs.lookup(stream.encoding).name == "utf-8" else "ascii"


def echo(line: str, *, err: bool = False) -> None:
    """Prints a line, unless the stream is closed.

    Unlike this function, `click.echo` would write UTF-8 to an ASCII stream.
    """
    stream = sys.stderr if err else sys.stdout
    if stream is not None:
        stream.write(f"{line}\n")
        stream.flush()


def echo_json(document: str) -> None:
    """Prints a JSON document on standard output."""
    if sys.stdout is not None and json_encoding(sys.stdout) == "ascii":
        document = document.encode("ascii", ESCAPE).decode("ascii")
    echo(document)


class Output:
    """Prints lines to a file descriptor, so that a slow reader does not block the event loop.

    The object must be created while an event loop is running.
    """

    def __init__(self, descriptor: int, in_color: bool = False, encoding: str = "utf-8") -> None:
        self._descriptor = descriptor
        self._in_color = in_color
        self._encoding = encoding
        self._loop = asyncio.get_running_loop()
        self._on_terminal = os.isatty(descriptor)
        self._is_pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
        self._waits = True

    async def line(self, text: str) -> None:
        """Prints a line with JSON or printable text.

        Raises BrokenPipeError or another OSError if the reader of the output has ended.

        Control characters are escaped on a terminal. Control characters are also escaped in colored output, because a
        pager passes this output on to a terminal. In JSON, control characters are only in strings, so escaping does not
        change the meaning.
        """
        if (self._on_terminal or self._in_color) and not text.isprintable():
            text = "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
        await self.styled_line(colored(text) if self._in_color else text)

    async def styled_line(self, text: str) -> None:
        """Prints a line that is already escaped, and may have colors. Raises the same errors as `line`."""
        rest = memoryview(text.encode(self._encoding, ESCAPE) + b"\n")
        while rest:
            await self._writable()
            try:
                # A writable pipe accepts at least PIPE_BUF bytes.
                rest = rest[os.write(self._descriptor, rest[: select.PIPE_BUF]) :]
            except BlockingIOError:
                # Another program, which writes to the same pipe, has set O_NONBLOCK, and has just filled the pipe.
                await asyncio.sleep(0)

    async def abandoned(self) -> None:
        """Returns when the reader closes the pipe. Never returns if the descriptor is not a pipe."""
        gone = asyncio.Event()
        if self._is_pipe:
            # The writing end of a pipe never has data to read, so the event loop calls this reader only if the pipe is
            # closed.
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
            # epoll does not support regular files.
            self._waits = False
            return
        try:
            await ready.wait()
        finally:
            self._loop.remove_writer(self._descriptor)
