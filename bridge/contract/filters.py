"""Parses the query of a client's request: a filter for updates, where the updates start, and the form of the response.

A filter consists of update types, and of members with their values. A filter matches an update if the update's type is
one of the types, and if each member of the filter has one of its values in the update's data. The schemas declare the
types of each member. A value in a query is parsed as every type that the member can have: `5` is an integer, and also a
string if a schema declares the member as a string.

Filters stay in memory while a client uses them. To limit the memory for filters, a query can have at most `MAX_VALUES`
values. The request line can have at most 8190 bytes.
"""

import difflib
import heapq
import re
from bisect import bisect
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import orjson

from bridge.contract.catalog import Catalog
from bridge.contract.text import printable
from bridge.contract.update_id import UpdateId

Scalar = str | int | float | None

MAX_VALUES = 256
"""The maximum number of update types and values in a query.

A filter of one integer takes 0.8 KB of memory, and a filter of 256 integers takes 16 KB. The largest filter takes 72
KB. This filter comes from a request line of the maximum length in which each value is a single four-byte character.
Every query is parsed within half a millisecond.
"""

MAX_FIELDS = 2 * MAX_VALUES
"""The maximum number of fields, separated by `&`, in a query. Empty fields count too."""

MAX_ESCAPES = 1024
"""The maximum number of percent-encoded bytes in a query. Decoding one such byte takes a third of a microsecond."""

_ABSENT = object()
"""A value that stands for an absent member.

No filter has this value. The value is not None, because None stands for null, and a filter can have the value null.
"""

_NUMBER_PATTERN = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
"""The pattern of a number in JSON (RFC 8259, section 6)."""

_NUMBER, _SEVERAL_NUMBERS = re.compile(_NUMBER_PATTERN), re.compile(f"{_NUMBER_PATTERN}(?:,{_NUMBER_PATTERN})*")

PARAMETERS = ("type", "after", "last", "limit", "wait", "format")
"""The parameters of a query. If a member has the name of a parameter, a query names it with the prefix `data.`."""

MEMBER_PREFIX = "data."
"""A name with this prefix always names a member."""

_SINGLE = frozenset(PARAMETERS) - {"type"}
"""The parameters that can be given only once."""

MAX_LAST = 1000
MAX_LIMIT = 1000
MAX_WAIT_S = 30

_NATURAL = re.compile(r"0|[1-9][0-9]{0,8}")

_TYPE = "type types event events eventtype messagetype updatetype topic topics channel channels kinds stream subscribe"
_AFTER = (
    "since from cursor id ids offset start resume sinceid fromid startfrom resumefrom lastid lasteventid lastmessageid"
)
_LAST = "backlog history latest newest recent replay tail"
_LIMIT = "batch max maxresults pagesize perpage top"
_WAIT = "longpoll poll timeout"
_FORMAT = "accept output responsetype transport"
_NAMES = {"type": _TYPE, "after": _AFTER, "last": _LAST, "limit": _LIMIT, "wait": _WAIT, "format": _FORMAT}
_ALIASES = {alias: name for name, aliases in _NAMES.items() for alias in aliases.split()}
"""The names that other feeds use for the parameters.

These names are in lower case, with only letters and digits.
"""

_SOURCES = {
    "solarsystemid": "systemId",
    "solarsystem": "systemId",
    "characterid": "victimId",
    "alliance": "victimAllianceId",
}
"""The names that ESI and EDK use for some members of a killmail, and a short name that `SimilarNames` would not
find."""

_CONDITIONS = frozenset({"filter", "filters", "where", "q", "query"})

_BRACKETS = re.compile(r"\[[^\[\]]*\]$")
"""Matches the brackets that PHP, jQuery and axios append to the name of a repeated parameter."""

_SEPARATORS = re.compile(r"""[][,;|"' ]+""")
"""Matches the separators between and around the values of a list."""

_EXAMPLES = {
    "integer": "an integer (30000142)",
    "number": "a number (0.5)",
    "boolean": "true or false",
    "null": "null",
}


class Format(StrEnum):
    """The forms of a response over plain HTTP. Each member of this enum is a value of the parameter `format`."""

    SSE = "sse"
    JSON = "json"


class BadQuery(ValueError):
    """A query that can't be parsed.

    The error's text is a sentence for the client. The sentence is printable and of limited length.
    """


@dataclass(frozen=True, slots=True)
class UpdateFilter:
    """The updates that a client wants. Filters with the same types and values are equal."""

    types: frozenset[str] | None
    """The types of the updates, or None for every type."""
    members: tuple[tuple[str, frozenset[Scalar], frozenset[bool]], ...]
    """The members with their values, sorted by name.

    The boolean values of a member are in a set of their own, because `True == 1` in Python.
    """

    def matches(self, update_type: str, data: object) -> bool:
        """Whether the filter matches an update. Never raises.

        The bridge calls this method for every update and every distinct filter. For a filter with a type and a member,
        a call takes 0.2 microseconds.
        """
        if self.types is not None and update_type not in self.types:
            return False
        if not self.members:
            return True
        if not isinstance(data, dict):
            return False
        try:
            for name, scalars, booleans in self.members:
                value = data.get(name, _ABSENT)
                if value not in (booleans if value is True or value is False else scalars):
                    return False
        except TypeError:
            # The value is an array or an object, which is not hashable.
            return False
        return True


class After(NamedTuple):
    """The point at which a client's updates with ids start: now, or after an update that the client already has."""

    text: str
    """The decoded value of `after` in the query, or the value of the header `Last-Event-ID`.

    If this value is empty, the client gets only updates from now on. If it is `earliest`, the client gets all updates
    that are kept.
    """
    id: UpdateId | None
    """The id in the text, or None if the text is empty, `earliest`, or not an id. Any other text that is not a valid id
    counts as an unknown id."""

    @classmethod
    def parse(cls, text: str) -> "After":
        """Returns the start that is requested by this value of the parameter `after`. The value can be any text."""
        return cls(text, UpdateId.parse(text))


FROM_NOW_ON = After("", None)
"""The starting point of a client that gets no updates from before it connected."""

EARLIEST = After("earliest", None)
"""The starting point of a client that gets all updates that are kept."""


@dataclass(frozen=True, slots=True)
class SubscribeRequest:
    """The updates that a client asks for in the query of its request."""

    filter: UpdateFilter | None
    """The filter, or None for all updates."""
    after: After | None
    """The point at which the updates with ids start, or None for updates without ids."""
    last: int | None = None
    """The number of newest matching updates with which the client begins.

    If `after` has an id, `last` applies only if the id is unknown or too old.
    """


EVERYTHING = SubscribeRequest(None, None)
"""The request of a client that gives no query: all updates from now on, without ids."""


@dataclass(frozen=True, slots=True)
class Query:
    """The parsed query of a request."""

    subscribe: SubscribeRequest
    limit: int | None = None
    """The maximum number of updates in a JSON response, from 1 to `MAX_LIMIT`, or None if the query names no limit."""
    wait_s: int | None = None
    """How long a JSON response waits for the first update, in seconds, or None if the query names no time."""
    format: Format | None = None

    def resume_after(self, last_event_id: str) -> SubscribeRequest:
        """Returns the request with the value of the header `Last-Event-ID` in the place of `after` and `last`.

        An empty value changes nothing. Any other text that is not an id counts as an unknown id.
        """
        if not last_event_id:
            return self.subscribe
        return replace(self.subscribe, after=After.parse(last_event_id), last=None)


class QueryParser:
    """Parses queries with the update types and members of a catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._types = frozenset(catalog.types)
        self._known_types = printable(", ".join(sorted(self._types)), 200)
        self._members = catalog.filterable
        self._similar_types = SimilarNames(self._types)
        self._similar_names = SimilarNames([*PARAMETERS, *catalog.filterable])

    def parse(self, query: str) -> Query:
        """Parses the percent-encoded part of a request target after the `?`. Raises BadQuery."""
        # The limits are checked before decoding, because decoding takes most of the time.
        if query.count("&") > MAX_FIELDS:
            raise BadQuery(f"the query has more than {MAX_FIELDS} fields; give at most {MAX_VALUES} values")
        if query.count("%") > MAX_ESCAPES:
            raise BadQuery(f"the query has more than {MAX_ESCAPES} percent-encoded bytes; give fewer values")
        fields = [field.partition("=") for field in query.split("&") if field]
        if len(fields) > MAX_VALUES and (count := sum(name not in _SINGLE for name, _, _ in fields)) > MAX_VALUES:
            raise BadQuery(f"the query has {count} values of types and members; give at most {MAX_VALUES}")
        names, values = [name for name, _, _ in fields], [value for _, _, value in fields]
        if "%" in query or "+" in query:
            names, values = _decoded(names), _decoded(values)
        types: list[str] = []
        single: dict[str, str] = {}
        members: defaultdict[str, list[str]] = defaultdict(list)
        for name, value in zip(names, values, strict=True):
            if name == "type":
                types.append(value)
            elif name in single:
                raise BadQuery(f"{name} is given more than once; give it once")
            elif name in _SINGLE:
                single[name] = value
            else:
                members[name.removeprefix(MEMBER_PREFIX)].append(value)
        update_filter = self._filter(types, members)
        return self._query(update_filter, single) if single else Query(SubscribeRequest(update_filter, None))

    def _filter(self, types: Sequence[str], members: Mapping[str, Sequence[str]]) -> UpdateFilter | None:
        if not types and not members:
            return None
        wanted = tuple((name, *self._parsed(name, values)) for name, values in sorted(members.items()))
        return UpdateFilter(frozenset(map(self._type, types)) or None, wanted)

    def _query(self, update_filter: UpdateFilter | None, single: Mapping[str, str]) -> Query:
        after = After.parse(single["after"]) if "after" in single else None
        last = self._natural("last", "a whole number", 1, MAX_LAST, single)
        limit = self._natural("limit", "a whole number", 1, MAX_LIMIT, single)
        wait_s = self._natural("wait", "a whole number of seconds", 0, MAX_WAIT_S, single)
        chosen = single.get("format")
        if chosen is not None and chosen not in set(Format):
            raise BadQuery(self._invalid_value("format", " or ".join(Format), chosen))
        if after == EARLIEST and last is not None:
            raise BadQuery(
                "after=earliest begins with the oldest updates, and last with the newest ones; give only one of them"
            )
        subscribe = SubscribeRequest(update_filter, after, last)
        return Query(subscribe, limit, wait_s, None if chosen is None else Format(chosen))

    def _natural(self, name: str, what: str, minimum: int, maximum: int, single: Mapping[str, str]) -> int | None:
        """Returns the value of a parameter, or None if the query does not have the parameter."""
        text = single.get(name)
        if text is None:
            return None
        if _NATURAL.fullmatch(text) is None or not minimum <= int(text) <= maximum:
            raise BadQuery(self._invalid_value(name, f"{what} from {minimum} to {maximum}", text))
        return int(text)

    def _invalid_value(self, name: str, wanted: str, value: str) -> str:
        said = f"{name} must be {wanted}; got {printable(value, 40)!r}"
        return f"{said}; {MEMBER_PREFIX}{name}= filters by the member" if name in self._members else said

    def _type(self, value: str) -> str:
        if value not in self._types:
            parts = _parts(value)
            if len(parts) > 1 and ("," in value or not self._types.isdisjoint(parts)):
                hint = f" ({_repeat('type', parts)})"
            else:
                close = self._similar_types.find(value)
                hint = f" (did you mean {printable(close, 40)}?)" if close else ""
            raise BadQuery(f"there is no update type {printable(value, 40)!r}{hint}; the types are {self._known_types}")
        return value

    def _parsed(self, name: str, values: Sequence[str]) -> tuple[frozenset[Scalar], frozenset[bool]]:
        """Parses values as each type that the member can have.

        Returns the boolean values separately from other values.
        """
        types = self._members.get(name)
        if types is None:
            raise BadQuery(self._unknown(name))
        any_number = "number" in types
        # Numbers are the most frequent case. Parsing all numbers at once is five times as fast as parsing them one by
        # one.
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
        # The set is built from a list, because if it were built from another set, it would be twice as large.
        texts = values if "string" in types else ()
        return frozenset([*texts, *nulls, *numbers.values()]), frozenset(booleans.values())

    def _misfit(self, name: str, value: str, types: frozenset[str]) -> str:
        wanted = " or ".join(words for kind, words in _EXAMPLES.items() if kind in types)
        parts = _parts(value)
        are_numbers = len(parts) > 1 and all(_number(part) is not None for part in parts)
        shown = parameter(name)
        hint = f"; {_repeat(shown, parts)}" if are_numbers else ""
        return f"{printable(shown, 40)} must be {wanted}; got {printable(value, 40)!r}{hint}"

    def _unknown(self, name: str) -> str:
        said = f"there is no member {printable(name, 40)!r} to filter by"
        if name in self._types:
            return f"{said}; did you mean type={printable(name, 40)}?"
        if name in PARAMETERS:
            return f"{said}; for the parameter, omit the prefix {MEMBER_PREFIX!r}"
        meant = name[:_TYPED].removeprefix("?").removeprefix(MEMBER_PREFIX)
        bare = _BRACKETS.sub("", meant)
        if bare != meant and (bare == "type" or bare in self._members):
            return f"{said}; {_repeat('type' if bare == 'type' else parameter(bare), ['a', 'b'])}"
        letters = "".join(filter(str.isalnum, bare)).lower()
        if letters in _CONDITIONS:
            return f"{said}; name the member itself: systemId=30000142"
        known = _SOURCES.get(letters, "")
        close = known if known in self._members else _ALIASES.get(letters) or self._similar_names.find(bare)
        return f"{said}; did you mean {printable(close, 40)}?" if close else f"{said}; /asyncapi.json lists the members"


_TYPED = 80
"""A hint is based on at most this many characters at the start of a name or value.

A text that is much longer than all names is similar to none of them, but its start may be similar to one.
"""


class SimilarNames:
    """Finds the known name that the user probably meant by a misspelled name.

    A search takes at most 0.3 ms, however many names are known.
    """

    _CUTOFF = 0.7
    """A name counts as similar if difflib computes at least this similarity.

    With difflib's default of 0.6, `pilot` would be similar to `iskLost`.
    """

    _NEIGHBOURS = 128
    """A search considers only this many names before the text in alphabetical order, and as many after the text."""

    _COMPARED = 8

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {name.lower(): name for name in names}
        self._sorted = sorted(self._names)

    def find(self, text: str) -> str | None:
        """Returns the most similar name, or None if no name is similar."""
        text = text[:_TYPED].lower()
        at = bisect(self._sorted, text)
        neighbours = self._sorted[max(0, at - self._NEIGHBOURS) : at + self._NEIGHBOURS]
        # difflib takes 20 microseconds for each name, so only the names that have the most letters in common with the
        # text are compared.
        letters = frozenset(text)
        likely = heapq.nsmallest(self._COMPARED, neighbours, key=lambda name: len(letters.symmetric_difference(name)))
        close = difflib.get_close_matches(text, likely, n=1, cutoff=self._CUTOFF)
        return self._names[close[0]] if close else None


def parameter(member: str) -> str:
    """Returns the name by which a query names a member."""
    return f"{MEMBER_PREFIX}{member}" if member in PARAMETERS or member.startswith(MEMBER_PREFIX) else member


def _parts(value: str) -> list[str]:
    """Returns the values of a list in a text.

    The last value may be incomplete, because only the start of a long text is used.
    """
    return [part for part in _SEPARATORS.split(value[:_TYPED]) if part]


def _repeat(name: str, values: Sequence[str]) -> str:
    """Returns a hint that shows how to give several values in a query."""
    pairs = "&".join(f"{name}={value}" for value in values[:2])
    return f"for several values, repeat the parameter: {printable(pairs, 80)}"


_BETWEEN = b"\xff"
"""A byte that UTF-8 never contains."""


def _decoded(texts: Sequence[str]) -> list[str]:
    """Decodes all texts at once, because decoding them one by one takes three times as long. Raises BadQuery."""
    try:
        joined = _BETWEEN.join(text.encode() for text in texts).replace(b"+", b" ")
        decoded = [part.decode() for part in unquote_to_bytes(joined).split(_BETWEEN)]
    except UnicodeError:
        decoded = []
    if len(decoded) != len(texts):
        raise BadQuery("the query's percent-encoding must be UTF-8 (%C3%A9, not %E9)")
    return decoded


def _numbers(texts: Sequence[str]) -> list[float] | None:
    """Parses all texts as numbers. Returns None if one of the texts is not a number."""
    joined = ",".join(texts)
    if joined.count(",") >= len(texts) or _SEVERAL_NUMBERS.fullmatch(joined) is None:
        return None
    try:
        numbers: list[float] = orjson.loads(f"[{joined}]")
    except orjson.JSONDecodeError:
        return None  # One of the numbers is too large for the floating point format.
    return numbers


def _number(text: str) -> float | None:
    """Parses a number in the same way as numbers in events. Returns None if the text is not a number."""
    if _NUMBER.fullmatch(text) is None:
        return None
    try:
        number: float = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None  # The number is too large for the floating point format.
    return number
