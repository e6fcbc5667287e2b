"""Describes the parameters of a request for updates, for the AsyncAPI and the OpenAPI document."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bridge.contract.documents.messages import Object
from bridge.contract.filters import MAX_LAST, MAX_LIMIT, MAX_WAIT_S, Format, parameter

ABOUT = (
    "If a parameter occurs several times, one of its values must match: ?systemId=30000142&systemId=30002187. "
    "Different parameters must all match. data.NAME names the member NAME of the data, even if a parameter has this "
    "name."
)
"""A sentence about filters, for readers of the documents."""

OTHER_MEMBERS = r"^data\."
"""A pattern of the further names of parameters: with the prefix `data.`, a parameter names any member."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the query."""

    name: str
    description: str
    value: Object
    """The schema of one value."""
    repeats: bool = False
    """Whether the parameter can occur several times."""

    @property
    def schema(self) -> Object:
        """The schema of all values. An array stands for a parameter that can occur several times."""
        return {"type": "array", "items": self.value} if self.repeats else self.value


def start(always_has_ids: bool) -> list[Parameter]:
    """Returns the parameters that say where the updates start. `always_has_ids` is False for WebSocket."""
    ids = (
        "Updates start after this id. If the value is empty, they start now."
        if always_has_ids
        else "Asks for ids. The first message is then a resume. If the value is empty, updates start now. If it is an "
        "id, they start after this id."
    )
    return [
        Parameter(
            "after",
            f"{ids} earliest stands for everything that is kept, except a margin of the oldest updates.",
            {"type": "string"},
        ),
        Parameter(
            "last",
            "Begins with the newest updates that match: at most this number. Together with an id in after, the number "
            "applies only if the id is unknown or too old. It is not possible together with after=earliest.",
            {"type": "integer", "minimum": 1, "maximum": MAX_LAST},
        ),
    ]


def types(names: Iterable[str]) -> Parameter:
    """Returns the parameter that selects update types."""
    return Parameter("type", "Only updates of these types.", {"type": "string", "enum": list(names)}, repeats=True)


def members(filterable: Mapping[str, frozenset[str]]) -> list[Parameter]:
    """Returns a parameter for each member that clients can filter by."""
    return [
        Parameter(
            parameter(name),
            f"Only updates whose data has one of these values as its {name}.",
            {"type": min(kinds) if len(kinds) == 1 else sorted(kinds)},
            repeats=True,
        )
        for name, kinds in filterable.items()
    ]


FORMAT = Parameter(
    "format",
    "Asks for Server-Sent Events or JSON. This parameter takes precedence over the header Accept.",
    {"type": "string", "enum": [each.value for each in Format]},
)

POLL = (
    Parameter(
        "limit",
        "JSON only: the maximum number of updates in the response.",
        {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": 100},
    ),
    Parameter(
        "wait",
        "JSON only: how long the response waits for the first update or gap, in seconds.",
        {"type": "integer", "minimum": 0, "maximum": MAX_WAIT_S, "default": 0},
    ),
)
"""The parameters of a request for JSON only."""
