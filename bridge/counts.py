"""Formats a number together with its noun, such as `1 event` and `1,204 events`."""


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun, which is in the plural unless the number is 1."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
