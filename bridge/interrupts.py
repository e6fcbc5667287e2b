"""If Ctrl-C is pressed while a command starts, ends the process at once, with exit code 130 and no output.

Without this handler, Python would raise KeyboardInterrupt at any point, even inside an import, and print a traceback.
The entry point installs this handler before any other import. This module and `bridge` itself therefore import only
`signal` and its dependencies.
"""

import os
import signal
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT
"""The exit code after Ctrl-C, which is the same as in shells."""


def exit_on_interrupt() -> None:
    """Makes Ctrl-C end the process at once. Does nothing if SIGINT is ignored, as in a background job of a shell."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def raise_on_interrupt() -> None:
    """Makes Ctrl-C raise KeyboardInterrupt again, for a command that has something to report or to close."""
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _exit(_number: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)
