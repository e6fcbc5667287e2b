"""Tests that any bytes become a correct Accepted or Rejected, and never raise an exception."""

from __future__ import annotations

import copy
import json
import time
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bridge.contract import catalog
from bridge.contract.pipeline import Accepted, Event, Pipeline, Reason, Rejected
from tests.support.examples import examples
from tests.support.killmail import ESI, EXAMPLE, packaged, r2z2, redisq, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOW_MS = 1697962000000
MAX_BYTES = 4 * 2**20
CATALOG = catalog.load([catalog.PACKAGED])
PIPELINE = Pipeline(CATALOG, MAX_BYTES)
KILLMAIL = CATALOG.types["killmail"]
SCHEMAS = {name.removesuffix(".json"): orjson.loads(content) for name, content in CATALOG.documents.items()}
STEADY = settings(derandomize=True, database=None, deadline=None)
"""Hypothesis settings with the same examples in each run, so that a failure can be reproduced everywhere."""
SLOW_S = 5.0
"""The maximum processor time (s) for a body. Other processes have no effect on this time.

Even on the slowest machine, no body may block the bridge for longer than SLOW_S. On a normal machine, each of the
bodies takes about 0.1 s.
"""

Path = tuple[str | int, ...]


def event(
    body: bytes, *, kind: str | None = None, default: str | None = "killmail", encoding: str | None = None
) -> Event:
    return Event(body, kind, default, encoding)


def examined(of: Event, pipeline: Pipeline = PIPELINE) -> Accepted | Rejected:
    """Processes an event, and checks the invariants of every result."""
    outcome, problems = pipeline.process(of, NOW_MS), pipeline.problems(of)
    if isinstance(outcome, Accepted):
        assert problems == []
        update = orjson.loads(outcome.payload)
        assert list(update) == ["type", "data", "timestamp"]
        assert (update["type"], update["timestamp"]) == (outcome.type, NOW_MS)
        assert outcome.type in CATALOG.types
        assert CATALOG.types[outcome.type].violation(update["data"]) is None
        return outcome
    assert outcome in problems
    for problem in problems:
        assert problem.reason in set(Reason) - {Reason.INTERNAL_ERROR}
        assert problem.detail.isprintable()
        assert 0 < len(problem.detail) < 1000
        if problem.pointer:
            assert_points_into(orjson.loads(of.body), problem.pointer)
        assert not problem.schema or problem.schema in {schema["$id"] for schema in SCHEMAS.values()}
    return outcome


def assert_points_into(document: Any, pointer: str) -> None:
    """Asserts that a JSON Pointer (RFC 6901) leads to a value, or to a missing member of an object."""
    assert pointer.startswith("/")
    *steps, last = (step.replace("~1", "/").replace("~0", "~") for step in pointer[1:].split("/"))
    for step in steps:
        document = document[int(step)] if isinstance(document, list) else document[step]
    if isinstance(document, list):
        assert int(last) < len(document)
    else:
        assert isinstance(document, dict)


# Any text

MEMBERS = sorted({member for schema in SCHEMAS.values() for member in schema["properties"]})
NAMES = st.none() | st.sampled_from([*SCHEMAS, ""]) | st.text(max_size=10)
SCALARS: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
)
JSON: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(MEMBERS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=10,
)
ODD_TEXTS = ["NaN", "Infinity", "-Infinity", "1e400", "-0", "-0.0", "9" * 10_000, "-" + "9" * 400, '"\\ud800"', "01"]
TEXTS: st.SearchStrategy[str] = st.recursive(
    st.sampled_from(ODD_TEXTS) | st.integers().map(str) | SCALARS.map(json.dumps),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: f"[{','.join(items)}]")
        | st.lists(st.tuples(st.sampled_from(MEMBERS) | st.text(max_size=5), inner), max_size=4).map(
            lambda members: "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in members) + "}"
        )
    ),
    max_leaves=10,
)
"""Generates JSON that may have duplicate members or huge numbers, and texts that only look like JSON."""
BODIES = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=50).map(str.encode),
    TEXTS.map(str.encode),
    JSON.map(json.dumps).map(str.encode),
    st.builds(lambda kind, data: json.dumps({"type": kind, "data": data}).encode(), NAMES, JSON),
)


@settings(STEADY, max_examples=examples(120))
@given(
    body=BODIES,
    kind=NAMES,
    default=NAMES,
    encoding=st.none() | st.sampled_from(["", "utf-8", "gzip"]) | st.text(st.characters(), max_size=10),
)
def test_any_event_is_accepted_or_rejected_correctly(
    body: bytes, kind: str | None, default: str | None, encoding: str | None
) -> None:
    examined(event(body, kind=kind, default=default, encoding=encoding))
    examined(event(body))


@settings(STEADY, max_examples=examples(40))
@given(text=TEXTS)
@example(text='{"a":1,"a":2}')
def test_text_is_json_for_the_bridge_only_if_it_is_for_other_parsers(text: str) -> None:
    outcome = examined(event(text.encode()))
    if not (isinstance(outcome, Rejected) and outcome.reason is Reason.NOT_JSON):
        json.loads(text, parse_constant=pytest.fail)


# Valid data

TIMES = st.builds(
    lambda moment, fraction, zone: f"{moment.isoformat(timespec='seconds')}{fraction}{zone}",
    st.datetimes(),
    st.sampled_from(["", ".000", ".5", ".123456789012"]),
    st.sampled_from(["Z", "+00:00", "-00:00", "+14:00", "-23:59"]),
)


KEYWORDS = {
    *("$schema", "$id", "title", "description", "examples", "x-role", "x-form-of", "x-identity"),
    *("$ref", "type", "enum", "minimum", "maximum", "minLength", "maxLength", "pattern", "format"),
    *("required", "properties", "maxItems", "items"),
}


def valid_by(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Generates data that matches a schema. The schema may use only the keywords that the packaged schemas use."""
    assert schema.keys() <= KEYWORDS
    if "$ref" in schema:
        return valid_by(SCHEMAS[schema["$ref"].removeprefix("urn:edk-bridge:schema:")])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "type" not in schema:
        return JSON
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return st.one_of(*(BY_TYPE[name](schema) for name in types))


def integers_by(schema: dict[str, Any]) -> st.SearchStrategy[int | float]:
    integers = st.integers(schema["minimum"], schema["maximum"])
    # In JSON Schema, 1.0 is an integer.
    return integers | integers.map(float)


def numbers_by(schema: dict[str, Any]) -> st.SearchStrategy[float]:
    return st.floats(schema.get("minimum"), allow_nan=False, allow_infinity=False) | st.integers(
        schema.get("minimum"), 2**70
    )


def strings_by(schema: dict[str, Any]) -> st.SearchStrategy[str]:
    if schema.get("format") == "date-time":
        return TIMES
    assert "format" not in schema
    if "pattern" in schema:
        # In a Python pattern, $ also matches before a newline at the end of the text.
        return st.from_regex(schema["pattern"].removesuffix("$") + r"\Z").filter(
            lambda text: len(text) <= schema["maxLength"]
        )
    return st.text(min_size=schema.get("minLength", 0), max_size=min(schema.get("maxLength", 30), 30))


def arrays_by(schema: dict[str, Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(valid_by(schema["items"]), max_size=3)


def objects_by(schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    members = {name: valid_by(inner) for name, inner in schema["properties"].items()}
    required = {name: members.pop(name) for name in schema["required"]} if "required" in schema else {}
    more = st.dictionaries(st.text(max_size=5), JSON, max_size=2)
    return st.builds(lambda more, named: more | named, more, st.fixed_dictionaries(required, optional=members))


BY_TYPE: dict[str, Callable[[dict[str, Any]], st.SearchStrategy[Any]]] = {
    "null": lambda _: st.none(),
    "boolean": lambda _: st.booleans(),
    "integer": integers_by,
    "number": numbers_by,
    "string": strings_by,
    "array": arrays_by,
    "object": objects_by,
}
VALID = {name: valid_by(schema) for name, schema in SCHEMAS.items() if schema.get("x-role") in {None, "form"}}
each_schema = pytest.mark.parametrize("name", VALID)


def kind_of(name: str) -> str:
    return "killmail" if name in CATALOG.source_formats else name


@each_schema
@settings(STEADY, max_examples=examples(12))
@given(data=st.data())
def test_any_valid_data_is_accepted(name: str, data: st.DataObject) -> None:
    document = data.draw(VALID[name])
    body = json.dumps(document, ensure_ascii=data.draw(st.booleans()))
    bare = examined(event(body.encode(), kind=kind_of(name)))
    assert isinstance(bare, Accepted), bare
    envelope = f'{{"data":{body},"type":"{kind_of(name)}"}}'
    assert examined(event(envelope.encode(), default=None)) == bare
    if name in CATALOG.types:
        assert orjson.loads(bare.payload)["data"] == orjson.loads(body)
    if name == "redisq-package":
        assert examined(event(f'{{"package":{body}}}'.encode())) == bare


def paths_of(document: Any, path: Path = ()) -> Iterator[Path]:
    """Yields all places in the document except its root."""
    members = document.items() if isinstance(document, dict) else enumerate(document)
    for step, inner in members:
        yield (*path, step)
        if isinstance(inner, (dict, list)):
            yield from paths_of(inner, (*path, step))


REPLACEMENTS = st.one_of(
    st.sampled_from([None, False, 0, -1, 1.5, 2**53, 2**64, "", "x", "2024-13-01T00:00:00Z", [], {}, [None], {"": 0}]),
    JSON,
)


def mutate(document: Any, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
    """Removes or replaces a value at any place."""
    paths = list(paths_of(document))
    if not paths:
        return
    *steps, last = draw(st.sampled_from(paths))
    for step in steps:
        document = document[step]
    if draw(st.booleans()):
        del document[last]
    else:
        document[last] = copy.deepcopy(draw(REPLACEMENTS))


@each_schema
@settings(STEADY, max_examples=examples(24))
@given(data=st.data())
def test_any_mutation_of_valid_data_is_accepted_or_rejected_correctly(name: str, data: st.DataObject) -> None:
    valid = data.draw(st.sampled_from(SCHEMAS[name]["examples"]).map(copy.deepcopy) | VALID[name])
    document = {"type": kind_of(name), "data": valid}
    for _ in range(data.draw(st.integers(1, 3))):
        mutate(document["data"], data.draw)
    outcome = examined(event(json.dumps(document).encode()))
    if isinstance(outcome, Rejected):
        assert outcome.reason in {Reason.SCHEMA_VIOLATION, Reason.PLACEHOLDER}
        assert outcome.pointer.startswith("/data")


# Unusual values

UPDATE = json.dumps({**EXAMPLE, "more": "%"}).replace('"%"', "%").encode()
PLACES = {
    "the event": b"%",
    "the data": b'{"type":"killmail","data":%}',
    "an update": UPDATE,
    "an update's id": UPDATE.replace(b"123456789", b"%").replace(b'"more": %', b'"more": 0'),
    "a raw killmail": json.dumps({**ESI, "more": "%"}).replace('"%"', "%").encode(),
    "a package": json.dumps(packaged({**redisq(ESI), "zkb": "%"})).replace('"%"', "%").encode(),
    "an R2Z2 document": json.dumps({**r2z2(ESI), "zkb": {"totalValue": "%"}}).replace('"%"', "%").encode(),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "value",
    [
        *(b"NaN", b"-NaN", b"Infinity", b"-Infinity", b"nan", b"1e400", b"-1e400", b"9" * 10_000, b"-" + b"9" * 10_000),
        *(b"+1", b"01", b"-01", b"1.", b".5", b"0x10", b"1_000", b"1e", b"--1", b"True", b"undefined", b"'x'", b""),
        *(b'"\\ud800"', b'"\\udc00"', b'"\\ud800\\u0041"', b'"\\udc00\\ud800"', b'{"\\ud800":1}'),
        *(b'"\xed\xa0\x80"', b'"\xed\xb0\x80"', b'"\xed\xa0\xbd\xed\xb8\x80"', b'{"\xed\xa0\x80":1}'),
        *(b'"\xc0\x80"', b'"\xc0\xaf"', b'"\xe0\x80\xaf"', b'"\xf0\x80\x80\xaf"', b'"\xf8\x88\x80\x80\x80"'),
        *(b'"\xf4\x90\x80\x80"', b'"\xff"', b'"\x80"', b'"\xc3"', b'{"\xc0\xaf":1}'),
        *(b'"\x00"', b"\x00", b"1\x00", b'{"\x00":1}', b'"\n"', b'"\x1f"', b'"\\x00"', b'"\\u00"'),
        *(b"\xef\xbb\xbf1", b"[1,]", b'{"a":1,}', b"{1:1}", b"[1 2]", b"/**/1", b"1//", b'"', b"[", b"}"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_value_that_is_not_json_is_rejected_at_any_place(place: str, value: bytes) -> None:
    outcome = examined(event(PLACES[place].replace(b"%", value)))
    assert isinstance(outcome, Rejected)
    assert (outcome.reason, outcome.pointer) == (Reason.NOT_JSON, "")


@pytest.mark.parametrize(
    ("value", "delivered"),
    [
        (b"-0", b"0"),
        (b"-0.0", b"-0.0"),
        (b"1e-400", b"0.0"),
        (b"1E3", b"1000.0"),
        (b"18446744073709551615", b"18446744073709551615"),
        (b"-9223372036854775808", b"-9223372036854775808"),
        # Integers of more than 64 bits become floating point numbers, like integers of more than 53 bits in JavaScript.
        (b"18446744073709551616", b"1.8446744073709552e+19"),
        (b'"\\ud83d\\ude00"', b'"\xf0\x9f\x98\x80"'),
        (b'"\\u0000"', b'"\\u0000"'),
        (b'{"\\u0000":1}', b'{"\\u0000":1}'),
        (b'"\\u2028\\/"', b'"\xe2\x80\xa8/"'),
        (b'"\xef\xbb\xbf"', b'"\xef\xbb\xbf"'),
        (b'"\xef\xbf\xbe"', b'"\xef\xbf\xbe"'),
        (b'{"":1}', b'{"":1}'),
        (b'{"__proto__":1}', b'{"__proto__":1}'),
        (b"\r\n\t [ 1 , 2 ] ", b"[1,2]"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_unusual_value_is_delivered_as_the_same_value(value: bytes, delivered: bytes) -> None:
    outcome = examined(event(PLACES["an update"].replace(b"%", value)))
    assert isinstance(outcome, Accepted), outcome
    assert b'"more":' + delivered + b"}" in outcome.payload


@pytest.mark.parametrize(
    "body", [b"\xef\xbb\xbf%", b"\x00%", b"%\x00", b"%%", b"%,", b"\xfe\xff%", b"// \n%"], ids=repr
)
def test_update_with_other_text_around_it_is_not_json(body: bytes) -> None:
    outcome = examined(event(body.replace(b"%", json.dumps(EXAMPLE).encode())))
    assert isinstance(outcome, Rejected)
    assert outcome.reason is Reason.NOT_JSON


@pytest.mark.parametrize(
    ("value", "number"),
    [(b"-0", 0), (b"-0.0", 0), (b"7.0", 7), (b"7e0", 7), (b"70e-1", 7), (b"9007199254740991.0", 2**53 - 1)],
)
def test_id_in_another_notation_identifies_the_same_killmail(value: bytes, number: int) -> None:
    outcome = examined(event(PLACES["an update's id"].replace(b"%", value)))
    assert isinstance(outcome, Accepted), outcome
    assert outcome.identity == ("killmail", number)
    assert hash(outcome.identity) == hash(("killmail", number))


@pytest.mark.parametrize(
    "value", [b"9007199254740992", b"18446744073709551616", b"1e300", b"-1", b"-1e-300", b"0.5", b"7.0000000001"]
)
def test_id_that_is_not_an_integer_of_53_bits_is_a_violation(value: bytes) -> None:
    outcome = examined(event(PLACES["an update's id"].replace(b"%", value)))
    assert isinstance(outcome, Rejected)
    assert (outcome.reason, outcome.pointer) == (Reason.SCHEMA_VIOLATION, "/killmailId")


# If a member occurs twice, the last occurrence is validated, identifies the update, and is sent


def duplicated(document: dict[str, Any], first: tuple[str, object], last: tuple[str, object]) -> bytes:
    """Returns the document with the member `first` before all others, and the member `last` after them."""
    members = [first, *document.items(), last]
    return f"{{{','.join(f'{json.dumps(name)}:{json.dumps(value)}' for name, value in members)}}}".encode()


@pytest.mark.parametrize(("document", "member"), [(EXAMPLE, "killmailId"), (ESI, "killmail_id")], ids=["update", "ESI"])
def test_last_of_several_killmail_ids_is_sent_and_identifies(document: dict[str, Any], member: str) -> None:
    outcome = examined(event(duplicated(document, (member, "no id"), (member, 7))))
    assert isinstance(outcome, Accepted), outcome
    assert outcome.identity == ("killmail", 7)
    assert orjson.loads(outcome.payload)["data"]["killmailId"] == 7
    assert outcome.payload.count(b"killmailId") == 1


def test_last_of_several_killmail_ids_is_validated() -> None:
    outcome = examined(event(duplicated(EXAMPLE, ("killmailId", 7), ("killmailId", "no id"))))
    assert isinstance(outcome, Rejected)
    assert outcome.pointer == "/killmailId"


def test_last_of_several_types_of_an_envelope_counts() -> None:
    envelope = {"type": "event", "data": EXAMPLE}
    outcome = examined(event(duplicated(envelope, ("type", 1), ("type", "killmail")), default=None))
    assert isinstance(outcome, Accepted), outcome
    assert (outcome.type, outcome.payload.count(b'"type"')) == ("killmail", 1)
    unknown = examined(event(duplicated(envelope, ("type", "killmail"), ("type", "unknown"))))
    assert isinstance(unknown, Rejected)
    assert (unknown.reason, unknown.pointer) == (Reason.UNKNOWN_TYPE, "/type")


def test_last_of_several_data_of_an_envelope_counts() -> None:
    outcome = examined(event(duplicated({"type": "killmail"}, ("data", {"killmailId": 7}), ("data", EXAMPLE))))
    assert isinstance(outcome, Accepted), outcome
    assert outcome.identity == ("killmail", EXAMPLE["killmailId"])


def test_last_of_several_killmails_of_a_package_counts() -> None:
    taken = examined(event(duplicated({"killID": 1}, ("killmail", None), ("killmail", ESI))))
    assert isinstance(taken, Accepted), taken
    empty = examined(event(duplicated({"killID": 1}, ("killmail", ESI), ("killmail", None))))
    assert isinstance(empty, Rejected)
    assert empty.reason is Reason.PLACEHOLDER


# Deep nesting

DEPTHS = [1, 2, 100, *range(245, 261), 500, *range(1015, 1035), 100_000]
HOLES: dict[str, tuple[str, str]] = {
    "the event": ("killmail", "%"),
    "the data": ("killmail", '{"type":"killmail","data":%}'),
    "a type of another kind": ("statistics", "%"),
    "an update": ("killmail", json.dumps({**EXAMPLE, "more": "%"})),
    "a raw killmail": ("killmail", json.dumps({**ESI, "more": "%"})),
    "a victim": ("killmail", json.dumps({**ESI, "victim": {**ESI["victim"], "items": "%"}})),
    "an attacker": ("killmail", json.dumps({**ESI, "attackers": [{"more": "%"}]})),
    "attackers": ("killmail", json.dumps({**ESI, "attackers": "%"})),
    "a package": ("killmail", json.dumps(packaged({**redisq(ESI), "zkb": "%"}))),
    "beside a package": ("killmail", json.dumps({**packaged(redisq(ESI)), "more": "%"})),
    "a package's place": ("killmail", json.dumps(packaged("%"))),
    "the killmail of a package": ("killmail", json.dumps(redisq("%"))),
    "an R2Z2 document": ("killmail", json.dumps(wrapped({**r2z2(ESI), "zkb": {"labels": "%"}}))),
}


@pytest.mark.parametrize("hole", HOLES)
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"":', "}]")])
def test_any_depth_is_accepted_or_rejected(hole: str, opening: str, closing: str) -> None:
    kind, around = HOLES[hole]
    around = around.replace('"%"', "%")
    for depth in DEPTHS:
        closed = around.replace("%", opening * depth + "0" + closing * depth)
        outcome = examined(event(closed.encode(), kind=kind))
        if depth > 1024:
            assert isinstance(outcome, Rejected)
            assert outcome.reason is Reason.NOT_JSON
        unclosed = examined(event(around.replace("%", opening * depth).encode(), kind=kind))
        assert isinstance(unclosed, Rejected)
        assert unclosed.reason is Reason.NOT_JSON


# Large bodies


def in_time(of: Event) -> Accepted | Rejected:
    started = time.process_time()
    outcome = PIPELINE.process(of, NOW_MS)
    assert time.process_time() - started < SLOW_S
    return outcome


def filled(around: bytes, size: int, filling: bytes = b"x") -> bytes:
    """Returns the text with its % replaced by a filler that makes the text `size` bytes long."""
    return around.replace(b"%", filling * (size - len(around) + 1))


@pytest.mark.parametrize(
    "around",
    [
        json.dumps({**EXAMPLE, "more": "%"}),
        json.dumps({**ESI, "more": "%"}),
        json.dumps(wrapped(r2z2(ESI) | {"m": "%"})),
    ],
    ids=["update", "ESI", "R2Z2"],
)
def test_body_of_the_largest_size_is_accepted_and_one_byte_more_is_too_large(around: str) -> None:
    assert isinstance(in_time(event(filled(around.encode(), MAX_BYTES))), Accepted)
    larger = in_time(event(filled(around.encode(), MAX_BYTES + 1)))
    assert isinstance(larger, Rejected)
    assert larger.reason is Reason.TOO_LARGE


def test_killmail_of_20000_attackers_is_accepted_with_their_count() -> None:
    killmail = {**ESI, "attackers": [{**ESI["attackers"][0], "character_id": number} for number in range(20_000)]}
    for document in (killmail, packaged(redisq(killmail)), r2z2(killmail)):
        outcome = in_time(event(orjson.dumps(document)))
        assert isinstance(outcome, Accepted)
        assert orjson.loads(outcome.payload)["data"]["attackerCount"] == 20_000


def test_update_of_300000_members_is_accepted_unchanged() -> None:
    data = {**EXAMPLE, **{f"m{number}": 0 for number in range(300_000)}}
    outcome = in_time(event(orjson.dumps(data)))
    assert isinstance(outcome, Accepted)
    assert orjson.loads(outcome.payload)["data"] == data


ATTACKERS = json.dumps({**ESI, "attackers": ["%"]}).replace('"%"', "%").encode()
[EVENT] = SCHEMAS["event"]["examples"]
LARGE: dict[str, tuple[Callable[[], bytes], str, Reason]] = {
    "open arrays": (lambda: b"[" * MAX_BYTES, "killmail", Reason.NOT_JSON),
    "open objects": (lambda: b'{"a":' * (MAX_BYTES // 5), "killmail", Reason.NOT_JSON),
    "a number": (lambda: b"9" * MAX_BYTES, "killmail", Reason.NOT_JSON),
    "a fraction": (lambda: b"0." + b"9" * (MAX_BYTES - 2), "killmail", Reason.SCHEMA_VIOLATION),
    "spaces": (lambda: b" " * MAX_BYTES, "killmail", Reason.NOT_JSON),
    "an open string": (lambda: b'"' + b"x" * (MAX_BYTES - 1), "killmail", Reason.NOT_JSON),
    "a string": (lambda: filled(b'"%"', MAX_BYTES), "killmail", Reason.SCHEMA_VIOLATION),
    "a string that is not printable": (
        lambda: b'"' + "\U000e0001".encode() * 1_000_000 + b'"',
        "killmail",
        Reason.SCHEMA_VIOLATION,
    ),
    "a name": (lambda: filled(b'{"%":0}', MAX_BYTES), "killmail", Reason.SCHEMA_VIOLATION),
    "a type": (lambda: filled(b'{"type":"%","data":0}', MAX_BYTES), "killmail", Reason.UNKNOWN_TYPE),
    "an array": (lambda: b"[" + b"0," * 2_000_000 + b"0]", "killmail", Reason.SCHEMA_VIOLATION),
    "an object": (
        lambda: orjson.dumps(dict.fromkeys(map(str, range(300_000)))),
        "killmail",
        Reason.SCHEMA_VIOLATION,
    ),
    "statistics": (
        lambda: orjson.dumps(dict.fromkeys(map(str, range(300_000)))),
        "statistics",
        Reason.SCHEMA_VIOLATION,
    ),
    "a package": (
        lambda: orjson.dumps(packaged(dict.fromkeys(map(str, range(300_000))))),
        "killmail",
        Reason.PLACEHOLDER,
    ),
    "attackers that are none": (
        lambda: ATTACKERS.replace(b"%", b"0," * 1_900_000 + b"0"),
        "killmail",
        Reason.SCHEMA_VIOLATION,
    ),
    "attackers with wrong ids": (
        lambda: ATTACKERS.replace(b"%", b'{"character_id":"","alliance_id":""},' * 100_000 + b"{}"),
        "killmail",
        Reason.SCHEMA_VIOLATION,
    ),
    "a timestamp": (
        lambda: orjson.dumps({**EXAMPLE, "timestamp": f"2024-10-22T10:30:00.{'1' * 4_000_000}"}),
        "killmail",
        Reason.SCHEMA_VIOLATION,
    ),
    "a slug": (lambda: orjson.dumps({**EVENT, "kind": "a-" * 2_000_000}), "event", Reason.SCHEMA_VIOLATION),
    "killmail ids": (
        lambda: orjson.dumps({**EVENT, "killmailIds": [-1] * 1_000_000}),
        "event",
        Reason.SCHEMA_VIOLATION,
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_body_that_is_not_an_update_is_rejected_in_time(name: str) -> None:
    make, kind, reason = LARGE[name]
    body = make()
    assert len(body) <= MAX_BYTES
    outcome = in_time(event(body, kind=None if reason is Reason.UNKNOWN_TYPE else kind))
    assert isinstance(outcome, Rejected)
    assert outcome.reason is reason
    assert outcome.detail.isprintable()
    assert len(outcome.detail) < 1000
