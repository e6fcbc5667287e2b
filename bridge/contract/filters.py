"""What a client asks for in its handshake's query: only some updates, and those after an id.

A filter has the types and the members that the query names. An update passes where its type is one of those asked for,
and its data has one of the given values for every named member. What a value may be is what the schemas declare, and
every reading that fits counts: `5` is an integer, and a string where some schema says so.

What is asked for is kept for as long as somebody asks for it, and so a query has `MOST_VALUES` values at most; the
request line, of which it is a part, has 8190 bytes.

This file must never know who asks, or how updates get to them.
"""

import difflib
import heapq
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import parse_qsl

import orjson

from bridge.contract.catalog import Catalog
from bridge.contract.text import printable

Plain = str | int | float | None

MOST_VALUES = 256
"""In one query: types, and values of members. A filter of one integer takes 0.8 KB, one of so many 16 KB, and none more
than 72 KB: that of the longest line, whose strings have a character each that takes four bytes. To read a query takes
1.5 ms."""

_ABSENT = object()
"""What no filter asks for: null is a value that must be there."""

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
"""RFC 8259, section 6."""

PARAMETERS = ("type", "after")
"""What a query may have beside the members of updates."""

_ALIASES = {
    **dict.fromkeys(("types", "event", "events", "topic", "topics", "channel", "channels", "kinds"), "type"),
    **dict.fromkeys(("since", "from", "cursor", "id", "ids", "lastid", "lasteventid", "offset", "start"), "after"),
}
"""What other feeds call these parameters, without case and without anything between letters."""

_BRACKETS = re.compile(r"\[[^\[\]]*\]$")
"""How PHP, jQuery and axios write a parameter that is there several times."""

_SEPARATORS = re.compile("[,;| ]+")

_EXAMPLES = {
    "integer": "an integer (30000142)",
    "number": "a number (0.5)",
    "boolean": "true or false",
    "null": "null",
}


class BadQuery(ValueError):
    """A query that asks for what can't be. Its text is a sentence for the client: printable, and bounded."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which updates a client wants. Equal to another that asks for the same."""

    types: frozenset[str] | None
    """None: every type."""
    members: tuple[tuple[str, frozenset[Plain], frozenset[bool]], ...]
    """Each member once, in order, with its values. Those that are true and false apart, which are 1 and 0 to Python."""

    def matches(self, update_type: str, data: object) -> bool:
        """Whether an update passes. Never raises, whatever the data.

        For every update and distinct filter: 0.2 microseconds with a type and a member.
        """
        if self.types is not None and update_type not in self.types:
            return False
        if not self.members:
            return True
        if not isinstance(data, dict):
            return False
        try:
            for name, plain, booleans in self.members:
                value = data.get(name, _ABSENT)
                if value not in (booleans if value is True or value is False else plain):
                    return False
        except TypeError:
            # An array or an object, which no set can be asked for.
            return False
        return True


class Wish(NamedTuple):
    """What a client asks for."""

    filter: Filter | None
    """None: everything."""
    after: str | None
    """None: updates without ids. Empty: with ids, from now on. Else the id as it was given, which may be unknown."""


class Filters:
    """Reads queries by the types and members of a catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._types = frozenset(catalog.types)
        self._known_types = printable(", ".join(sorted(self._types)), 200)
        self._members = catalog.filterable
        self._near_types = Nearest(self._types)
        self._near_names = Nearest([*PARAMETERS, *catalog.filterable])

    def read(self, query: str) -> Wish:
        """The wish in a query: what stands behind the `?`, percent-encoded. Raises BadQuery."""
        # Before anything is decoded, which takes most of the time that a query does.
        values = sum(field != "" and field.partition("=")[0] != "after" for field in query.split("&"))
        if values > MOST_VALUES:
            raise BadQuery(f"the query has {values} values of types and members; give {MOST_VALUES} at most")
        types: set[str] = set()
        after: str | None = None
        # No sets yet: one that is made of a set is twice as large.
        members: dict[str, tuple[list[Plain], list[bool]]] = {}
        try:
            pairs = parse_qsl(query, keep_blank_values=True, errors="strict")
        except UnicodeDecodeError as error:
            raise BadQuery("the query's percent-encoding must be of UTF-8 (%C3%A9, not %E9)") from error
        for name, value in pairs:
            if name == "type":
                types.add(self._type(value))
            elif name == "after":
                if after is not None:
                    raise BadQuery("after is there twice; give it once, with the last id that you have")
                after = value
            else:
                plain, booleans = members.setdefault(name, ([], []))
                for reading in self._readings(name, value):
                    if isinstance(reading, bool):
                        booleans.append(reading)
                    else:
                        plain.append(reading)
        if not types and not members:
            return Wish(None, after)
        named = sorted(members.items())
        wanted = tuple((name, frozenset(plain), frozenset(booleans)) for name, (plain, booleans) in named)
        return Wish(Filter(frozenset(types) or None, wanted), after)

    def _type(self, value: str) -> str:
        if value not in self._types:
            parts = _SEPARATORS.split(value[:_TYPED])
            if len(parts) > 1 and self._types.issuperset(parts):
                hint = f" ({_repeat('type', parts)})"
            else:
                close = self._near_types.to(value)
                hint = f" (did you mean {printable(close, 40)}?)" if close else ""
            raise BadQuery(f"there is no update type {printable(value, 40)!r}{hint}; there are {self._known_types}")
        return value

    def _readings(self, name: str, value: str) -> list[str | bool | float | None]:
        """The value as each of the types that the member may have."""
        types = self._members.get(name)
        if types is None:
            raise BadQuery(self._unknown(name))
        readings: list[str | bool | float | None] = []
        if "string" in types:
            readings.append(value)
        if "null" in types and value == "null":
            readings.append(None)
        if "boolean" in types and value in {"true", "false"}:
            readings.append(value == "true")
        number = _number(value)
        if number is not None and ("number" in types or ("integer" in types and float(number).is_integer())):
            readings.append(number)
        if not readings:
            wanted = " or ".join(words for kind, words in _EXAMPLES.items() if kind in types)
            parts = _SEPARATORS.split(value[:_TYPED])
            hint = f"; {_repeat(name, parts)}" if len(parts) > 1 and all(map(_number, parts)) else ""
            raise BadQuery(f"{printable(name, 40)} must be {wanted}; got {printable(value, 40)!r}{hint}")
        return readings

    def _unknown(self, name: str) -> str:
        said = f"there is no member {printable(name, 40)!r} to filter by"
        bare = _BRACKETS.sub("", name[:_TYPED])
        if bare not in {name, "after"} and (bare in PARAMETERS or bare in self._members):
            return f"{said}; {_repeat(bare, ['a', 'b'])}"
        letters = "".join(filter(str.isalnum, bare)).lower()
        close = _ALIASES.get(letters) or self._near_names.to(bare)
        return f"{said}; did you mean {printable(close, 40)}?" if close else f"{said}; /schemas/ says which there are"


_TYPED = 80
"""Characters of a query that a hint is made of: what people type. Of what is much longer than any name, no name is a
close match, but one may be of its start."""


class Nearest:
    """The name that somebody may have meant. Takes 0.2 ms, however many names there are."""

    _COMPARED = 8

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {name.lower(): name for name in names}
        self._letters = [(frozenset(name), name) for name in self._names]

    def to(self, text: str) -> str | None:
        """None where no name is near."""
        text = text[:_TYPED].lower()
        letters = frozenset(text)
        # difflib takes 20 microseconds for a name: it is asked about those that share most letters.
        likely = heapq.nsmallest(self._COMPARED, self._letters, key=lambda known: len(letters ^ known[0]))
        close = difflib.get_close_matches(text, [name for _, name in likely], n=1)
        return self._names[close[0]] if close else None


def _repeat(name: str, values: Sequence[str]) -> str:
    """How several values are asked for."""
    pairs = "&".join(f"{name}={value}" for value in values[:2])
    return f"for several values, repeat the parameter: {printable(pairs, 80)}"


def _number(text: str) -> float | None:
    """The number as JSON writes it, and read as the numbers in an event are; None where it is none."""
    if _NUMBER.fullmatch(text) is None:
        return None
    try:
        number: float = orjson.loads(text)
    except orjson.JSONDecodeError:
        # Too large for a floating point number.
        return None
    return number
