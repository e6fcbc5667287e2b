"""Tests of queries and filters.

The expected results come from a second definition of filters, which is simple and slow.
"""

from __future__ import annotations

import json
import re
import tracemalloc
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.contract import catalog
from bridge.contract.catalog import Catalog
from bridge.contract.filters import (
    EARLIEST,
    FROM_NOW_ON,
    MAX_ESCAPES,
    MAX_FIELDS,
    MAX_LAST,
    MAX_LIMIT,
    MAX_VALUES,
    MAX_WAIT_S,
    PARAMETERS,
    After,
    BadQuery,
    Format,
    Query,
    QueryParser,
    SimilarNames,
    SubscribeRequest,
    UpdateFilter,
)
from bridge.contract.update_id import UpdateId
from tests.support.killmail import EXAMPLE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PACKAGED = QueryParser(catalog.load([catalog.PACKAGED]))
JITA = "systemId=30000142"

Pairs = list[tuple[str, str]]

MEMBERS: dict[str, frozenset[str]] = {
    "integer": frozenset({"integer"}),
    "number": frozenset({"number"}),
    "string": frozenset({"string"}),
    "boolean": frozenset({"boolean"}),
    "nothing": frozenset({"null"}),
    "any": frozenset({"integer", "string", "boolean", "null"}),
    "flag": frozenset({"boolean", "number"}),
    "größe &=+%": frozenset({"integer", "null"}),
    "data.integer": frozenset({"string"}),
    "last": frozenset({"integer"}),
    "type": frozenset({"string"}),
}
TYPES = dict.fromkeys(["killmail", "event", "a b"], catalog.load([catalog.PACKAGED]).types["event"])
OWN = QueryParser(Catalog(TYPES, {}, {}, {}, MEMBERS))

SCALARS: st.SearchStrategy[Any] = (
    st.sampled_from(
        [0, 1, -1, 0.0, 1.0, -0.0, 0.5, 1e3, 2**53 + 1, 2.0**53, True, False, None, "", "1", "true", "null"]
    )
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3)
)
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(max_size=2), SCALARS, max_size=2)
DATA = st.dictionaries(st.sampled_from([*MEMBERS, "other"]), VALUES, max_size=6) | VALUES
TEXTS = {
    "integer": ["0", "1", "-1", "1.0", "1e3", "-0", "9007199254740993"],
    "number": ["0", "1", "0.5", "5e-1", "1000", "1e300"],
    "string": ["", "x", "1", "true", "null"],
    "boolean": ["true", "false"],
    "null": ["null"],
}
PAIRS: st.SearchStrategy[Pairs] = st.lists(
    st.sampled_from(
        [("type", name) for name in TYPES]
        + [(f"data.{name}", text) for name, kinds in MEMBERS.items() for kind in sorted(kinds) for text in TEXTS[kind]]
    ),
    max_size=5,
)
"""Generates the fields of a query. The name of each member has the prefix `data.`."""


def filter_of(query: str, filters: QueryParser = PACKAGED) -> UpdateFilter | None:
    return filters.parse(query).subscribe.filter


def parsed(query: str, filters: QueryParser = PACKAGED) -> UpdateFilter:
    found = filter_of(query, filters)
    assert found is not None
    return found


# The second, simple definition of filters


def kind(value: object) -> str:
    """Returns the name that JSON Schema uses for a value's type."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "integer" if value == int(value) else "number"
    return "string" if isinstance(value, str) else "null" if value is None else "other"


def selects(text: str, value: object, kinds: frozenset[str]) -> bool:
    """Returns True if a text in a query selects the value."""
    if kind(value) not in (kinds | {"integer"} if "number" in kinds else kinds):
        return False
    if isinstance(value, str):
        return text == value
    try:
        read = json.loads(text)
    except ValueError:
        return False
    return bool(kind(read) == kind(value) and read == value)


def matches(pairs: Pairs, update_type: str, data: object) -> bool:
    """Returns True if a query with the given fields selects the update."""
    types = [value for name, value in pairs if name == "type"]
    if types and update_type not in types:
        return False
    members = [(name.removeprefix("data."), value) for name, value in pairs if name != "type"]
    return all(
        isinstance(data, dict)
        and name in data
        and any(selects(text, data[name], MEMBERS[name]) for other, text in members if other == name)
        for name in {name for name, _ in members}
    )


@given(PAIRS, st.sampled_from([*TYPES, "gone"]), DATA)
@example([("data.flag", "1")], "event", {"flag": True})
@example([("data.flag", "true")], "event", {"flag": 1})
@example([("data.flag", "true"), ("data.flag", "1")], "event", {"flag": 1.0})
@example([("data.integer", "1")], "event", {"integer": [1]})
@example([("data.any", "null")], "event", {"any": None})
@example([("data.any", "null")], "event", {"any": "null"})
@example([("data.any", "null")], "event", {})
@example([("data.integer", "9007199254740993")], "event", {"integer": 2.0**53})
@example([("data.type", "x"), ("type", "event")], "event", {"type": "x"})
@example([("data.data.integer", "1")], "event", {"data.integer": "1"})
def test_filter_agrees_with_the_simple_definition(pairs: Pairs, update_type: str, data: object) -> None:
    found = filter_of(urlencode(pairs), OWN)
    assert (found is None) == (pairs == [])
    assert found is None or found.matches(update_type, data) == matches(pairs, update_type, data)


@given(PAIRS.flatmap(lambda pairs: st.tuples(st.just(pairs), st.permutations(pairs + pairs[:2]))))
def test_order_and_repetition_make_no_difference(both: tuple[Pairs, Sequence[tuple[str, str]]]) -> None:
    one, other = (filter_of(urlencode(list(pairs)), OWN) for pairs in both)
    assert one == other
    assert hash(one) == hash(other)


@given(PAIRS, PAIRS)
@example([("data.flag", "true")], [("data.flag", "1")])
@example([("data.flag", "1")], [("data.flag", "1.0")])
@example([("data.any", "1")], [("data.integer", "1")])
def test_filters_are_equal_only_if_they_select_the_same_values(one: Pairs, other: Pairs) -> None:
    same_filter = filter_of(urlencode(one), OWN) == filter_of(urlencode(other), OWN)
    assert same_filter == (selected_values(one) == selected_values(other))


@pytest.mark.parametrize("name", [name for name in MEMBERS if name not in PARAMETERS and not name.startswith("data.")])
def test_prefix_makes_no_difference_to_other_members(name: str) -> None:
    value = TEXTS[min(MEMBERS[name])][0]
    assert filter_of(urlencode({name: value}), OWN) == filter_of(urlencode({f"data.{name}": value}), OWN)


def test_both_names_of_a_member_give_values_of_the_same_member() -> None:
    both = parsed("systemId=1&data.systemId=2")
    assert both.matches("killmail", {"systemId": 1})
    assert both.matches("killmail", {"systemId": 2})


def selected_values(pairs: Pairs) -> set[tuple[str, str, object]]:
    """Returns all values that a query selects, each with its type, because true and 1 are equal in Python."""
    return {(name, *reading) for name, text in pairs for reading in readings_of(name, text)}


def readings_of(name: str, text: str) -> set[tuple[str, object]]:
    """Returns all values that a text can select, each with its type."""
    if name == "type":
        return {("type", text)}
    values: list[object] = [text]
    with suppress(ValueError):
        values.append(json.loads(text))
    return {
        ("boolean" if isinstance(value, bool) else "other", value)
        for value in values
        if selects(text, value, MEMBERS[name.removeprefix("data.")])
    }


# Examples


@pytest.mark.parametrize(
    ("query", "passes"),
    [
        ("type=killmail", True),
        ("type=event", False),
        ("type=event&type=killmail", True),
        (JITA, True),
        ("systemId=30002187", False),
        ("systemId=30002187&systemId=30000142", True),
        (f"{JITA}&victimCorporationId=98765432", True),
        (f"{JITA}&victimCorporationId=98000001", False),
        (f"type=event&{JITA}", False),
        ("price=5", False),
        ("timestamp=2024-10-22T10:30:00.000Z", True),
        ("timestamp=2024-10-22T10%3A30:00.000%5a", True),
        ("kind=battle", False),
        (f"&&{JITA}&", True),
        ("attackerCount=15.0", True),
        ("attackerCount=1.5e1", True),
        ("victimAllianceId=null", False),
    ],
)
def test_example_of_the_specification_passes_a_matching_filter(query: str, passes: bool) -> None:
    assert parsed(query).matches("killmail", EXAMPLE) is passes


def test_null_does_not_match_an_absent_member() -> None:
    none = parsed("victimAllianceId=null")
    assert none.matches("killmail", {**EXAMPLE, "victimAllianceId": None})
    assert not none.matches("killmail", {**EXAMPLE, "victimAllianceId": 0})
    assert not none.matches("killmail", {name: EXAMPLE[name] for name in EXAMPLE if name != "victimAllianceId"})


def test_plus_is_a_space() -> None:
    assert parsed("title=a+b").matches("event", {"title": "a b"})
    assert parsed("title=a%2Bb").matches("event", {"title": "a+b"})
    assert parsed("type=a+b", OWN).matches("a b", {})
    assert parsed("gr%C3%B6%C3%9Fe+%26%3D%2B%25=1", OWN).matches("event", {"größe &=+%": 1})


def test_member_without_a_value_selects_the_empty_string() -> None:
    for query in ("title", "title="):
        assert parsed(query).matches("event", {"title": ""})
        assert not parsed(query).matches("event", {"title": "x"})


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", SubscribeRequest(None, None)),
        ("&", SubscribeRequest(None, None)),
        ("after", SubscribeRequest(None, FROM_NOW_ON)),
        ("after=", SubscribeRequest(None, FROM_NOW_ON)),
        ("after=1234-9f86d081", SubscribeRequest(None, After("1234-9f86d081", UpdateId(1234, 0x9F86D081)))),
        ("after=no+id+at+all", SubscribeRequest(None, After("no id at all", None))),
        ("after=earliest", SubscribeRequest(None, EARLIEST)),
        ("after=Earliest", SubscribeRequest(None, After("Earliest", None))),
        ("after=&type=event", SubscribeRequest(UpdateFilter(frozenset({"event"}), ()), FROM_NOW_ON)),
        ("last=1", SubscribeRequest(None, None, 1)),
        (f"last={MAX_LAST}", SubscribeRequest(None, None, MAX_LAST)),
        ("last=5&after=", SubscribeRequest(None, FROM_NOW_ON, 5)),
        ("after=1-00000000&last=5", SubscribeRequest(None, After("1-00000000", UpdateId(1, 0)), 5)),
    ],
)
def test_query_says_where_the_updates_start(query: str, expected: SubscribeRequest) -> None:
    assert PACKAGED.parse(query) == Query(expected, None, None, None)


@pytest.mark.parametrize(
    ("query", "limit", "wait_s", "chosen"),
    [
        ("limit=1", 1, None, None),
        (f"limit={MAX_LIMIT}", MAX_LIMIT, None, None),
        ("wait=0", None, 0, None),
        (f"wait={MAX_WAIT_S}", None, MAX_WAIT_S, None),
        ("format=sse", None, None, Format.SSE),
        ("f%6Frmat=json&wait=1&limit=2", 2, 1, Format.JSON),
    ],
)
def test_query_says_how_the_updates_are_sent(
    query: str, limit: int | None, wait_s: int | None, chosen: Format | None
) -> None:
    assert PACKAGED.parse(query) == Query(SubscribeRequest(None, None), limit, wait_s, chosen)


@pytest.mark.parametrize(
    ("text", "is_from_now_on", "is_malformed"),
    [("", True, False), ("5-00000001", False, False), ("5", False, True), (" ", False, True)],
)
def test_after_is_empty_an_id_or_malformed(text: str, *, is_from_now_on: bool, is_malformed: bool) -> None:
    after = After.parse(text)
    assert (after == FROM_NOW_ON, after != FROM_NOW_ON and after.id is None) == (is_from_now_on, is_malformed)


@pytest.mark.parametrize("query", ["", "after=", "after=5-00000001&last=3", "last=3", "after=earliest"])
@pytest.mark.parametrize(
    ("last_event_id", "after"),
    [
        ("7-0000000a", After("7-0000000a", UpdateId(7, 10))),
        ("\xe9 not an id", After("\xe9 not an id", None)),
        ("earliest", EARLIEST),
    ],
)
def test_last_event_id_replaces_after_and_last(query: str, last_event_id: str, after: After) -> None:
    asked = PACKAGED.parse(f"{query}&type=event")
    assert asked.resume_after(last_event_id) == SubscribeRequest(UpdateFilter(frozenset({"event"}), ()), after, None)
    assert asked.resume_after("") == asked.subscribe


def test_no_parameter_has_the_name_of_a_member_of_a_packaged_schema() -> None:
    loaded = catalog.load([catalog.PACKAGED])
    members = {member for name in loaded.types for member in loaded.declared[f"urn:edk-bridge:schema:{name}"]}
    assert members.isdisjoint(PARAMETERS)
    assert "systemId" in members


def test_all_types_at_once_match_everything() -> None:
    names = catalog.load([catalog.PACKAGED]).types
    every = parsed("&".join(f"type={name}" for name in names))
    assert all(every.matches(name, None) for name in names)


@pytest.mark.parametrize("data", [None, True, 1, 1.5, "x", [], [EXAMPLE], {}, {"systemId": [30000142]}, object()])
def test_data_without_the_member_does_not_pass_and_raises_nothing(data: object) -> None:
    assert not parsed(JITA).matches("killmail", data)


# Errors


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (
            "type=kilmail",
            "there is no update type 'kilmail' (did you mean killmail?); the types are entity-activity, event, ",
        ),
        ("type=", "there is no update type ''"),
        ("type=esi-killmail", "there is no update type 'esi-killmail'"),
        ("type=resume", "there is no update type 'resume'"),
        ("systemid=1", "there is no member 'systemid' to filter by; did you mean systemId?"),
        ("SYSTEM_ID=1", "did you mean systemId?"),
        ("victim=1", "there is no member 'victim' to filter by; did you mean victimId?"),
        ("qqq=1", "there is no member 'qqq' to filter by; /asyncapi.json lists the members"),
        *(
            (f"{name}=1", f"there is no member '{name}' to filter by; /asyncapi.json lists the members")
            for name in ("pilot", "date", "total", "isk")
        ),
        ("alliance=1", "did you mean victimAllianceId?"),
        ("corporation=1", "did you mean victimCorporationId?"),
        ("attackers=1", "did you mean attackerCount?"),
        ("=1", "there is no member '' to filter by"),
        ("solarSystemId=1", "did you mean systemId?"),
        ("solar_system_id=1", "did you mean systemId?"),
        ("characterId=1", "did you mean victimId?"),
        ("filter=systemId:3", "name the member itself: systemId=30000142"),
        ("type[]=killmail", "member 'type[]' to filter by; for several values, repeat the parameter: type=a&type=b"),
        ("type%5B0%5D=killmail", "for several values, repeat the parameter: type=a&type=b"),
        ("systemId[]=1", "for several values, repeat the parameter: systemId=a&systemId=b"),
        ("after[]=", "did you mean after?"),
        ("systemid[]=1", "did you mean systemId?"),
        ("types=killmail", "did you mean type?"),
        ("Type=killmail", "did you mean type?"),
        ("tpye=killmail", "did you mean type?"),
        ("topic=killmail", "did you mean type?"),
        ("since=5", "did you mean after?"),
        *((f"{name}=x", "did you mean type?") for name in ("eventType", "event_type", "messageType", "stream")),
        *(
            (f"{name}=x", "did you mean after?")
            for name in ("sinceId", "since_id", "startFrom", "resumeFrom", "cursor")
        ),
        ("data.systemid=1", "there is no member 'systemid' to filter by; did you mean systemId?"),
        ("data.type=killmail", "there is no member 'type' to filter by; for the parameter, omit the prefix 'data.'"),
        ("data.data.systemId=1", "there is no member 'data.systemId' to filter by; did you mean systemId?"),
        ("data.systemId=x", "systemId must be an integer (30000142) or null; got 'x'"),
        ("data.systemId[]=1", "for several values, repeat the parameter: systemId=a&systemId=b"),
        ("last[]=5", "did you mean last?"),
        ("tail=5", "did you mean last?"),
        ("pageSize=5", "did you mean limit?"),
        ("limits=5", "did you mean limit?"),
        ("timeout=5", "did you mean wait?"),
        ("formats=sse", "did you mean format?"),
        ("?type=killmail", "did you mean type?"),
        ("killmail", "did you mean type=killmail?"),
        ("Last-Event-ID=5", "did you mean after?"),
        ("last_id=5", "did you mean after?"),
        ("aftr=5", "did you mean after?"),
        ("AFTER=5", "did you mean after?"),
        ("type=killmail,event", "(for several values, repeat the parameter: type=killmail&type=event); the types are"),
        ("type=killmail|event;event", "repeat the parameter: type=killmail&type=event)"),
        ("type=killmail%20event", "repeat the parameter: type=killmail&type=event)"),
        ("type=killmail,evnt", "repeat the parameter: type=killmail&type=evnt)"),
        ("type=a,b", "(for several values, repeat the parameter: type=a&type=b); the types are"),
        ('type=["killmail","event"]', "repeat the parameter: type=killmail&type=event)"),
        ("type=kilmail,evnt", "there is no update type 'kilmail,evnt'"),
        ("systemId=[1,2]", "repeat the parameter: systemId=1&systemId=2"),
        ("systemId=1,2,3", "got '1,2,3'; for several values, repeat the parameter: systemId=1&systemId=2"),
        ("systemId=1,x", "got '1,x'"),
        ("killmailIds=1", "there is no member 'killmailIds' to filter by; did you mean killmailId?"),
        ("systemId=Jita", "systemId must be an integer (30000142) or null; got 'Jita'"),
        ("systemId=", "systemId must be an integer (30000142) or null; got ''"),
        ("systemId=30000142,30002187", "got '30000142,30002187'"),
        ("systemId=%2B5", "got '+5'"),
        ("systemId=05", "got '05'"),
        ("systemId=+5", "got ' 5'"),
        ("systemId=5%0A", r"got '5\\n'"),
        ("systemId=1.5", "got '1.5'"),
        ("systemId=1e400", "got '1e400'"),
        ("systemId=%D9%A5", "got '\u0665'"),
        ("systemId=0x10", "got '0x10'"),
        ("systemId=true", "got 'true'"),
        ("systemId=NaN", "got 'NaN'"),
        ("killmailId=null", "killmailId must be an integer (30000142); got 'null'"),
        ("price=Infinity", "price must be a number (0.5); got 'Infinity'"),
        ("after=1&after=1", "after is given more than once; give it once"),
        ("after&after", "after is given more than once"),
        ("last=1&last=1", "last is given more than once"),
        ("limit=1&limit=1", "limit is given more than once"),
        ("wait=1&wait=1", "wait is given more than once"),
        ("format=sse&format=json", "format is given more than once"),
        ("after=earliest&last=5", "after=earliest begins with the oldest updates, and last with the newest ones; give"),
        *(
            (f"{name}={value}", f"{name} must be a whole number from 1 to 1000; got '{value}'")
            for name in ("last", "limit")
            for value in ("0", "1001", "-1", "5.0", "05", "1e2", "x", "", "\u0665", "9" * 30)
        ),
        ("limit", "limit must be a whole number from 1 to 1000; got ''"),
        *(
            (f"wait={value}", f"wait must be a whole number of seconds from 0 to 30; got '{value}'")
            for value in ("31", "-1", "0.5", "30s", "")
        ),
        ("format=xml", "format must be sse or json; got 'xml'"),
        ("format=JSON", "format must be sse or json; got 'JSON'"),
        ("format=", "format must be sse or json; got ''"),
        ("type=%E9vent", "percent-encoding must be UTF-8"),
        ("%FF=1", "percent-encoding must be UTF-8"),
        ("after=%C3", "percent-encoding must be UTF-8"),
    ],
)
def test_error_names_the_problem_and_a_hint(query: str, words: str) -> None:
    with pytest.raises(BadQuery, match=re.escape(words)):
        PACKAGED.parse(query)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("boolean=1", "boolean must be true or false; got '1'"),
        ("boolean=True", "boolean must be true or false; got 'True'"),
        ("nothing=0", "nothing must be null; got '0'"),
        ("flag=x", "flag must be a number (0.5) or true or false; got 'x'"),
    ],
)
def test_every_type_is_named(query: str, words: str) -> None:
    with pytest.raises(BadQuery, match=re.escape(words)):
        OWN.parse(query)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("last=2000", "got '2000'; data.last= filters by the member"),
        ("data.last=x", "data.last must be an integer (30000142); got 'x'"),
        ("data.last=1,2", "for several values, repeat the parameter: data.last=1&data.last=2"),
        ("last[]=1", "for several values, repeat the parameter: data.last=a&data.last=b"),
        ("type[]=1", "for several values, repeat the parameter: type=a&type=b"),
    ],
)
def test_member_with_the_name_of_a_parameter_has_its_prefix_in_an_error(query: str, words: str) -> None:
    with pytest.raises(BadQuery, match=re.escape(words)):
        OWN.parse(query)


def test_query_can_have_as_many_values_as_the_limit_and_all_parameters() -> None:
    systems = [f"systemId={number}" for number in range(MAX_VALUES - 1)]
    others = ["after=1234-9f86d081", "last=5", "limit=5", "wait=5", "format=json"]
    most = parsed("&".join(["type=killmail", *systems, *others, ""]))
    assert most.matches("killmail", {"systemId": MAX_VALUES - 2})
    assert not most.matches("killmail", {"systemId": MAX_VALUES - 1})
    assert not most.matches("event", {"systemId": 0})


@pytest.mark.parametrize("more", ["type=event", "systemId=-1", "systemId=0", "title=", "title", "nonsense=%FF"])
def test_one_value_more_than_the_limit_is_refused(more: str) -> None:
    systems = [f"systemId={number}" for number in range(MAX_VALUES)]
    words = f"the query has {MAX_VALUES + 1} values of types and members; give at most {MAX_VALUES}"
    with pytest.raises(BadQuery, match=f"^{words}$"):
        PACKAGED.parse("&".join([*systems, "after=", more]))


@pytest.mark.parametrize("field", ["", "after=", "x"])
def test_query_with_too_many_fields_is_refused(field: str) -> None:
    assert PACKAGED.parse("&" * MAX_FIELDS) == Query(SubscribeRequest(None, None))
    words = f"the query has more than {MAX_FIELDS} fields; give at most {MAX_VALUES} values"
    with pytest.raises(BadQuery, match=f"^{words}$"):
        PACKAGED.parse("&".join([field] * (MAX_FIELDS + 2)))


@pytest.mark.parametrize("excess", [0, 1])
def test_query_with_too_many_percent_encoded_bytes_is_refused(excess: int) -> None:
    query = "after=" + "%20" * (MAX_ESCAPES + excess)
    if excess:
        with pytest.raises(
            BadQuery, match=f"^the query has more than {MAX_ESCAPES} percent-encoded bytes; give fewer values$"
        ):
            PACKAGED.parse(query)
    else:
        assert PACKAGED.parse(query).subscribe.after == After(" " * MAX_ESCAPES, None)


def test_longest_query_takes_bounded_memory() -> None:
    members = catalog.load([catalog.PACKAGED]).filterable
    wide = quote("🚀")
    # A Python set with five values has the most unused memory per value. A single wide character makes all characters
    # of its string take four bytes each.
    values = [wide if "string" in kinds else "1234" for kinds in members.values() for _ in range(5)]
    fields = [f"{name}={values[5 * at + i]}{i}" for at, name in enumerate(members) for i in range(5)]
    rest = MAX_VALUES - len(fields)
    width = (8150 - len("&".join(fields))) // rest - len(f"&kind={wide}")
    query = "&".join([*fields, *(f"kind={wide}{number:0{width}}" for number in range(rest))])
    assert 8000 < len(query) < 8190
    PACKAGED.parse(query)
    tracemalloc.start()
    try:
        wishes = [PACKAGED.parse(query) for _ in range(20)]
        taken = tracemalloc.get_traced_memory()[0] / len(wishes)
    finally:
        tracemalloc.stop()
    assert taken < 80_000


NAMES = st.sampled_from([*PARAMETERS, *MEMBERS, "systemId", "systemid", "data.", "data.type"]) | st.text(max_size=10)
QUERIES = (
    st.text()
    | st.binary().map(quote)
    | st.lists(st.tuples(NAMES, st.text() | st.sampled_from(TEXTS["integer"]))).map(
        lambda pairs: urlencode(pairs, errors="surrogatepass")
    )
    | st.lists(st.sampled_from([*"&=+%;\0\ud800é", *PARAMETERS, "systemId", "%ff", "%C3%A9"])).map("".join)
)


@given(QUERIES)
@example("%")
@example("%u0041=%zz")
@example(f"systemId={'9' * 8000}")
@example(f"systemId={'9' * 200}")
@example(f"{'systemId' * 1000}=1")
@example(f"type={'%00' * 2700}")
@example(f"{'%F0%9F%9A%80' * 600}=")
@example(f"{'%0A' * 2700}={'%22%27%5C' * 900}")
@example(f"systemId={'%5C' * 2700}")
@example("type=\ud800")
@example("&".join(["title"] * 1300))
def test_any_query_is_parsed_or_refused_with_a_short_printable_error(query: str) -> None:
    for filters in (PACKAGED, OWN):
        try:
            filters.parse(query)
        except BadQuery as error:
            said = str(error)
            assert said.isprintable()
            assert len(said) < 500


def test_error_repeats_only_a_bounded_part_of_the_query() -> None:
    for query in (f"type={'x' * 8000}", f"{'x' * 8000}=1", f"systemId={'x' * 8000}"):
        with pytest.raises(BadQuery) as raised:
            PACKAGED.parse(query)
        assert str(raised.value).count("x") < 60


def test_similar_name_is_found_among_thousands() -> None:
    names = [f"member{number}Of{number * 7919 % 1000}" for number in range(3000)]
    assert SimilarNames([*names, "systemId"]).find("systemd") == "systemId"
    assert SimilarNames(names).find("MEMBER17of") is not None
    assert SimilarNames([]).find("x") is None


def test_error_is_short_and_printable_for_any_names_of_an_operator(tmp_path: Path) -> None:
    for number in range(100):
        schema = {"properties": {f"{'member' * 20}\n{number}": {"type": "integer"}}}
        (tmp_path / f"{'type' * 20} {number}.json").write_bytes(orjson.dumps(schema))
    filters = QueryParser(catalog.load([tmp_path]))
    for query in ("type=x", f"{'member' * 20}=1", f"{'member' * 20}%0A7=x"):
        with pytest.raises(BadQuery) as raised:
            filters.parse(query)
        assert str(raised.value).isprintable()
        assert len(str(raised.value)) < 500
    assert parsed(f"{'member' * 20}%0A7=7", filters).matches("any", {f"{'member' * 20}\n7": 7})


def test_operators_types_are_filtered_like_packaged_types(tmp_path: Path) -> None:
    own = {"properties": {"fleetId": {"type": "string"}, "systemId": {"type": "string"}}}
    (tmp_path / "fleet.json").write_bytes(orjson.dumps(own))
    filters = QueryParser(catalog.load([catalog.PACKAGED, tmp_path]))
    both = parsed("systemId=30000142&type=fleet&type=killmail", filters)
    assert both.matches("fleet", {"systemId": "30000142"})
    assert both.matches("killmail", EXAMPLE)
    assert parsed("fleetId=7", filters).matches("fleet", {"fleetId": "7"})
    assert not parsed("fleetId=7", filters).matches("fleet", {"fleetId": 7})
