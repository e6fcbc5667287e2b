"""Makes Ctrl-C end the process at once while a command starts, with exit code 130 and no output.

Without the handler, Python could raise KeyboardInterrupt anywhere, even inside an import, and print a traceback. The
entry point installs the handler for Ctrl-C before any other import. This module and `bridge` import only `signal` and
its dependencies, so that the handler is installed as early as possible.
"""

import os
import signal
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT
"""The exit code after Ctrl-C, as in shells."""


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
