"""Prints an update in color: types, ids and times stand out, and the names of members are dim."""

import re
from collections.abc import Callable
from functools import partial

import click

Style = Callable[[str], str]

# These colors are legible on black and on white.
NAME: Style = partial(click.style, dim=True)
TYPE: Style = partial(click.style, fg="magenta", bold=True)
ID: Style = partial(click.style, fg="cyan", bold=True)
TIME: Style = partial(click.style, fg="green")

_TOKEN = re.compile(r'("[^"\\]*(?:\\.[^"\\]*)*")(\s*:)?|-?[0-9][0-9.eE+-]*')
"""Matches a number or a string in JSON. A string before a colon is the name of a member."""

_IDS = frozenset({'"id"', '"killmailId"', '"eventId"'})


def colored(text: str) -> str:
    """Returns a line of JSON with colors. The color of a value depends on the name of its member."""
    name = ""

    def paint(found: re.Match[str]) -> str:
        nonlocal name
        if found[2]:
            name = found[1]
            return f"{NAME(name)}{found[2]}"
        style = _style(name)
        return found[0] if style is None else style(found[0])

    return _TOKEN.sub(paint, text)


def _style(name: str) -> Style | None:
    if name == '"type"':
        return TYPE
    if name in _IDS:
        return ID
    return TIME if name.lower().endswith(('time"', 'timestamp"')) else None
