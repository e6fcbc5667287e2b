"""Something that moves on a terminal while there is nothing else to show, and leaves no trace.

Where standard error is no terminal, or one that can't go back in its line, nothing moves.
"""

import asyncio
import os
from typing import TextIO

from bridge.terminal import moves_cursor

STEP_S = 0.15
WHEEL = "|/-\\"
ERASE = "\r\x1b[K"


class Spinner:
    """Says on `stream` what is waited for. Made inside a running event loop."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._moves = moves_cursor(stream)
        self._text = ""
        self._step = 0
        self._shown = False
        self._turning: asyncio.TimerHandle | None = None

    def wait(self, text: str) -> None:
        """Shows this until something else is said, and again after that; empty: nothing."""
        self._text = text
        self._stop()
        if text and self._moves:
            # Not at once: what is soon done needs no line.
            self._turning = asyncio.get_running_loop().call_later(STEP_S, self._turn)

    def say(self, line: str) -> None:
        """A line that stays."""
        self._erase()
        self._write(line + "\n")

    def close(self) -> None:
        """Ends it."""
        self.wait("")

    def _turn(self) -> None:
        if self._in_front():
            self._step = (self._step + 1) % len(WHEEL)
            self._write(f"\r{WHEEL[self._step]} {self._text}\x1b[K")
            self._shown = True
        self._turning = asyncio.get_running_loop().call_later(STEP_S, self._turn)

    def _in_front(self) -> bool:
        """False in the background of a shell, where the terminal is somebody else's."""
        assert self._stream is not None
        try:
            return os.tcgetpgrp(self._stream.fileno()) == os.getpgrp()
        except OSError:
            # A terminal that is nobody's controlling one.
            return True

    def _stop(self) -> None:
        if self._turning is not None:
            self._turning.cancel()
            self._turning = None
        self._erase()

    def _erase(self) -> None:
        if self._shown:
            self._shown = False
            self._write(ERASE)

    def _write(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(text)
            self._stream.flush()
