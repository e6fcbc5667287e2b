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
from bisect import bisect
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import orjson

from bridge.contract.catalog import Catalog
from bridge.contract.text import printable
from bridge.contract.update_id import UpdateId

Plain = str | int | float | None

MOST_VALUES = 256
"""In one query: types, and values of members. A filter of one integer takes 0.8 KB, one of so many 16 KB, and none more
than 72 KB: that of the longest line, whose strings have a character each that takes four bytes. Whatever
it holds, a query is read in half a millisecond."""

MOST_FIELDS = 2 * MOST_VALUES
"""Limits the fields of a query, which are separated by `&`. Empty fields count too."""

MOST_ESCAPES = 1024
"""Limits the percent-encoded bytes of a query. Decoding one byte takes a third of a microsecond."""

_ABSENT = object()
"""What no filter asks for: null is a value that must be there."""

_A_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
"""RFC 8259, section 6."""

_NUMBER, _SEVERAL_NUMBERS = re.compile(_A_NUMBER), re.compile(f"{_A_NUMBER}(?:,{_A_NUMBER})*")

PARAMETERS = ("type", "after")
"""What a query may have beside the members of updates."""

_TYPE = "type types event events eventtype messagetype updatetype topic topics channel channels kinds stream subscribe"
_AFTER = (
    "since from cursor id ids offset start resume sinceid fromid startfrom resumefrom lastid lasteventid lastmessageid"
)
_ALIASES = {**dict.fromkeys(_TYPE.split(), "type"), **dict.fromkeys(_AFTER.split(), "after")}
"""What other feeds call these parameters, without case and without anything between letters."""

_SOURCES = {"solarsystemid": "systemId", "solarsystem": "systemId", "characterid": "victimId"}
"""What ESI and EDK call members of a killmail."""

_CONDITIONS = frozenset({"filter", "filters", "where", "q", "query"})

_BRACKETS = re.compile(r"\[[^\[\]]*\]$")
"""How PHP, jQuery and axios write a parameter that is there several times."""

_SEPARATORS = re.compile(r"""[][,;|"' ]+""")
"""Between and around the values of a list, as people write one."""

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


@dataclass(frozen=True, slots=True)
class After:
    """Where a client that asked for ids starts: from now on, or after an update that it has."""

    text: str
    """The value of `after` as the client sent it, decoded. Empty: from now on."""
    id: UpdateId | None
    """None if the text is empty or not an id. Text that is not an id is treated as an unknown id."""

    @classmethod
    def parse(cls, text: str) -> "After":
        """Accepts any text."""
        return cls(text, UpdateId.parse(text))

    @property
    def is_from_now_on(self) -> bool:
        """Whether the client gets no earlier updates."""
        return not self.text

    @property
    def is_malformed(self) -> bool:
        """Whether no bridge can have given this text as an id."""
        return bool(self.text) and self.id is None


@dataclass(frozen=True, slots=True)
class SubscribeRequest:
    """What a client asks for in the query of its request."""

    filter: Filter | None
    """None: everything."""
    after: After | None
    """None: updates without ids."""


class Filters:
    """Reads queries by the types and members of a catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._types = frozenset(catalog.types)
        self._known_types = printable(", ".join(sorted(self._types)), 200)
        self._members = catalog.filterable
        self._near_types = Nearest(self._types)
        self._near_names = Nearest([*PARAMETERS, *catalog.filterable])

    def read(self, query: str) -> SubscribeRequest:
        """The request in a query: what stands behind the `?`, percent-encoded. Raises BadQuery."""
        # Before anything is decoded, which takes most of the time that a query does.
        if query.count("&") > MOST_FIELDS:
            raise BadQuery(f"the query has more than {MOST_FIELDS} fields; give {MOST_VALUES} values at most")
        if query.count("%") > MOST_ESCAPES:
            raise BadQuery(f"the query has more than {MOST_ESCAPES} percent-encoded bytes")
        fields = [field.partition("=") for field in query.split("&") if field]
        if len(fields) > MOST_VALUES and (count := sum(name != "after" for name, _, _ in fields)) > MOST_VALUES:
            raise BadQuery(f"the query has {count} values of types and members; give {MOST_VALUES} at most")
        names, values = [name for name, _, _ in fields], [value for _, _, value in fields]
        if "%" in query or "+" in query:
            names, values = _decoded(names), _decoded(values)
        given: defaultdict[str, list[str]] = defaultdict(list)
        for name, value in zip(names, values, strict=True):
            given[name].append(value)
        ids = given.pop("after", [])
        if len(ids) > 1:
            raise BadQuery("after is there twice; give it once, with the id of the last update")
        after = After.parse(ids[0]) if ids else None
        types = frozenset(map(self._type, given.pop("type", ())))
        if not types and not given:
            return SubscribeRequest(None, after)
        wanted = tuple((name, *self._readings(name, values)) for name, values in sorted(given.items()))
        return SubscribeRequest(Filter(types or None, wanted), after)

    def _type(self, value: str) -> str:
        if value not in self._types:
            parts = _parts(value)
            if len(parts) > 1 and ("," in value or not self._types.isdisjoint(parts)):
                hint = f" ({_repeat('type', parts)})"
            else:
                close = self._near_types.to(value)
                hint = f" (did you mean {printable(close, 40)}?)" if close else ""
            raise BadQuery(f"there is no update type {printable(value, 40)!r}{hint}; there are {self._known_types}")
        return value

    def _readings(self, name: str, values: Sequence[str]) -> tuple[frozenset[Plain], frozenset[bool]]:
        """The values as each of the types that the member may have, true and false apart."""
        types = self._members.get(name)
        if types is None:
            raise BadQuery(self._unknown(name))
        any_number = "number" in types
        # What most queries ask for, at once: it takes a fifth of the time.
        found = _numbers(values) if types <= {"integer", "number", "null"} else None
        if found is not None and (any_number or ("integer" in types and all(float(n).is_integer() for n in found))):
            return frozenset(found), frozenset()
        numbers: dict[str, float] = {}
        if not types.isdisjoint({"integer", "number"}):
            for value in values:
                number = _number(value)
                if number is not None and (any_number or float(number).is_integer()):
                    numbers[value] = number
        booleans = {value: value == "true" for value in values if value in {"true", "false"} and "boolean" in types}
        nulls = [None] if "null" in types and "null" in values else []
        if "string" not in types:
            for value in values:
                if not (value in numbers or value in booleans or (nulls and value == "null")):
                    raise BadQuery(self._misfit(name, value, types))
        # Of a list: a set that is made of a set is twice as large.
        texts = values if "string" in types else ()
        return frozenset([*texts, *nulls, *numbers.values()]), frozenset(booleans.values())

    def _misfit(self, name: str, value: str, types: frozenset[str]) -> str:
        wanted = " or ".join(words for kind, words in _EXAMPLES.items() if kind in types)
        parts = _parts(value)
        are_numbers = len(parts) > 1 and all(_number(part) is not None for part in parts)
        hint = f"; {_repeat(name, parts)}" if are_numbers else ""
        return f"{printable(name, 40)} must be {wanted}; got {printable(value, 40)!r}{hint}"

    def _unknown(self, name: str) -> str:
        said = f"there is no member {printable(name, 40)!r} to filter by"
        if name in self._types:
            return f"{said}; did you mean type={printable(name, 40)}?"
        meant = name[:_TYPED].removeprefix("?").removeprefix("data.")
        bare = _BRACKETS.sub("", meant)
        if bare not in {meant, "after"} and (bare in PARAMETERS or bare in self._members):
            return f"{said}; {_repeat(bare, ['a', 'b'])}"
        letters = "".join(filter(str.isalnum, bare)).lower()
        if letters in _CONDITIONS:
            return f"{said}; name the member itself: systemId=30000142"
        known = _SOURCES.get(letters, "")
        close = known if known in self._members else _ALIASES.get(letters) or self._near_names.to(bare)
        return f"{said}; did you mean {printable(close, 40)}?" if close else f"{said}; /asyncapi.json lists the members"


_TYPED = 80
"""A hint uses at most this many characters of a query. A text that is much longer than any name has no close match,
but its start may have one."""


class Nearest:
    """Finds the known name nearest to a misspelled one, in at most 0.3 ms for any number of names."""

    _NEIGHBOURS = 128
    """The search looks at this many names on each side of the text, in alphabetical order."""

    _COMPARED = 8

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {name.lower(): name for name in names}
        self._sorted = sorted(self._names)

    def to(self, text: str) -> str | None:
        """None where no name is near."""
        text = text[:_TYPED].lower()
        at = bisect(self._sorted, text)
        neighbours = self._sorted[max(0, at - self._NEIGHBOURS) : at + self._NEIGHBOURS]
        # difflib takes 20 microseconds for a name: it is asked about those that share most letters.
        letters = frozenset(text)
        likely = heapq.nsmallest(self._COMPARED, neighbours, key=lambda name: len(letters.symmetric_difference(name)))
        close = difflib.get_close_matches(text, likely, n=1)
        return self._names[close[0]] if close else None


def _parts(value: str) -> list[str]:
    """The values of a list; the last one may be incomplete."""
    return [part for part in _SEPARATORS.split(value[:_TYPED]) if part]


def _repeat(name: str, values: Sequence[str]) -> str:
    """How several values are asked for."""
    pairs = "&".join(f"{name}={value}" for value in values[:2])
    return f"for several values, repeat the parameter: {printable(pairs, 80)}"


_BETWEEN = b"\xff"
"""No byte of any text in UTF-8."""


def _decoded(texts: Sequence[str]) -> list[str]:
    """Names or values as they were meant, all at once: one by one, they take three times as long. Raises BadQuery."""
    try:
        joined = _BETWEEN.join(text.encode() for text in texts).replace(b"+", b" ")
        decoded = [part.decode() for part in unquote_to_bytes(joined).split(_BETWEEN)]
    except UnicodeError:
        decoded = []
    if len(decoded) != len(texts):
        raise BadQuery("the query's percent-encoding must be of UTF-8 (%C3%A9, not %E9)")
    return decoded


def _numbers(texts: Sequence[str]) -> list[float] | None:
    """All of the texts as numbers; None where one of them is none."""
    joined = ",".join(texts)
    if joined.count(",") >= len(texts) or _SEVERAL_NUMBERS.fullmatch(joined) is None:
        return None
    try:
        numbers: list[float] = orjson.loads(f"[{joined}]")
    except orjson.JSONDecodeError:
        return None  # one is too large for a floating point number
    return numbers


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
