"""One line on a terminal that says how far a long command is, and lines that stay between."""

import time
from collections.abc import Callable
from typing import TextIO

from bridge.terminal import moves_cursor

FIRST_S = 1.0
"""What takes less time than this needs no line."""

ON_TERMINAL_S = 0.2
"""How often it is said, over itself."""


class Progress:
    """Says how far it is on `stream`, now and then, where that is a terminal: cron sends each line as mail."""

    def __init__(self, stream: TextIO | None, text: Callable[[], str]) -> None:
        self._stream = stream
        self._text = text
        self._on_terminal = moves_cursor(stream)
        self._next_s = time.monotonic() + FIRST_S
        self._shown = False

    def tick(self) -> None:
        """To be called often: says how far it is where it is time for that."""
        now_s = time.monotonic()
        if not self._on_terminal or now_s < self._next_s:
            return
        self._next_s = now_s + ON_TERMINAL_S
        self._clear()
        # The cursor goes back, so that a line which somebody else writes stands in its place, not behind it.
        self._write(self._text() + "\r")
        self._shown = True

    def say(self, line: str) -> None:
        """A line that stays."""
        self._clear()
        self._write(line + "\n")

    def _clear(self) -> None:
        if self._shown:
            self._write("\x1b[K")
            self._shown = False

    def _write(self, text: str) -> None:
        # Where standard error is closed nobody is told, and the work is done all the same.
        if self._stream is not None:
            self._stream.write(text)
            self._stream.flush()
