"""An update in color: what it is, which one, and when stand out; names step back. Nothing but colors is added."""

import re

RESET = "\x1b[0m"
NAME, TYPE, ID, TIME = "\x1b[2m", "\x1b[1;35m", "\x1b[1;36m", "\x1b[32m"
"""Dim, bold magenta, bold cyan, green: legible on black and on white."""

_TOKEN = re.compile(r'("[^"\\]*(?:\\.[^"\\]*)*")(\s*:)?|-?[0-9][0-9.eE+-]*')
"""A string, which is a member's name where a colon follows, or a number."""

_IDS = frozenset({'"id"', '"killmailId"', '"eventId"'})


def colored(text: str) -> str:
    """A line of JSON, each of its values colored by the member's name."""
    name = ""

    def paint(found: re.Match[str]) -> str:
        nonlocal name
        if found[2]:
            name = found[1]
            return f"{NAME}{name}{RESET}{found[2]}"
        color = _color(name)
        return f"{color}{found[0]}{RESET}" if color else found[0]

    return _TOKEN.sub(paint, text)


def _color(name: str) -> str:
    if name == '"type"':
        return TYPE
    if name in _IDS:
        return ID
    return TIME if name.lower().endswith(('time"', 'timestamp"')) else ""
