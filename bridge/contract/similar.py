"""Which known name is probably meant by an unknown one."""

import difflib
from collections.abc import Collection

COMPARED_NAMES = 1000
"""Names that one name is compared with. To compare it with 30,000 takes more than a second."""


def similar(name: str, names: Collection[str], cutoff: float = 0.75) -> str | None:
    """Returns the most similar name, in any case of letters; None if none is similar, or there are too many.

    `cutoff` is the ratio of difflib from which a name is similar. Of a short name, two letters in the wrong order cost
    more than that, so a name with the same letters is similar, too.
    """
    if len(names) > COMPARED_NAMES:
        return None
    lower = name.lower()
    by_lower = {each.lower(): each for each in names}
    close = difflib.get_close_matches(lower, by_lower, 1, cutoff)
    letters = sorted(lower)
    found = close or [each for each in by_lower if len(each) == len(lower) and sorted(each) == letters]
    return by_lower[found[0]] if found else None
