"""A status line on a terminal, which shows the progress of a long command, or what the command waits for.

This module does not use click for the status line: click has no spinner, and while its progress bar is shown, a
program can't print lines. Without a terminal, there is no status line: cron, for example, would send it by mail.
"""

import asyncio
import os
import time
from collections.abc import Callable
from typing import TextIO

from bridge.terminal import moves_cursor

FIRST_S = 1.0
"""The time after which a command first shows its progress."""

ON_TERMINAL_S = 0.2
"""The interval at which the status line is updated."""

STEP_S = 0.15
"""The interval at which the spinner turns. If a wait is shorter than this interval, no spinner is shown."""

WHEEL = "|/-\\"

CLEAR = "\x1b[K"
"""The control sequence that erases the rest of the line, from the cursor on."""


class Progress:
    """Shows the progress of a command, and prints lines that stay on the terminal."""

    def __init__(self, stream: TextIO | None, text: Callable[[], str]) -> None:
        """`text` is a function that returns a text about the progress.

        If the stream is closed, `stream` is None, and nothing is printed.
        """
        self._stream = stream
        self._text = text
        self._on_terminal = moves_cursor(stream)
        self._next_s = time.monotonic() + FIRST_S
        self._shown = False

    def tick(self) -> None:
        """Shows the progress if enough time has passed since it was last shown. Call this method often."""
        now_s = time.monotonic()
        if not self._on_terminal or now_s < self._next_s:
            return
        self._next_s = now_s + ON_TERMINAL_S
        self._clear()
        # The cursor returns to the start of the line, so that a line from another program overwrites the status line.
        self._write(self._text() + "\r")
        self._shown = True

    def say(self, line: str) -> None:
        """Prints a line that stays on the terminal."""
        self._clear()
        self._write(line + "\n")

    def _clear(self) -> None:
        if self._shown:
            self._write(CLEAR)
            self._shown = False

    def _write(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(text)
            self._stream.flush()


class Spinner:
    """Shows what a command waits for, and prints lines that stay on the terminal.

    A spinner must be created while an event loop is running.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._moves = moves_cursor(stream)
        self._text = ""
        self._step = 0
        self._shown = False
        self._turning: asyncio.TimerHandle | None = None

    def wait(self, text: str) -> None:
        """Shows this text until the next call of `wait`, even if `say` prints lines meanwhile.

        An empty text shows nothing.
        """
        self._text = text
        self._stop()
        if text and self._moves:
            # The status line is not shown immediately, because a short wait needs no status line.
            self._turning = asyncio.get_running_loop().call_later(STEP_S, self._turn)

    def say(self, line: str) -> None:
        """Prints a line that stays on the terminal."""
        self._erase()
        self._write(line + "\n")

    def close(self) -> None:
        """Erases the status line."""
        self.wait("")

    def _turn(self) -> None:
        if self._is_in_foreground():
            self._step = (self._step + 1) % len(WHEEL)
            self._write(f"\r{WHEEL[self._step]} {self._text}{CLEAR}")
            self._shown = True
        self._turning = asyncio.get_running_loop().call_later(STEP_S, self._turn)

    def _is_in_foreground(self) -> bool:
        """Returns False in a background job of a shell, because the terminal then belongs to another job."""
        assert self._stream is not None
        try:
            return os.tcgetpgrp(self._stream.fileno()) == os.getpgrp()
        except OSError:
            # The terminal is not the controlling terminal of this process.
            return True

    def _stop(self) -> None:
        if self._turning is not None:
            self._turning.cancel()
            self._turning = None
        self._erase()

    def _erase(self) -> None:
        if self._shown:
            self._shown = False
            self._write(f"\r{CLEAR}")

    def _write(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(text)
            self._stream.flush()
