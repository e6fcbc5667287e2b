"""Chooses the media type of a response by the header `Accept` (RFC 9110, sections 12.4.2 and 12.5.1).

The module is pure.
"""

import re
from collections.abc import Collection, Sequence

_WEIGHT = re.compile(r"0?\.[0-9]+|[01](?:\.0*)?")


def preferred(accepted: Sequence[str], media_types: Collection[str]) -> str | None:
    """Returns the media type that a client prefers, or None if the client accepts none of `media_types` by its name.

    `accepted` has the members of the header `Accept`, in lower case. The highest weight wins, and among equal weights
    the first member. Wildcards are ignored, because most clients accept everything by default. Other parameters than
    the weight make no difference. A member with the weight 0 or a malformed weight is ignored.
    """
    best, best_weight = None, 0.0
    for member in accepted:
        media_type, *parameters = (part.strip(" \t") for part in member.split(";"))
        if media_type in media_types and (weight := _weight(parameters)) > best_weight:
            best, best_weight = media_type, weight
    return best


def _weight(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            weight = parameter.removeprefix("q=")
            return float(weight) if _WEIGHT.fullmatch(weight) else 0.0
    return 1.0
