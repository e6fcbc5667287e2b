"""Tests of the schema files: update types, errors and warnings, and the identity of updates."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import orjson
import pytest

from bridge.contract import catalog
from bridge.contract.catalog import Catalog, Schema, SchemaError, SchemaViolation
from tests.support.killmail import EXAMPLE

MAXIMUM = 2**53 - 1
PACKAGED = catalog.load([catalog.PACKAGED])
KILLMAIL = PACKAGED.types["killmail"]
TYPES = {"killmail", "statistics", "entity-activity", "price-update", "event"}
FORMS = {"esi-killmail", "redisq-package", "r2z2-document"}
MESSAGES = {"resume", "gap", "heartbeat", "close"}
ENVELOPES = {"update", "update-with-id"}
RESPONSES = {"updates-response"}


def folder_of(folder: Path, **files: bytes | dict[str, Any] | list[Any] | bool) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_bytes(content if isinstance(content, bytes) else orjson.dumps(content))
    return folder


def load(folder: Path, **files: bytes | dict[str, Any] | list[Any] | bool) -> Catalog:
    return catalog.load([folder_of(folder, **files)])


# The schema files in the package


def test_packaged_types_are_those_of_the_specification() -> None:
    assert set(PACKAGED.types) == TYPES


def test_packaged_source_formats_are_those_of_the_sources() -> None:
    assert set(PACKAGED.source_formats) == FORMS
    assert {form.identity for form in PACKAGED.source_formats.values()} == {None}


def test_packaged_messages_are_the_own_messages() -> None:
    assert set(PACKAGED.messages) == MESSAGES
    resume = PACKAGED.messages["resume"]
    assert resume.violation({"complete": True, "replayed": 0, "id": "1-00000000"}) is None
    assert resume.violation({"complete": True, "replayed": 0}) == SchemaViolation("/id", "the member 'id' is missing")


def test_packaged_files_are_served_byte_for_byte() -> None:
    assert set(PACKAGED.documents) == {f"{name}.json" for name in TYPES | FORMS | MESSAGES | ENVELOPES | RESPONSES}
    for name, content in PACKAGED.documents.items():
        assert content == (catalog.PACKAGED / name).read_bytes()


def test_example_of_the_specification_is_valid() -> None:
    assert KILLMAIL.violation(EXAMPLE) is None


def test_example_in_the_schema_of_killmails_is_that_of_the_specification() -> None:
    assert orjson.loads(PACKAGED.documents["killmail.json"])["examples"] == [EXAMPLE]


@pytest.mark.parametrize(
    "schema", [*PACKAGED.types.values(), *PACKAGED.source_formats.values()], ids=lambda schema: schema.name
)
def test_examples_in_each_schema_are_valid_and_other_values_are_not(schema: Schema) -> None:
    examples = orjson.loads(PACKAGED.documents[f"{schema.name}.json"])["examples"]
    assert examples
    for example in examples:
        assert schema.violation(example) is None
        assert list(schema.violations(example)) == []
    assert schema.violation({}) is not None


@pytest.mark.parametrize("member", ["victimId", "victimCorporationId", "victimAllianceId"])
def test_absent_victim_id_is_valid_in_all_three_ways(member: str) -> None:
    without = {name: value for name, value in EXAMPLE.items() if name != member}
    assert KILLMAIL.violation(without) is None
    assert KILLMAIL.violation({**EXAMPLE, member: None}) is None
    assert KILLMAIL.violation({**EXAMPLE, member: 0}) is None


IDS = ["killmailId", "victimId", "victimCorporationId", "victimAllianceId", "systemId", "shipTypeId", "attackerCount"]


@pytest.mark.parametrize("member", IDS)
@pytest.mark.parametrize("value", [0, 1, 2**31, 2**32, MAXIMUM])
def test_id_up_to_2_to_the_53rd_is_valid(member: str, value: int) -> None:
    assert KILLMAIL.violation({**EXAMPLE, member: value}) is None


@pytest.mark.parametrize("member", IDS)
@pytest.mark.parametrize("value", [-1, MAXIMUM + 1, 2**63, 2**64 - 1, 1e300, 1.5, "1", True, [], {}])
def test_other_id_is_a_violation_at_that_member(member: str, value: object) -> None:
    violation = KILLMAIL.violation({**EXAMPLE, member: value})
    assert violation is not None
    assert violation.pointer == f"/{member}"


@pytest.mark.parametrize("member", ["killmailId", "timestamp", "systemId", "shipTypeId", "attackerCount"])
def test_missing_member_is_named(member: str) -> None:
    data = {name: value for name, value in EXAMPLE.items() if name != member}
    assert KILLMAIL.violation(data) == SchemaViolation(f"/{member}", f"the member '{member}' is missing")


@pytest.mark.parametrize("member", ["killmailId", "systemId", "shipTypeId", "attackerCount", "timestamp"])
def test_null_is_not_a_value_of_a_required_member(member: str) -> None:
    violation = KILLMAIL.violation({**EXAMPLE, member: None})
    assert violation is not None
    assert violation.pointer == f"/{member}"


@pytest.mark.parametrize("timestamp", ["2024-10-22T10:30:00Z", "2024-10-22T10:30:00+00:00", "1999-12-31T23:59:59.1Z"])
def test_timestamp_may_be_any_date_time(timestamp: str) -> None:
    assert KILLMAIL.violation({**EXAMPLE, "timestamp": timestamp}) is None


@pytest.mark.parametrize("timestamp", ["", "yesterday", "2024-10-22", "2024-13-22T10:30:00Z", 1697962000000])
def test_timestamp_that_is_not_a_date_time_is_a_violation(timestamp: object) -> None:
    violation = KILLMAIL.violation({**EXAMPLE, "timestamp": timestamp})
    assert violation is not None
    assert violation.pointer == "/timestamp"


def test_unknown_member_is_allowed() -> None:
    assert KILLMAIL.violation({**EXAMPLE, "killmailTime": "2024-10-22T10:29:00Z", "zkb": {"points": 1}}) is None


@pytest.mark.parametrize("data", [None, True, 1, "killmail", [], [EXAMPLE]])
def test_data_that_is_not_an_object_is_a_violation_of_the_whole(data: object) -> None:
    violation = KILLMAIL.violation(data)
    assert violation is not None
    assert violation.pointer == ""


def test_first_violation_or_all_violations_are_returned() -> None:
    data = {**EXAMPLE, "killmailId": -1, "systemId": "x", "shipTypeId": None}
    found = list(KILLMAIL.violations(data))
    assert {violation.pointer for violation in found} == {"/killmailId", "/systemId", "/shipTypeId"}
    assert KILLMAIL.violation(data) in found


def test_validator_that_contradicts_itself_raises_an_assertion_error() -> None:
    contradictory = Mock(is_valid=Mock(return_value=False))
    with pytest.raises(AssertionError, match="contradicts itself"):
        dataclasses.replace(KILLMAIL, validator=contradictory).violation({})


# The schema files in an operator's folder


def test_adding_a_type_is_adding_a_file(tmp_path: Path) -> None:
    loaded = catalog.load([catalog.PACKAGED, folder_of(tmp_path, weather={"type": "object"})])
    assert set(loaded.types) == TYPES | {"weather"}
    assert set(loaded.documents) == {*PACKAGED.documents, "weather.json"}


def test_file_with_a_role_is_served_but_is_not_a_type(tmp_path: Path) -> None:
    loaded = load(tmp_path, statistics={}, shared={"x-role": "definitions"})
    assert set(loaded.types) == {"statistics"}
    assert set(loaded.source_formats) == set()
    assert set(loaded.documents) == {"statistics.json", "shared.json"}


def test_files_of_other_kinds_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("not a schema")
    assert set(load(tmp_path, event={}).documents) == {"event.json"}


def test_schema_without_an_id_gets_one_from_its_name(tmp_path: Path) -> None:
    types = load(tmp_path, event={}, statistics={"$id": "urn:example:statistics"}).types
    assert types["event"].schema_id == "urn:edk-bridge:schema:event"
    assert types["statistics"].schema_id == "urn:example:statistics"


def test_schema_may_refer_to_another_file(tmp_path: Path) -> None:
    own = folder_of(
        tmp_path,
        weather={"properties": {"systemId": {"$ref": "urn:edk-bridge:schema:killmail#/properties/systemId"}}},
        other={"items": {"$ref": "urn:edk-bridge:schema:weather"}},
    )
    types = catalog.load([catalog.PACKAGED, own]).types
    assert types["weather"].violation({"systemId": 30000142}) is None
    violation = types["other"].violation([{"systemId": 1}, {"systemId": -1}])
    assert violation is not None
    assert violation.pointer == "/1/systemId"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "can't be read as JSON"),
        (b"{", "can't be read as JSON"),
        (b'{"type": NaN}', "can't be read as JSON"),
        (b"\xff", "can't be read as JSON"),
        ([], "must contain a JSON object"),
        (True, "must contain a JSON object"),
        ({"type": "killmail"}, "not a usable JSON Schema"),
        ({"type": "string", "format": "killtime"}, "killtime"),
        ({"pattern": "("}, "not a usable JSON Schema"),
        ({"$ref": "#/$defs/id"}, "/$defs/id"),
        ({"minimum": "0"}, "not a usable JSON Schema"),
        ({"x-identity": "killmailId"}, "x-identity"),
        ({"x-identity": "/"}, "x-identity"),
        ({"x-identity": ""}, "x-identity"),
        ({"x-identity": "/a/b"}, "x-identity"),
        ({"x-identity": 1}, "x-identity"),
    ],
    ids=repr,
)
def test_unusable_schema_is_an_error_that_names_its_file(
    tmp_path: Path, content: bytes | dict[str, Any] | list[Any] | bool, said: str
) -> None:
    with pytest.raises(SchemaError) as raised:
        load(tmp_path, aaa={}, event=content, zzz={})
    assert "event.json" in str(raised.value)
    assert said in str(raised.value)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("name", ["killmail", "update-with-id"])
def test_name_of_a_packaged_schema_is_an_error(tmp_path: Path, name: str) -> None:
    own = folder_of(tmp_path, **{name: {}})
    with pytest.raises(SchemaError) as raised:
        catalog.load([catalog.PACKAGED, own])
    assert str(raised.value) == (f"{own}/{name}.json: {name} is one of the bridge's own schemas; rename the file")


def test_name_of_a_schema_in_another_folder_is_an_error(tmp_path: Path) -> None:
    one, other = folder_of(tmp_path / "one", duel={}), folder_of(tmp_path / "other", duel={})
    with pytest.raises(SchemaError) as raised:
        catalog.load([one, other])
    assert str(raised.value) == f"{other}/duel.json: {one}/duel.json has the same name; rename the file"


def test_folder_without_schema_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="no schema files") as raised:
        catalog.load([tmp_path])
    assert str(tmp_path) in str(raised.value)


def test_schema_file_that_is_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "event.json").mkdir()
    with pytest.raises(SchemaError, match=r"event\.json"):
        catalog.load([tmp_path])


# Identity


def test_killmail_is_identified_by_its_id() -> None:
    assert KILLMAIL.identity_of(EXAMPLE) == ("killmail", 123456789)


@pytest.mark.parametrize(
    ("schema", "data", "identity"),
    [
        ({}, {"id": 1}, None),
        ({"x-identity": None}, {"id": 1}, None),
        ({"x-identity": "/id"}, {"id": 1}, ("event", 1)),
        ({"x-identity": "/id"}, {"id": 1.5}, ("event", 1.5)),
        ({"x-identity": "/id"}, {"id": "a"}, ("event", "a")),
        ({"x-identity": "/id"}, {"id": None}, None),
        ({"x-identity": "/id"}, {"id": True}, None),
        ({"x-identity": "/id"}, {"id": 2**53 + 1}, ("event", 2**53 + 1)),
        ({"x-identity": "/id"}, {"id": 2.0**53 - 1}, ("event", 2**53 - 1)),
        ({"x-identity": "/id"}, {"id": 2.0**53}, None),
        ({"x-identity": "/id"}, {"id": 2.0**64}, None),
        ({"x-identity": "/id"}, {"id": -(2.0**64)}, None),
        ({"x-identity": "/id"}, {"id": "x" * 200}, ("event", "x" * 200)),
        ({"x-identity": "/id"}, {"id": [1]}, None),
        ({"x-identity": "/id"}, {"id": {}}, None),
        ({"x-identity": "/id"}, {}, None),
        ({"x-identity": "/id"}, [1], None),
        ({"x-identity": "/a~1b~0"}, {"a/b~": 1}, ("event", 1)),
        ({"x-identity": "/~01"}, {"~1": 1}, ("event", 1)),
    ],
    ids=repr,
)
def test_identity_is_the_value_of_the_member_that_the_schema_names(
    tmp_path: Path, schema: dict[str, Any], data: object, identity: tuple[str, str | float] | None
) -> None:
    assert load(tmp_path, event=schema).types["event"].identity_of(data) == identity


@pytest.mark.parametrize(
    "content",
    [
        {"$id": 5},
        {"$id": "http://[bad"},
        {"$schema": "https://example.org/x"},
        {"$ref": "urn:nothing"},
        {"$ref": "http://127.0.0.1:1/x.json"},
    ],
    ids=repr,
)
def test_unusable_reference_or_id_names_its_file(tmp_path: Path, content: dict[str, object]) -> None:
    with pytest.raises(SchemaError, match=r"event\.json"):
        load(tmp_path, event=content)


def test_duplicate_id_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"/b\.json: /.*/a\.json has the same \$id 'urn:x'; change one of them"):
        load(tmp_path, a={"$id": "urn:x", "type": "string"}, b={"$id": "urn:x", "type": "integer"})


def test_two_unusable_files_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="several schema files"):
        load(tmp_path, a={"$id": "http://[bad"}, b={"$id": "http://[worse"})


def test_unresolved_reference_in_several_files_names_the_first_file(tmp_path: Path) -> None:
    used: dict[str, Any] = {"items": {"$ref": "urn:nothing"}}
    with pytest.raises(SchemaError, match=rf"^{tmp_path}/b\.json: .*no schema file has the \$id 'urn:nothing'; "):
        load(tmp_path, a={"$ref": "urn:edk-bridge:schema:b"}, b=used, c=used)


def test_long_identity_takes_no_more_memory_than_its_digest(tmp_path: Path) -> None:
    type_ = load(tmp_path, event={"x-identity": "/id"}).types["event"]
    one, other = (type_.identity_of({"id": "x" * 4_000_000 + end}) for end in ("a", "b"))
    assert one is not None
    assert other is not None
    assert one != other
    assert one == type_.identity_of({"id": "x" * 4_000_000 + "a"})
    assert len(str(one[1])) == 64


def test_file_of_definitions_is_not_a_type_but_can_be_referred_to(tmp_path: Path) -> None:
    shared: dict[str, Any] = {"x-role": "definitions", "$defs": {"id": {"type": "integer"}}}
    own: dict[str, Any] = {"properties": {"id": {"$ref": "urn:edk-bridge:schema:shared%20parts#/$defs/id"}}}
    catalog_ = load(tmp_path, **{"shared parts": shared, "own": own})
    assert set(catalog_.types) == {"own"}
    assert catalog_.types["own"].violation({"id": "x"}) is not None


@pytest.mark.parametrize("role", ["form", "envelope", "message", "response", "Form", "types", "", 5])
def test_role_that_an_operators_file_can_not_have_is_refused(tmp_path: Path, role: object) -> None:
    with pytest.raises(SchemaError, match=r"own.json: x-role must be definitions or absent; got "):
        load(tmp_path, own={"x-role": role})


def test_file_of_definitions_must_be_a_schema(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"own\.json"):
        load(tmp_path, own={"x-role": "definitions", "properties": 5})


def test_other_draft_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"own.json: \$schema must be .*2020-12.*draft-07"):
        load(tmp_path, own={"$schema": "http://json-schema.org/draft-07/schema#"})


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "objekt"}, "/type: 'objekt' is not a type; did you mean object?"),
        ({"properties": {"a": {"minimum": "x"}}}, '/properties/a/minimum: "x" is not'),
        ({"$ref": "urn:edk-bridge:schema:owm"}, "no schema file has the $id 'urn:edk-bridge:schema:owm'; did you"),
        ({"$ref": "own.json"}, "no schema file has the $id 'own.json'; did you mean urn:edk-bridge:schema:own?"),
        ({"$dynamicRef": "urn:x#y"}, "no schema file has the $id 'urn:x'; $ref takes the $id of another file, such as"),
        (
            {"properties": {"at": {"format": "datetime"}}},
            "/properties/at/format: 'datetime' is not a format; did you mean",
        ),
    ],
)
def test_mistake_in_a_schema_is_reported_with_its_place(tmp_path: Path, schema: dict[str, Any], words: str) -> None:
    with pytest.raises(SchemaError) as raised:
        load(tmp_path, own=schema)
    assert str(raised.value).startswith(f"{tmp_path}/own.json: not a usable JSON Schema")
    assert words in str(raised.value)


def test_draft_with_an_empty_fragment_is_the_same(tmp_path: Path) -> None:
    assert "own" in load(tmp_path, own={"$schema": "https://json-schema.org/draft/2020-12/schema#"}).types


def test_duplicate_id_in_a_subschema_is_an_error(tmp_path: Path) -> None:
    theirs = {"$defs": {"k": {"$id": "urn:edk-bridge:schema:esi-killmail"}}, "anyOf": [{}]}
    (tmp_path / "own.json").write_bytes(orjson.dumps(theirs))
    with pytest.raises(
        SchemaError, match=r"own.json: /.*/esi-killmail\.json has the same \$id 'urn:edk-bridge:schema:esi-killmail'"
    ):
        catalog.load([catalog.PACKAGED, tmp_path])


def test_type_that_the_broker_sets_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"binary\.json: 'binary' can't be a type: RabbitMQ 3\.10 sets it on"):
        load(tmp_path / "own", binary={"type": "object"})


def test_schema_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text('{"allOf":[' * 500 + "{}" + "]}" * 500)
    with pytest.raises(SchemaError, match=r"deep\.json: not a usable JSON Schema: Recursion limit reached"):
        catalog.load([tmp_path])


@pytest.mark.parametrize(
    "name", ["resume", "gap", "heartbeat", "close", "error", "bridge.x", "bridge.", "Gap", "Bridge.x", " gap "]
)
@pytest.mark.parametrize("schema", [{}, {"x-role": "definitions"}], ids=repr)
def test_reserved_type_is_refused(tmp_path: Path, name: str, schema: dict[str, Any]) -> None:
    own = folder_of(tmp_path, **{name: schema, "aaa": {}})
    with pytest.raises(
        SchemaError, match=f"the type '{name}' is reserved for the bridge's own messages; rename the"
    ) as raised:
        catalog.load([catalog.PACKAGED, own])
    assert str(own / f"{name}.json") in str(raised.value)


@pytest.mark.parametrize("name", ["resumed", "bridge", "my.bridge.x", "errors"])
def test_type_that_only_looks_reserved_is_accepted(tmp_path: Path, name: str) -> None:
    assert name in load(tmp_path, **{name: {}}).types


# Warnings


def warned(catalog_: Catalog, folder: Path) -> list[str]:
    return [str(warning).removeprefix(f"{folder}/") for warning in catalog_.warnings]


def test_packaged_files_cause_no_warning() -> None:
    assert PACKAGED.warnings == ()


def test_warnings_name_the_file_and_the_place(tmp_path: Path) -> None:
    at: dict[str, Any] = {"$ref": "urn:edk-bridge:schema:shared", "id": "x"}
    duel: dict[str, Any] = {"requierd": ["winner"], "properties": {"at": at}}
    shared: dict[str, Any] = {"x-role": "definitions", "tpye": "string"}
    own = folder_of(tmp_path, duel=duel, shared=shared)
    (own / "sighting.schema.json").write_text("{}")
    assert warned(catalog.load([catalog.PACKAGED, own]), own) == [
        "duel.json: /requierd: the keyword 'requierd' is unknown and has no effect; did you mean required?",
        "duel.json: /properties/at/id: the keyword 'id' has no effect in draft 2020-12; use $id",
        "shared.json: /tpye: the keyword 'tpye' is unknown and has no effect; did you mean type?",
        "sighting.schema.json: the file's name gives the update type 'sighting.schema'; if you mean 'sighting', "
        "rename the file to sighting.json",
    ]


def test_identity_may_be_declared_in_a_referenced_schema(tmp_path: Path) -> None:
    base = {"x-role": "definitions", "$defs": {"move": {"properties": {"moveId": {"type": "integer"}}}}}
    parts = [{"$ref": "urn:edk-bridge:schema:shared#/$defs/move"}, {"properties": {"moveId": {"minimum": 1}}}]
    loaded = load(
        tmp_path, shared=base, good={"allOf": parts, "x-identity": "/moveId"}, bad={"allOf": parts, "x-identity": "/id"}
    )
    assert warned(loaded, tmp_path) == [
        "bad.json: /x-identity: the schema declares no member 'id', so updates are probably not identified; "
        "declare it in properties"
    ]


def test_file_that_looks_like_a_schema_file_causes_a_warning(tmp_path: Path) -> None:
    folder_of(tmp_path, event={})
    folder_of(tmp_path / "more", duel={})
    folder_of(tmp_path / "empty")
    folder_of(tmp_path / ".hidden", duel={})
    for name in (b"._event.json", b"duel.yaml", b"DUEL.JSON", b"du\xffel.json", b"du\nel.json", b"README.md"):
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).write_bytes(b"no JSON")
    (tmp_path / ".#event.json").symlink_to("nowhere")
    loaded = catalog.load([tmp_path])
    assert set(loaded.types) == {"event"}
    assert all(line.isprintable() for line in warned(loaded, tmp_path))
    assert [line.partition(": ")[0] for line in warned(loaded, tmp_path)] == [
        ".#event.json",
        "._event.json",
        "DUEL.JSON",
        "du\\nel.json",
        "duel.yaml",
        "du\\udcffel.json",
        "more",
    ]


def test_error_for_a_folder_without_schema_files_names_similar_files(tmp_path: Path) -> None:
    (tmp_path / "event.JSON").write_text("{}")
    with pytest.raises(SchemaError, match=r"no schema files \(\*\.json\); .*event\.JSON: not read: "):
        catalog.load([tmp_path])


@pytest.mark.parametrize("name", ["event.json.bak", "event.json~"])
def test_error_for_a_folder_without_schema_files_names_a_backup(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(SchemaError, match=rf"\); {tmp_path / name}: not read: a schema file contains JSON"):
        catalog.load([tmp_path])


def test_folder_that_can_not_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"none: can't be read: No such file"):
        catalog.load([tmp_path / "none"])
