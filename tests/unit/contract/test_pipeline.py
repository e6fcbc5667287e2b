"""Tests that the pipeline turns any event into an update or a rejection."""

from __future__ import annotations

import gzip
import pickle
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.contract import catalog
from bridge.contract.body_format import PARSED_BYTES
from bridge.contract.envelope import ending, wrap
from bridge.contract.pipeline import MAX_PROBLEMS, Accepted, Event, Pipeline, Reason, Rejected
from bridge.contract.text import printable
from tests.support.examples import examples
from tests.support.killmail import ESI, EXAMPLE

if TYPE_CHECKING:
    from pathlib import Path

NOW_MS = 1697962000000
GOLDEN = (
    b'{"type":"killmail","data":{"killmailId":123456789,"timestamp":"2024-10-22T10:30:00.000Z",'
    b'"victimId":2112625428,"victimCorporationId":98765432,"victimAllianceId":99999999,"systemId":30000142,'
    b'"shipTypeId":587,"attackerCount":15},"timestamp":1697962000000}'
)
SPECIFIED = b"""{"type":"killmail","timestamp":1697962000000,"data":{"killmailId":123456789,\
"timestamp":"2024-10-22T10:30:00.000Z",
       "victimId":2112625428,"victimCorporationId":98765432,"victimAllianceId":99999999,"systemId":30000142,
       "shipTypeId":587,"attackerCount":15}}"""
MAX_BYTES = 20_000
WITHOUT_SYSTEM = {name: value for name, value in EXAMPLE.items() if name != "systemId"}
KILLMAILS_CATALOG = catalog.load([catalog.PACKAGED])
KILLMAILS = Pipeline(KILLMAILS_CATALOG, MAX_BYTES)


@pytest.fixture(scope="module")
def anything(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A pipeline whose type `any` accepts all JSON, and whose type `event` accepts all objects."""
    folder = tmp_path_factory.mktemp("schemas")
    (folder / "any.json").write_text("{}")
    (folder / "event.json").write_text('{"type": "object"}')
    return Pipeline(catalog.load([folder]), MAX_BYTES)


def processed(
    body: object,
    *,
    kind: str | None = None,
    default: str | None = "killmail",
    encoding: str | None = None,
    pipeline: Pipeline = KILLMAILS,
) -> Accepted | Rejected:
    return pipeline.process(
        Event(body if isinstance(body, bytes) else orjson.dumps(body), kind, default, encoding), NOW_MS
    )


def accepted(body: object, **options: Any) -> Accepted:
    outcome = processed(body, **options)
    assert isinstance(outcome, Accepted), outcome
    return outcome


def rejected(body: object, **options: Any) -> Rejected:
    outcome = processed(body, **options)
    assert isinstance(outcome, Rejected), outcome
    assert outcome.detail
    assert outcome.detail.isprintable()
    return outcome


# Accepted events


@pytest.mark.parametrize(
    "body",
    [
        EXAMPLE,
        {"type": "killmail", "data": EXAMPLE},
        {"type": "killmail", "data": EXAMPLE, "timestamp": 1},
        {"timestamp": None, "data": EXAMPLE, "type": "killmail"},
        {"type": "killmail", "data": EXAMPLE, "timestamp": 1, "id": "1234-9f86d081"},
        {"id": None, "type": "killmail", "data": EXAMPLE},
        SPECIFIED,
    ],
    ids=["bare", "wrapped", "with timestamp", "in another order", "with an id", "with a null id", "as specified"],
)
@pytest.mark.parametrize(("kind", "default"), [(None, "killmail"), ("killmail", None), ("killmail", "event")])
def test_example_of_the_specification_becomes_the_golden_update(
    body: object, kind: str | None, default: str | None
) -> None:
    assert processed(body, kind=kind, default=default) == Accepted("killmail", GOLDEN, ("killmail", 123456789), EXAMPLE)


def test_update_with_an_id_is_a_valid_event() -> None:
    update = wrap("killmail", EXAMPLE, 1)[:-1] + ending("1234-9f86d081")
    assert accepted(update, default="event").payload == GOLDEN


def test_data_of_a_converted_event_is_that_of_the_update() -> None:
    raw = {"killmail_id": 1, "solar_system_id": 2, "victim": {"ship_type_id": 3}, "attackers": [{}]}
    for body in (EXAMPLE, raw):
        outcome = accepted(body)
        assert outcome.data == orjson.loads(outcome.payload)["data"]


def test_type_of_the_envelope_has_priority_over_the_default() -> None:
    assert accepted({"type": "killmail", "data": EXAMPLE}, default="event").type == "killmail"


def test_type_of_the_message_has_priority_over_the_default(anything: Pipeline) -> None:
    assert accepted({}, kind="event", default="any", pipeline=anything).type == "event"


@pytest.mark.parametrize(
    "body",
    [
        {"type": "event", "data": {}, "source": 1},
        {"type": 1, "data": {}},
        {"type": None, "data": {}},
        {"type": "event"},
        {"data": {}},
        ["type", "data"],
        "type",
    ],
    ids=repr,
)
def test_data_that_only_resembles_an_envelope_is_data(anything: Pipeline, body: object) -> None:
    outcome = accepted(body, default="any", pipeline=anything)
    assert orjson.loads(outcome.payload) == {"type": "any", "data": body, "timestamp": NOW_MS}


def test_only_one_envelope_is_unwrapped(anything: Pipeline) -> None:
    inner = {"type": "any", "data": 1}
    outcome = accepted({"type": "event", "data": inner}, pipeline=anything)
    assert orjson.loads(outcome.payload)["data"] == inner


@pytest.mark.parametrize("absent", [{}, {"victimAllianceId": None}, {"victimAllianceId": 0}], ids=repr)
def test_absent_alliance_is_delivered_as_published(absent: dict[str, int | None]) -> None:
    data = {name: value for name, value in EXAMPLE.items() if name != "victimAllianceId"} | absent
    assert orjson.loads(accepted(data).payload)["data"] == data


@pytest.mark.parametrize(
    "encoding",
    [
        *(None, "", "identity", "utf-8", "UTF-8", "utf8", "Identity", " utf-8 "),
        *("binary", "Binary", " binary\t", "8bit", "8BIT", "7bit", "us-ascii", "US-ASCII", "ascii", " ASCII"),
    ],
)
def test_plain_encoding_is_accepted(encoding: str | None) -> None:
    assert accepted(EXAMPLE, encoding=encoding).payload == GOLDEN


def test_last_of_two_members_with_the_same_name_counts(anything: Pipeline) -> None:
    assert orjson.loads(accepted(b'{"a":1,"a":2}', default="event", pipeline=anything).payload)["data"] == {"a": 2}
    last = rejected(orjson.dumps(EXAMPLE)[:-1] + b',"killmailId":"x"}')
    assert last.pointer == "/killmailId"


def test_body_of_the_largest_size_is_accepted(anything: Pipeline) -> None:
    accepted(b'"' + b"x" * (MAX_BYTES - 2) + b'"', default="any", pipeline=anything)


def test_body_of_250_levels_is_accepted(anything: Pipeline) -> None:
    accepted(b"[" * 250 + b"]" * 250, default="any", pipeline=anything)


# Rejected events


def test_body_of_one_byte_more_is_too_large(anything: Pipeline) -> None:
    outcome = rejected(b'"' + b"x" * (MAX_BYTES - 1) + b'"', default="any", pipeline=anything)
    assert outcome.reason is Reason.TOO_LARGE
    assert "20001 bytes" in outcome.detail
    assert "BRIDGE_MAX_MESSAGE_BYTES allows 20000" in outcome.detail


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "utf-16", "base64", "gzip, binary", "gzip\x00" * 1000])
@pytest.mark.parametrize("body", [gzip.compress(GOLDEN), GOLDEN.decode().encode("utf-16"), b"H4sIAAAA", b"", b"\xff"])
def test_other_encoding_of_a_body_that_is_not_json_is_unsupported(encoding: str, body: bytes) -> None:
    outcome = rejected(body, encoding=encoding)
    assert outcome.reason is Reason.UNSUPPORTED_ENCODING
    assert outcome.detail.startswith(f"content_encoding is '{encoding[:4]}")
    assert len(outcome.detail) < 500


@pytest.mark.parametrize("encoding", ["gzip", "json", "utf-16", "gzip\x00" * 1000])
@pytest.mark.parametrize("body", [GOLDEN, b" \n[1]", b"{}", b'{"a":"' + b"x" * 65 * 1024], ids=lambda body: body[:9])
def test_encoding_of_a_plain_json_body_is_unsupported_with_a_hint(encoding: str, body: bytes) -> None:
    outcome = rejected(body, encoding=encoding, pipeline=Pipeline(KILLMAILS_CATALOG, 2**20))
    assert outcome.reason is Reason.UNSUPPORTED_ENCODING
    assert outcome.detail.startswith(f"content_encoding is '{encoding[:4]}")
    assert outcome.detail.endswith("', but the body is plain JSON: do not set content_encoding")
    assert len(outcome.detail) < 500


def test_large_body_is_plain_json_if_it_begins_like_json() -> None:
    for size, words in (
        (PARSED_BYTES, "publish plain JSON in UTF-8"),
        (PARSED_BYTES + 1, "do not set content_encoding"),
    ):
        outcome = rejected(b"{".ljust(size, b"x"), encoding="gzip", pipeline=Pipeline(KILLMAILS_CATALOG, 2**20))
        assert outcome.detail.endswith(words)


@pytest.mark.parametrize("media_type", ["application/json", "text/plain; charset=utf-8", "Application/JSON"])
@pytest.mark.parametrize("body", [GOLDEN, b"\x1f\x8b"], ids=["JSON", "gzip"])
def test_media_type_as_the_encoding_gets_a_hint_to_content_type(media_type: str, body: bytes) -> None:
    outcome = rejected(body, encoding=media_type)
    assert outcome.detail.startswith(f"content_encoding is '{media_type}'")
    assert outcome.detail.endswith("; a media type belongs in content_type")


@pytest.mark.parametrize("media_type", ["application/json", "text/json", " Application/JSON; charset=utf-8"])
def test_media_type_as_the_type_gets_a_hint_to_content_type(media_type: str) -> None:
    outcome = rejected(EXAMPLE, kind=media_type)
    assert outcome.reason is Reason.UNKNOWN_TYPE
    assert outcome.detail.startswith(
        f"there is no schema for the type '{media_type}'; a media type belongs in content_type; known types: "
    )


@pytest.mark.parametrize("kind", ["killmail/new", "json", "application", "applications/json"])
def test_type_that_is_not_a_media_type_gets_no_hint_to_content_type(kind: str) -> None:
    assert "content_type" not in rejected(EXAMPLE, kind=kind).detail


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"killmail",
        b"NaN",
        b"[Infinity]",
        b"1e400",
        b'{"killmailId":NaN}',
        b'"\\ud800"',
        b'{"\\udfff":1}',
        b'"\xed\xa0\x80"',
        GOLDEN[:-1],
        GOLDEN + b"x",
        b"\xef\xbb\xbf" + GOLDEN,
        b'"\xff"',
        GOLDEN.decode().encode("utf-16"),
        b"{'killmailId':1}",
        b"[1,]",
        b"[1\x00]",
        b'"\x01"',
        b"01",
        b"\x1f\x8b\x08\x00",
        b"[" * 5000 + b"]" * 5000,
        b"[" * 5000,
        b'{"a":' * 3000 + b"1" + b"}" * 3000,
    ],
    ids=lambda body: repr(body[:20]),
)
def test_body_that_is_not_json_is_rejected(anything: Pipeline, body: bytes) -> None:
    outcome = rejected(body, default="any", pipeline=anything)
    assert outcome.reason is Reason.NOT_JSON
    assert outcome.detail.startswith("the body ")
    assert len(outcome.detail) < 500


def test_rejection_names_a_body_that_is_empty_or_not_utf_8(anything: Pipeline) -> None:
    assert rejected(b"", default="any", pipeline=anything).detail == "the body is empty"
    assert (
        rejected(b'"a\xff"', default="any", pipeline=anything).detail
        == "the body is not UTF-8: byte 2 can't be decoded"
    )


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (gzip.compress(GOLDEN, mtime=0), "the body looks like gzip: publish plain JSON in UTF-8"),
        (pickle.dumps(EXAMPLE), "the body looks like a Python pickle: publish plain JSON in UTF-8"),
        (GOLDEN.decode().encode("utf-16-le"), "the body looks like UTF-16: publish plain JSON in UTF-8"),
        (b"\xef\xbb\xbf" + GOLDEN, "the body begins with a UTF-8 byte order mark: remove it"),
        (repr(EXAMPLE).encode(), "the body looks like Python's repr(): publish what json.dumps() writes"),
        (b"killmailId=1&systemId=2", "the body looks like a form (x-www-form-urlencoded): publish JSON"),
        (GOLDEN + b"\n" + GOLDEN, "the body contains several JSON documents: publish each as a separate event"),
    ],
    ids=lambda value: repr(value[:20]),
)
@pytest.mark.parametrize("encoding", [None, "binary"])
def test_rejection_names_the_format_of_the_body(body: bytes, detail: str, encoding: str | None) -> None:
    pipeline = Pipeline(catalog.load([catalog.PACKAGED]), MAX_BYTES)
    event = Event(body, None, "killmail", encoding)
    assert pipeline.process(event, NOW_MS) == Rejected(Reason.NOT_JSON, detail)
    assert pipeline.problems(event) == [Rejected(Reason.NOT_JSON, detail)]


@pytest.mark.parametrize("wrapped", [False, True])
def test_body_of_300_levels_is_nested_too_deeply(anything: Pipeline, *, wrapped: bool) -> None:
    body = b"[" * 300 + b"]" * 300
    outcome = rejected(b'{"type":"any","data":' + body + b"}" if wrapped else body, default="any", pipeline=anything)
    assert outcome.reason is Reason.NOT_JSON
    assert "nested too deeply" in outcome.detail


KNOWN = "known types: entity-activity, event, killmail, price-update, statistics"


@pytest.mark.parametrize("kind", ["update", "Killmail", "killmail ", "killmail.json", "x\n" * 5000])
def test_type_without_a_schema_is_unknown_and_the_known_types_are_named(kind: str) -> None:
    outcome = rejected(EXAMPLE, kind=kind)
    assert (outcome.reason, outcome.pointer) == (Reason.UNKNOWN_TYPE, "")
    assert outcome.detail.endswith(KNOWN)
    assert len(outcome.detail) < 500


def test_pointer_leads_to_a_wrapped_type_without_a_schema() -> None:
    outcome = rejected({"type": "weather", "data": {}})
    assert (outcome.reason, outcome.pointer) == (Reason.UNKNOWN_TYPE, "/type")
    assert "'weather'" in outcome.detail


@pytest.mark.parametrize("form", ["esi-killmail", "redisq-package", "r2z2-document"])
def test_source_format_as_a_type_is_unknown_and_the_right_type_is_named(form: str) -> None:
    outcome = rejected({}, kind=form)
    assert (outcome.reason, outcome.pointer) == (Reason.UNKNOWN_TYPE, "")
    assert outcome.detail.endswith("publish it with the type killmail")


@pytest.mark.parametrize(
    "name", ["resume", "gap", "heartbeat", "close", "error", "bridge.", "bridge.x\n", "bridge.gap"]
)
def test_reserved_type_is_unknown_and_named_as_reserved(name: str) -> None:
    for outcome in (processed({}, kind=name), processed({"type": name, "data": {}})):
        assert isinstance(outcome, Rejected)
        assert outcome.reason == Reason.UNKNOWN_TYPE
        assert outcome.detail.startswith(f"the type {printable(name)!r} is reserved for the bridge's own messages")
        assert outcome.detail.isprintable()


@pytest.mark.parametrize("kind", [None, "", "binary"])
def test_type_property_that_names_no_type_counts_as_absent(kind: str | None) -> None:
    """RabbitMQ 3.10 sets the property `type` to `binary` on bytes that are sent over AMQP 1.0."""
    assert accepted(EXAMPLE, kind=kind).type == "killmail"
    assert accepted({"type": "killmail", "data": EXAMPLE}, kind=kind, default="event").type == "killmail"


def encoded_by_amqp_1_0(value: bytes) -> bytes:
    """Returns a value section with a string of up to 255 bytes (AMQP 1.0, section 3.2.8)."""
    return b"\x00\x53\x77\xa1" + bytes([len(value)]) + value


def test_value_of_amqp_1_0_is_rejected_with_how_to_send_it() -> None:
    outcome = rejected(encoded_by_amqp_1_0(b'{"killmailId":1}'), kind="amqp-1.0")
    assert outcome.reason is Reason.UNSUPPORTED_ENCODING
    assert "send the JSON as bytes, in a data section" in outcome.detail


def test_same_bytes_without_the_type_of_amqp_1_0_are_not_json() -> None:
    assert rejected(encoded_by_amqp_1_0(b"{}"), kind="killmail").reason is Reason.NOT_JSON


@pytest.mark.parametrize("kind", [None, "", "binary"])
def test_no_type_anywhere_is_unknown(kind: str | None) -> None:
    outcome = rejected(EXAMPLE, kind=kind, default=None)
    assert (outcome.reason, outcome.pointer) == (Reason.UNKNOWN_TYPE, "")
    assert "no default type" in outcome.detail
    assert outcome.detail.endswith(KNOWN)


def test_type_property_that_contradicts_the_envelope_is_a_violation() -> None:
    outcome = rejected({"type": "killmail", "data": EXAMPLE}, kind="event")
    assert (outcome.reason, outcome.pointer) == (Reason.SCHEMA_VIOLATION, "/type")
    assert "'killmail'" in outcome.detail
    assert "'event'" in outcome.detail


@pytest.mark.parametrize(("wrapped", "prefix"), [(False, ""), (True, "/data")])
@pytest.mark.parametrize(
    ("change", "pointer", "words"),
    [
        ({"killmailId": "1"}, "/killmailId", '"1" is not of type "integer"'),
        ({"killmailId": 2**53}, "/killmailId", "maximum of 9007199254740991"),
        ({"systemId": -1}, "/systemId", "minimum of 0"),
        ({"attackerCount": None}, "/attackerCount", 'null is not of type "integer"'),
        ({"timestamp": "today"}, "/timestamp", '"today" is not a valid date-time: write it as 2024-10-22T10:30:00Z'),
    ],
    ids=repr,
)
def test_violation_names_its_place_in_the_event_and_the_problem(
    change: dict[str, object], pointer: str, words: str, prefix: str, *, wrapped: bool
) -> None:
    data = EXAMPLE | change
    outcome = rejected({"type": "killmail", "data": data} if wrapped else data)
    assert outcome.reason is Reason.SCHEMA_VIOLATION
    assert outcome.pointer == prefix + pointer
    assert outcome.schema == "urn:edk-bridge:schema:killmail"
    assert outcome.detail.startswith(prefix + pointer + ": ")
    assert words in outcome.detail


@pytest.mark.parametrize(("wrapped", "prefix"), [(False, ""), (True, "/data")])
def test_missing_member_is_named_with_its_place(prefix: str, *, wrapped: bool) -> None:
    data = {name: value for name, value in EXAMPLE.items() if name != "systemId"}
    outcome = rejected({"type": "killmail", "data": data} if wrapped else data)
    assert outcome.pointer == prefix + "/systemId"
    assert outcome.detail == f"{prefix}/systemId: the member 'systemId' is missing"


MORE = {"type": "killmail", "data": EXAMPLE, "timestamp": 1, "id": "1"}
TEXT = orjson.dumps(EXAMPLE).decode()


@pytest.mark.parametrize("time", ["today", "2024-10-22 10:30:00", "2024-02-30T10:30:00Z", "2024-10-22t10:30:00z", ""])
def test_wrong_time_is_one_violation_of_format_or_pattern(time: str) -> None:
    event = Event(orjson.dumps({**EXAMPLE, "timestamp": time}), None, "killmail", None)
    [problem] = KILLMAILS.problems(event)
    assert problem.detail == f'/timestamp: "{time}" is not a valid date-time: write it as 2024-10-22T10:30:00Z'


@pytest.mark.parametrize(
    ("body", "pointer", "misspelled"),
    [
        ({**WITHOUT_SYSTEM, "sytemId": 1}, "/systemId", "sytemId"),
        ({"type": "killmail", "data": {**WITHOUT_SYSTEM, "system_id": 1}}, "/data/systemId", "system_id"),
        ({**ESI, "victim": {"shipTypeId": 1}}, "/victim/ship_type_id", "shipTypeId"),
        ({"esi": {**ESI, "victim": {"shipTypeId": 1}}}, "/esi/victim/ship_type_id", "shipTypeId"),
    ],
    ids=str,
)
def test_missing_member_is_named_with_its_misspelling(body: object, pointer: str, misspelled: str) -> None:
    outcome = rejected(body)
    assert outcome.pointer == pointer
    assert f" is missing; is '{misspelled}' a misspelling of it?" in outcome.detail


def test_member_of_the_schema_is_not_a_misspelling_of_another() -> None:
    other_names = {**EXAMPLE, "killmailTime": "2024-10-22T10:30:00Z"}
    del other_names["killmailId"]
    assert rejected(other_names).detail == "/killmailId: the member 'killmailId' is missing"
    body = {"esi": {**ESI, "victim": {"corporation_id": 1}, "attackers": []}}
    assert "misspelling" not in rejected(body).detail


@pytest.mark.parametrize(
    ("body", "pointer", "words"),
    [
        ({**MORE, "source": "zkb"}, "/source", "remove the member 'source'"),
        ({**MORE, "a": 1, "b": 2}, "/a", "remove the members 'a' and 'b'"),
        ({**MORE, "killmailId": 1}, "/killmailId", "remove the member 'killmailId'"),
        ({**MORE, "killmail_id": 1}, "/killmail_id", "remove the member 'killmail_id'"),
        ({**MORE, "sequence_id": 1}, "/sequence_id", "remove the member 'sequence_id'"),
        ({**MORE, "package": None}, "/package", "remove the member 'package'"),
        ({**MORE, "data": {**MORE, "killID": 1}}, "/data/killID", "remove the member 'killID'"),
        ({**MORE, "type": 1}, "/type", "the type of an envelope must be a string; got 1"),
        ({**MORE, "specversion": "1.0"}, "", "has the member 'specversion' of CloudEvents: publish the value of /data"),
        ({"pattern": "kill", "data": EXAMPLE}, "", "has the members 'pattern' and 'data' of NestJS"),
        (
            {"message": EXAMPLE, "messageType": ["urn:x"]},
            "",
            "has the members 'message' and 'messageType' of MassTransit",
        ),
        ({"channel": "kills", "data": {"a": 1}}, "", "has the members 'channel' and 'data' of an envelope"),
        ({"event": "kill", "data": EXAMPLE}, "/data", "contains a valid event: publish only that event"),
        (
            {"topic": "kill", "payload": TEXT},
            "/payload",
            "contains a valid event as a JSON string: publish only that event",
        ),
        ({"task": {"type": "killmail", "data": EXAMPLE}}, "/task", "contains a valid event: publish only that event"),
        ({"raw": ESI}, "/raw", "contains a valid event: publish only that event"),
        (
            {"kills": [EXAMPLE, EXAMPLE]},
            "/kills/0",
            "contains a valid event: publish each item of the array as a separate event",
        ),
        ({"type": "killmail", "data": {"raw": ESI}}, "/data/raw", "contains a valid event: publish only that event"),
        (
            {"type": "killmail", "data": {"type": "killmail", "data": ESI}},
            "/data/data",
            "contains a valid event: publish only",
        ),
        (["killmail", EXAMPLE], "/1", "contains a valid event: publish only that event"),
    ],
    ids=str,
)
def test_rejection_names_the_wrapper_of_an_event(body: object, pointer: str, words: str) -> None:
    outcome = rejected(body)
    assert (outcome.reason, outcome.pointer, outcome.schema) == (Reason.SCHEMA_VIOLATION, pointer, "")
    assert outcome.detail.startswith(f"{pointer}: {words}" if pointer else f"the event {words}")
    assert KILLMAILS.problems(Event(orjson.dumps(body), None, "killmail", None)) == [outcome]


@pytest.mark.parametrize(
    "body",
    [
        {"type": "Buffer", "data": list(GOLDEN)},
        list(GOLDEN),
        {str(at): byte for at, byte in enumerate(GOLDEN)},
        {"type": "killmail", "data": list(GOLDEN)},
        {"type": "killmail", "data": {"type": "Buffer", "data": list(GOLDEN)}},
    ],
    ids=lambda body: str(body)[:40],
)
@pytest.mark.parametrize("kind", [None, "killmail"])
def test_rejection_names_a_buffer_of_node(body: Any, kind: str | None) -> None:
    outcome = rejected(body, kind=kind)
    assert outcome.reason is Reason.SCHEMA_VIOLATION
    assert outcome.detail.endswith("looks like the bytes of a Buffer: publish the JSON itself")
    assert KILLMAILS.problems(Event(orjson.dumps(body), kind, "killmail", None)) == [outcome]


def test_rejection_names_a_buffer_of_node_without_any_type() -> None:
    assert "a Buffer" in rejected({"type": "Buffer", "data": list(GOLDEN)}, default=None).detail


def test_type_named_buffer_is_a_type(tmp_path: Path) -> None:
    (tmp_path / "Buffer.json").write_text("{}")
    pipeline = Pipeline(catalog.load([tmp_path]), MAX_BYTES)
    assert accepted({"type": "Buffer", "data": [1, 2]}, pipeline=pipeline).data == [1, 2]


@pytest.mark.parametrize("form", [ESI, {"killmail": ESI}, {"esi": ESI}], ids=["ESI", "RedisQ", "R2Z2"])
def test_rejection_points_to_an_incomplete_source_format_in_another_envelope(form: dict[str, Any]) -> None:
    for name in form:
        broken = {**form, name: {"a": 1}}
        assert rejected({"job": "x", "data": broken}).detail.endswith("publish the value of /data")
    assert rejected({"job": "x", "data": {"commandName": "x"}}).detail.endswith("publish the event as plain JSON")


def test_rejection_names_a_broken_envelope_without_any_type() -> None:
    outcome = rejected({**MORE, "source": "zkb"}, default=None)
    assert (outcome.reason, outcome.pointer) == (Reason.UNKNOWN_TYPE, "/source")
    assert "remove the member 'source'" in outcome.detail


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({**EXAMPLE, "systemId": "x", "pattern": 1, "data": {"a": 1}}, "/systemId"),
        ({**EXAMPLE, "systemId": "x", "type": "kill", "data": {"a": 1}}, "/systemId"),
        ({**EXAMPLE, "systemId": "x", "payload": {"a": 1}}, "/systemId"),
        ({"package": {"payload": ESI, "killmail": {"a": 1}}}, "/package/killmail/killmail_id"),
        ({**MORE, "data": None, "sequence_id": 1}, "/esi"),
    ],
    ids=str,
)
def test_event_that_only_violates_its_schema_has_the_pointer_of_the_violation(body: object, pointer: str) -> None:
    problems = KILLMAILS.problems(Event(orjson.dumps(body), None, "killmail", None))
    assert pointer in [problem.pointer for problem in problems]


def test_deep_and_broken_strings_contain_no_event() -> None:
    deep_event = f'{TEXT[:-1]},"more":{"[" * 1000}{"]" * 1000}}}'
    for text in (deep_event, '{"a":' * 500 + "1" + "}" * 500, '{"a":' * 2000 + "1" + "}" * 2000, "{"):
        assert rejected({"raw": text, "a": 1}).detail == "/killmailId: the member 'killmailId' is missing"
    deep: Any = 1
    for _ in range(245):
        deep = {"a": deep}
    assert rejected({"b": deep}).detail == "/killmailId: the member 'killmailId' is missing"


JOB = {
    "type": "object",
    "properties": {"type": {"enum": ["start", "stop"]}, "data": {"type": "object"}, "by": {"type": "string"}},
    "required": ["type", "data"],
}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A pipeline with a type `job`, whose members have the same names as the members of an envelope."""
    folder = tmp_path_factory.mktemp("schemas")
    (folder / "job.json").write_bytes(orjson.dumps(JOB))
    (folder / "task.json").write_text('{"allOf": [{"$ref": "urn:edk-bridge:schema:job"}]}')
    return Pipeline(catalog.load([catalog.PACKAGED, folder]), MAX_BYTES)


@pytest.mark.parametrize("own", ["job", "task"])
@pytest.mark.parametrize("by", [{"kind": None}, {"kind": "", "default": "own"}, {"kind": "own", "default": "killmail"}])
def test_schema_with_the_members_of_an_envelope_describes_its_events(
    jobs: Pipeline, own: str, by: dict[str, str | None]
) -> None:
    named: dict[str, Any] = {name: own if value == "own" else value for name, value in {"default": own, **by}.items()}
    for more in ({}, {"id": 1}, {"timestamp": 1}, {"by": "me"}):
        body = {"type": "start", "data": {}, **more}
        outcome = accepted(body, pipeline=jobs, **named)
        assert (outcome.type, outcome.data) == (own, body)
        broken = rejected({**body, "type": "go"}, pipeline=jobs, **named)
        assert (broken.pointer, broken.detail) == ("/type", '/type: "go" is not one of "start" or "stop"')
    inner = {"type": "start", "data": {}}
    assert accepted({"type": own, "data": inner}, pipeline=jobs, **named).data == inner


def test_envelope_of_a_known_type_has_priority_over_a_default_type_with_such_members(jobs: Pipeline) -> None:
    assert accepted({"type": "killmail", "data": EXAMPLE}, default="job", pipeline=jobs).type == "killmail"


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (TEXT, "JSON in a JSON string: encode it only once"),
        (orjson.dumps(TEXT).decode(), "JSON in a JSON string: encode it only once"),
        (
            [EXAMPLE] * 3,
            "an array of 3 items: publish each item as a separate event (jq -c '.[]' writes one item on each line)",
        ),
        ("killmail", 'expected an object; got the string "killmail"'),
        ("", "expected an object; got an empty string"),
        (None, "expected an object; got null"),
        (5, "expected an object; got the number 5"),
        (False, "expected an object; got the boolean false"),
        ([], "expected an object; got an empty array"),
    ],
    ids=str,
)
def test_rejection_names_the_kind_of_an_event_that_is_not_an_object(
    value: object, words: str, *, wrapped: bool
) -> None:
    outcome = rejected({"type": "killmail", "data": value} if wrapped else value)
    assert outcome.detail == (f"/data: {words}" if wrapped else words)
    assert outcome.schema == "urn:edk-bridge:schema:killmail"


def test_violation_of_the_whole_event_begins_with_the_problem() -> None:
    outcome = rejected([EXAMPLE])
    assert (outcome.reason, outcome.pointer) == (Reason.SCHEMA_VIOLATION, "")
    assert outcome.detail.startswith("an array of 1 item: publish each item as a separate event")


def test_violation_of_the_whole_data_points_to_the_data() -> None:
    assert rejected({"type": "killmail", "data": []}).pointer == "/data"


@pytest.mark.parametrize("value", ["x" * 15_000, list(range(3000)), {"x" * 10_000: 1}], ids=["text", "array", "object"])
def test_detail_of_a_huge_value_is_bounded(value: object) -> None:
    assert len(rejected({**EXAMPLE, "systemId": value}).detail) < 500


def test_control_characters_are_escaped_in_the_detail() -> None:
    detail = rejected({**EXAMPLE, "systemId": "a\x1b[31m\r\n\u2028b"}).detail
    assert "\\u2028b" in detail


def test_rejection_has_the_id_of_the_violated_schema(tmp_path: Path) -> None:
    (tmp_path / "weather.json").write_text('{"$id": "urn:example:weather", "type": "object"}')
    pipeline = Pipeline(catalog.load([catalog.PACKAGED, tmp_path]), MAX_BYTES)
    assert rejected([], kind="weather", pipeline=pipeline).schema == "urn:example:weather"
    assert rejected([], kind="killmail", pipeline=pipeline).schema == "urn:edk-bridge:schema:killmail"


# Any event

FAST = settings(max_examples=examples(80))
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["type", "data", "timestamp", "id", *EXAMPLE]) | st.text(max_size=5), inner)
        | st.fixed_dictionaries({"type": st.sampled_from(["any", "event", "killmail"]), "data": inner})
    ),
    max_leaves=10,
)
NAMES = st.none() | st.sampled_from(["any", "event", "killmail", ""]) | st.text(max_size=10)


@FAST
@given(
    body=st.binary(max_size=200) | JSON.map(orjson.dumps) | st.text(max_size=50).map(str.encode),
    kind=NAMES,
    default=NAMES,
    encoding=st.none() | st.sampled_from(["", "utf-8", "gzip"]) | st.text(max_size=10),
)
def test_any_event_is_accepted_or_rejected_and_never_raises(
    anything: Pipeline, body: bytes, kind: str | None, default: str | None, encoding: str | None
) -> None:
    for pipeline in (anything, KILLMAILS):
        outcome = processed(body, kind=kind, default=default, encoding=encoding, pipeline=pipeline)
        if isinstance(outcome, Rejected):
            assert outcome.detail.isprintable()
            assert len(outcome.detail) < 5000
            assert outcome.pointer == "" or outcome.pointer.startswith("/")
            continue
        update, published = orjson.loads(outcome.payload), orjson.loads(body)
        assert set(update) == {"type", "data", "timestamp"}
        assert update["type"] == outcome.type
        assert update["timestamp"] == NOW_MS
        is_wrapped = (
            isinstance(published, dict)
            and isinstance(published.get("type"), str)
            and "data" in published
            and published.keys() <= {"type", "data", "timestamp", "id"}
        )
        assert update["data"] == (published["data"] if is_wrapped else published)


@FAST
@given(changes=st.dictionaries(st.sampled_from([*EXAMPLE, "more"]), JSON), without=st.sets(st.sampled_from([*EXAMPLE])))
def test_any_killmail_is_delivered_as_published_or_rejected_with_its_schema(
    changes: dict[str, Any], without: set[str]
) -> None:
    data = {name: value for name, value in (EXAMPLE | changes).items() if name not in without}
    outcome = processed(data)
    if isinstance(outcome, Accepted):
        assert orjson.loads(outcome.payload)["data"] == orjson.loads(orjson.dumps(data))
        assert outcome.identity == ("killmail", data["killmailId"])
    else:
        assert outcome.schema == "urn:edk-bridge:schema:killmail"
        assert outcome.pointer == "" or outcome.pointer.removeprefix("/") in EXAMPLE


def test_detail_of_a_huge_member_name_is_bounded_and_escaped(tmp_path: Path) -> None:
    (tmp_path / "event.json").write_text('{"additionalProperties": {"type": "integer"}}')
    pipeline = Pipeline(catalog.load([tmp_path]), 100_000)
    outcome = rejected({"\x1b\n" + "k" * 10_000: "x"}, kind="event", pipeline=pipeline)
    assert len(outcome.detail) < 2000
    assert len(outcome.pointer) < 1000
    assert outcome.detail.isprintable()
    assert outcome.pointer.isprintable()


def test_violations_are_listed_up_to_a_bound() -> None:
    def problems(number: int) -> list[Rejected]:
        body = {"eventId": "a", "timestamp": "2024-10-22T10:30:00Z", "kind": "x", "title": "t"}
        event = Event(orjson.dumps({**body, "killmailIds": ["x"] * number}), None, "event", None)
        return Pipeline(catalog.load([catalog.PACKAGED]), 2**20).problems(event)

    assert [problem.pointer for problem in problems(MAX_PROBLEMS)][-1] == f"/killmailIds/{MAX_PROBLEMS - 1}"
    *listed, last = problems(MAX_PROBLEMS + 1)
    assert (len(listed), last.pointer) == (MAX_PROBLEMS, "")
    assert last.detail == "the event has more than 1,000 violations; the others are not listed"


def test_update_that_exceeds_the_limit_with_its_numbers_in_full_is_too_large() -> None:
    pipeline = Pipeline(catalog.load([catalog.PACKAGED]), 20_000)
    few, many = (
        orjson.dumps({**EXAMPLE, "x": 0}).replace(b'"x":0', b'"x":[' + b"1e15," * n + b"1]") for n in (9, 3000)
    )
    assert len(many) < 20_000
    assert isinstance(pipeline.process(Event(few, None, "killmail", None), 0), Accepted)
    rejected = pipeline.process(Event(many, None, "killmail", None), 0)
    assert isinstance(rejected, Rejected)
    assert rejected.reason is Reason.TOO_LARGE
    assert "written in full" in rejected.detail
    assert pipeline.problems(Event(many, None, "killmail", None)) == [rejected]
