"""Finds the known name that the author of a misspelled name probably meant."""

import difflib
from collections.abc import Collection

COMPARED_NAMES = 1000
"""The maximum number of known names with which a name is compared. Comparing a name with 30,000 names takes more than a
second."""


def similar(name: str, names: Collection[str], cutoff: float = 0.75) -> str | None:
    """Returns the most similar name, ignoring case, or None if no name is similar or there are too many names.

    `cutoff` is difflib's minimum ratio for a similar name. If two letters of a short name are swapped, difflib's ratio
    is lower than the default `cutoff`. Names that differ only in the order of their letters count as similar, whatever
    their ratio.
    """
    if len(names) > COMPARED_NAMES:
        return None
    lower = name.lower()
    by_lower = {each.lower(): each for each in names}
    close = difflib.get_close_matches(lower, by_lower, 1, cutoff)
    letters = sorted(lower)
    found = close or [each for each in by_lower if len(each) == len(lower) and sorted(each) == letters]
    return by_lower[found[0]] if found else None
