"""What may be written to a stream beside plain lines: color, and sequences that move the cursor. One rule for all."""

import os
from collections.abc import Mapping
from typing import TextIO


def takes_color(stream: TextIO | None, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether it is a terminal, and nobody has asked for plain text (https://no-color.org: NO_COLOR, if not empty)."""
    return moves_cursor(stream, environment) and not environment.get("NO_COLOR")


def moves_cursor(stream: TextIO | None, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether it is a terminal that knows escape sequences: one with `TERM=dumb` prints them."""
    return stream is not None and stream.isatty() and environment.get("TERM") != "dumb"
