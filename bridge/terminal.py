"""Decides whether a stream supports colors and the escape sequences that move the cursor."""

import os
from collections.abc import Mapping
from typing import TextIO


def takes_color(stream: TextIO | None, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the stream is a terminal and NO_COLOR is unset or empty (https://no-color.org)."""
    return moves_cursor(stream, environment) and not environment.get("NO_COLOR")


def moves_cursor(stream: TextIO | None, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the stream is a terminal that supports escape sequences (not `TERM=dumb`)."""
    return stream is not None and stream.isatty() and environment.get("TERM") != "dumb"
