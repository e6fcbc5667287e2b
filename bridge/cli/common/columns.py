"""The width of a text on a terminal, in columns: a Chinese, Japanese or Korean character takes two columns."""

import unicodedata

ELLIPSIS = "..."


def columns(text: str) -> int:
    """Returns the number of columns that a text takes on a terminal.

    For text with combining characters, the result is too high.
    """
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def start(text: str, width: int) -> str:
    """Returns as much of the start of a text as fits into the width."""
    for number, character in enumerate(text):
        width -= columns(character)
        if width < 0:
            return text[:number]
    return text


def truncated(text: str, width: int) -> str:
    """Returns a text that fits into the width. If the text is too long, an ellipsis replaces its end."""
    if columns(text) <= width:
        return text
    return (start(text, width - len(ELLIPSIS)) + ELLIPSIS)[: max(width, 0)]
