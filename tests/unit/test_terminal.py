"""Tests that one rule decides whether the log, `tail` and progress lines write color and cursor movements."""

from __future__ import annotations

import io

import pytest

from bridge.terminal import moves_cursor, takes_color


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "color", "moves"),
    [
        ({}, True, True),
        ({"TERM": "xterm"}, True, True),
        ({"NO_COLOR": ""}, True, True),
        ({"NO_COLOR": "1"}, False, True),
        ({"NO_COLOR": "0"}, False, True),
        ({"NO_COLOR": " "}, False, True),
        ({"TERM": "dumb"}, False, False),
        ({"TERM": "dumb", "NO_COLOR": ""}, False, False),
    ],
)
def test_terminal_has_color_unless_the_environment_disables_it(
    environment: dict[str, str], *, color: bool, moves: bool
) -> None:
    assert (takes_color(Terminal(), environment), moves_cursor(Terminal(), environment)) == (color, moves)


@pytest.mark.parametrize("stream", [io.StringIO(), None])
def test_stream_that_is_no_terminal_has_no_color(stream: io.StringIO | None) -> None:
    assert (takes_color(stream, {}), moves_cursor(stream, {})) == (False, False)
