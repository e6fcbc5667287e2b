"""Tests that each source format of a killmail is detected, validated against its schema, and converted."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.contract import catalog, killmail_formats
from bridge.contract.envelope import date_time
from bridge.contract.killmail_formats import SourceFormat
from bridge.contract.pipeline import Accepted, Event, Pipeline, Reason, Rejected
from tests.support.killmail import CORPUS, CORPUS_INDEX, ESI, EXAMPLE, INDEXED, ZKB, packaged, r2z2, redisq, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW_MS = 1729593000007
NOW = "2024-10-22T10:30:00.007Z"
PIPELINE = Pipeline(catalog.load([catalog.PACKAGED]), 4 * 2**20)
CONVERTED = {
    **{name: value for name, value in EXAMPLE.items() if name != "timestamp"},
    "timestamp": NOW,
    "attackerCount": 2,
    "killmailTime": "2024-10-22T10:14:51Z",
}
REDISQ_SCHEMA, R2Z2_SCHEMA = "urn:edk-bridge:schema:redisq-package", "urn:edk-bridge:schema:r2z2-document"
ESI_SCHEMA = "urn:edk-bridge:schema:esi-killmail"
VICTIM = [("victimId", "character_id"), ("victimCorporationId", "corporation_id"), ("victimAllianceId", "alliance_id")]


class Variant(NamedTuple):
    """A format in which a raw killmail can be published."""

    name: str
    made_of: Callable[[Any], Any]
    pointer: str
    """The JSON Pointer to the raw killmail in the published document."""
    schema: str


def in_envelope(variant: Variant) -> Variant:
    return Variant(
        f"{variant.name}, wrapped", lambda raw: wrapped(variant.made_of(raw)), f"/data{variant.pointer}", variant.schema
    )


VARIANTS = [
    Variant("ESI", lambda raw: raw, "", "esi-killmail"),
    Variant("RedisQ", redisq, "/killmail", "redisq-package"),
    Variant("RedisQ in a package", lambda raw: packaged(redisq(raw)), "/package/killmail", "redisq-package"),
    Variant("R2Z2", r2z2, "/esi", "r2z2-document"),
    Variant("ESI in a package", packaged, "/package", "esi-killmail"),
    Variant("R2Z2 in a package", lambda raw: packaged(r2z2(raw)), "/package/esi", "r2z2-document"),
]
VARIANTS += map(in_envelope, VARIANTS.copy())
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)


def processed(body: object, *, default: str = "killmail", pipeline: Pipeline = PIPELINE) -> Accepted | Rejected:
    event = Event(json.dumps(body).encode(), None, default, None)
    outcome = pipeline.process(event, NOW_MS)
    assert isinstance(outcome, Accepted) == (pipeline.problems(event) == [])
    return outcome


def accepted(body: object, **options: Any) -> Accepted:
    outcome = processed(body, **options)
    assert isinstance(outcome, Accepted), outcome
    return outcome


def data_of(body: object, **options: Any) -> dict[str, Any]:
    """Returns the data of the update, with its members in order."""
    update = json.loads(accepted(body, **options).payload)
    assert list(update) == ["type", "data", "timestamp"]
    assert update["timestamp"] == NOW_MS
    data = update["data"]
    assert isinstance(data, dict)
    return data


def rejected(body: object, **options: Any) -> Rejected:
    outcome = processed(body, **options)
    assert isinstance(outcome, Rejected), outcome
    assert outcome.detail.isprintable()
    return outcome


def without(document: dict[str, Any], *members: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in members}


def with_victim(**members: Any) -> dict[str, Any]:
    return {**ESI, "victim": {**ESI["victim"], **members}}


# Conversion


@each_variant
def test_killmail_in_any_format_becomes_data_in_the_order_of_the_specification(variant: Variant) -> None:
    data = data_of(variant.made_of(ESI))
    assert data == CONVERTED
    assert list(data) == [*EXAMPLE, "killmailTime"]


@each_variant
@pytest.mark.parametrize(("ours", "theirs"), VICTIM)
@pytest.mark.parametrize("value", [1, 0, None, 2**31, 2**53 - 1])
def test_victim_id_is_delivered_unchanged(variant: Variant, ours: str, theirs: str, value: int | None) -> None:
    assert data_of(variant.made_of(with_victim(**{theirs: value}))) == {**CONVERTED, ours: value}


@each_variant
@pytest.mark.parametrize(("ours", "theirs"), VICTIM)
def test_victim_id_that_is_missing_is_left_out(variant: Variant, ours: str, theirs: str) -> None:
    data = data_of(variant.made_of({**ESI, "victim": without(ESI["victim"], theirs)}))
    assert list(data) == list(without(dict.fromkeys([*EXAMPLE, "killmailTime"]), ours))


@each_variant
def test_victim_without_any_id_leaves_five_members_and_the_time(variant: Variant) -> None:
    data = data_of(variant.made_of({**ESI, "victim": {"ship_type_id": 35832}}))
    assert list(data) == ["killmailId", "timestamp", "systemId", "shipTypeId", "attackerCount", "killmailTime"]
    assert data["shipTypeId"] == 35832


@each_variant
def test_killmail_without_its_time_becomes_an_update_without_one(variant: Variant) -> None:
    assert data_of(variant.made_of(without(ESI, "killmail_time"))) == without(CONVERTED, "killmailTime")


@each_variant
@pytest.mark.parametrize("count", [0, 1, 300])
def test_attackers_are_counted(variant: Variant, count: int) -> None:
    assert data_of(variant.made_of({**ESI, "attackers": [{}] * count}))["attackerCount"] == count


@each_variant
def test_other_members_are_not_in_the_update(variant: Variant) -> None:
    raw = with_victim(faction_id=500001, zkb=ZKB, more=1)
    raw |= {"killmail_hash": "0123", "zkb": ZKB, "moon_id": 40000001, "war_id": 1, "more": {"deep": [1]}}
    assert data_of(variant.made_of(raw)) == CONVERTED


@each_variant
def test_id_in_the_killmail_has_priority_over_other_ids(variant: Variant) -> None:
    assert data_of(variant.made_of({**ESI, "killmail_id": 7}))["killmailId"] == 7


def test_raw_killmail_with_or_without_hash_is_the_same() -> None:
    with_hash = accepted({**ESI, "killmail_hash": ZKB["hash"], "zkb": ZKB})
    assert with_hash == accepted(ESI)


@pytest.mark.parametrize("timestamp_ms", [NOW_MS, 0])
def test_timestamp_of_the_data_is_the_moment_of_conversion(timestamp_ms: int) -> None:
    source = killmail_formats.detect(ESI)
    assert isinstance(source, killmail_formats.SourceDocument)
    assert killmail_formats.convert(source, timestamp_ms)["timestamp"] == date_time(timestamp_ms)


# Identity


@each_variant
def test_identity_of_a_killmail_is_the_same_in_any_format(variant: Variant) -> None:
    assert accepted(variant.made_of(ESI)).identity == accepted(EXAMPLE).identity == ("killmail", 123456789)


@each_variant
def test_identity_of_another_killmail_differs(variant: Variant) -> None:
    assert accepted(variant.made_of({**ESI, "killmail_id": 0})).identity == ("killmail", 0)


# Detection


RAW, IN_KILLMAIL, IN_ESI = (
    (SourceFormat.ESI, None),
    (SourceFormat.REDISQ, "killmail"),
    (SourceFormat.R2Z2, "esi"),
)
NOT_EMPTY = [1, 0, False, "", "x", [0], [None], [[]], {"a": 0}, {"a": ""}, {"a": [None]}, {"a": {"b": None}}]
EMPTY: list[Any] = [
    *(None, [], {}),
    *({"a": None}, {"a": []}, {"a": {}}),
    {"killmail_id": None, "attackers": [], "victim": None, "zkb": {}},
]
BARE_OR_PACKAGED = [(lambda data: data, ""), (packaged, "/package")]
bare_or_packaged = pytest.mark.parametrize(("around", "prefix"), BARE_OR_PACKAGED, ids=["bare", "packaged"])


@bare_or_packaged
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (ESI, RAW),
        ({"victim": 1, "attackers": 1}, RAW),
        ({"victim": 1, "attackers": None}, RAW),
        ({"victim": 1, "attackers": 1, "esi": ESI}, RAW),
        ({"victim": 1, "attackers": 1, "killmail": ESI, "killID": 1}, RAW),
        ({"victim": 1, "attackers": 1, "package": redisq(ESI)}, RAW),
        ({"victim": 1, "attackers": 1, "package": None, "killmail": None, "esi": None, "sequence_id": 1}, RAW),
        *(({"killmail": value}, IN_KILLMAIL) for value in NOT_EMPTY),
        *(({"esi": value}, IN_ESI) for value in NOT_EMPTY),
        *(({"killmail": 1, "esi": empty, "sequence_id": 1}, IN_KILLMAIL) for empty in EMPTY),
        *(({"esi": 1, "killmail": empty, "killID": 1}, IN_ESI) for empty in EMPTY),
        *(({"killmail": 1, "package": value}, IN_KILLMAIL) for value in [*EMPTY, 1, redisq(ESI)]),
        *(({"esi": 1, "package": value}, IN_ESI) for value in [*EMPTY, 1, redisq(ESI)]),
        ({"killmail": 1, "esi": 1}, IN_KILLMAIL),
        ({"killmail": {"killmail_id": 1}, "killmail_id": 1}, IN_KILLMAIL),
        ({"killmail": 1, "attackers": 1}, IN_KILLMAIL),
        ({"esi": 1, "victim": 1}, IN_ESI),
    ],
    ids=str,
)
def test_format_is_detected_by_the_place_of_the_killmail(
    data: dict[str, Any], expected: tuple[SourceFormat, str | None], around: Callable[[Any], Any], prefix: str
) -> None:
    variant, killmail = expected
    assert killmail_formats.detect(around(data)) == killmail_formats.SourceDocument(variant, data, prefix, killmail)


@pytest.mark.parametrize("data", [{"killmail_id": 1}, {"killmail_id": None}, without(ESI, "victim")], ids=str)
def test_killmail_id_without_members_of_other_formats_is_an_incomplete_raw_killmail(data: dict[str, Any]) -> None:
    assert killmail_formats.detect(data) == killmail_formats.SourceDocument(SourceFormat.ESI, data, "", None)


@pytest.mark.parametrize("package", [1, 0, "", "x", False, [0], [None], [[]], [ESI]], ids=str)
def test_package_that_is_not_an_object_is_validated(package: object) -> None:
    for beside in ({}, {"killmail": None, "killID": 1}, {"esi": None, "sequence_id": 1}, {"killmail_id": 1}):
        found = killmail_formats.detect({"package": package, **beside})
        assert found == killmail_formats.SourceDocument(SourceFormat.REDISQ, package, "/package", "killmail")


@pytest.mark.parametrize("empty", EMPTY, ids=str)
@pytest.mark.parametrize("beside", [{"killmail_id": 1}, {"killID": 1}, {"sequence_id": 1}, {"victim": ESI["victim"]}])
def test_killmail_in_a_package_is_found_next_to_other_members(beside: dict[str, Any], empty: object) -> None:
    for inner in (ESI, redisq(ESI), r2z2(ESI)):
        assert data_of({**packaged(inner), **beside, "killmail": empty, "esi": empty}) == CONVERTED


@pytest.mark.parametrize(
    "data", [{}, {"victim": {}}, {"attackers": []}, {"zkb": {}}, {"hash": "0"}, {"systemId": 1}], ids=str
)
def test_data_without_members_of_a_source_format_is_not_one(data: dict[str, Any]) -> None:
    assert killmail_formats.detect(data) is None


@pytest.mark.parametrize("member", ["package", "killmail", "killID", "esi", "sequence_id", "killmail_id"])
@pytest.mark.parametrize("value", [None, 1, {}, ESI])
def test_update_with_a_member_of_a_source_format_stays_an_update(member: str, value: object) -> None:
    data = {**EXAMPLE, member: value}
    assert killmail_formats.detect(data) is None
    assert data_of(data) == data


def test_update_with_a_victim_and_attackers_stays_an_update() -> None:
    data = {**EXAMPLE, **ESI}
    assert data_of(data) == data


@pytest.mark.parametrize("kind", ["statistics", "entity-activity", "price-update", "event"])
@pytest.mark.parametrize("extra", [packaged(None), packaged(redisq(ESI)), redisq(ESI), r2z2(None), ESI])
def test_update_of_another_type_is_never_a_source_format(kind: str, extra: dict[str, Any]) -> None:
    [example] = orjson.loads((catalog.PACKAGED / f"{kind}.json").read_bytes())["examples"]
    data = {**example, **extra}
    assert data_of(data, default=kind) == data
    assert rejected(extra, default=kind).schema == f"urn:edk-bridge:schema:{kind}"


def test_killmail_of_another_type_is_a_violation_of_that_type() -> None:
    assert rejected({"type": "event", "data": ESI}).schema == "urn:edk-bridge:schema:event"


@each_variant
def test_source_format_without_a_schema_is_validated_as_an_update(variant: Variant, tmp_path: Path) -> None:
    (tmp_path / "killmail.json").write_bytes((catalog.PACKAGED / "killmail.json").read_bytes())
    pipeline = Pipeline(catalog.load([tmp_path]), 2**20)
    for killmail in (ESI, None):
        outcome = rejected(variant.made_of(killmail) or {}, pipeline=pipeline)
        assert (outcome.reason, outcome.schema) == (Reason.SCHEMA_VIOLATION, "urn:edk-bridge:schema:killmail")


# Documents that contain other members besides the killmail

SCALARS: st.SearchStrategy[Any] = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from([None, [], {}, ESI]) | SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
MARKERS = ["package", "killmail", "killID", "esi", "sequence_id"]
NAMED = {"killmailId", *MARKERS} | {
    member
    for variant in SourceFormat
    for member in orjson.loads((catalog.PACKAGED / f"{variant}.json").read_bytes())["properties"]
}
UNNAMED = st.dictionaries(st.text(max_size=8).filter(lambda name: name not in NAMED), JSON, max_size=4)


@given(markers=st.dictionaries(st.sampled_from(MARKERS), JSON), unnamed=UNNAMED)
def test_raw_killmail_with_other_members_becomes_the_same_update(
    markers: dict[str, Any], unnamed: dict[str, Any]
) -> None:
    for raw in ({**markers, **unnamed, **ESI}, {**ESI, **unnamed, **markers}):
        assert accepted(raw) == accepted(packaged(raw)) == accepted(ESI)


@given(unnamed=UNNAMED, package=JSON, mark=JSON, empty=st.sampled_from(EMPTY))
def test_document_with_other_members_becomes_the_same_update(
    unnamed: dict[str, Any], package: object, mark: object, empty: object
) -> None:
    beside = {**unnamed, "package": package}
    of_r2z2, of_redisq = {"esi": mark, "sequence_id": mark}, {"killmail": empty, "killID": mark}
    for document in ({**beside, **of_r2z2, **redisq(ESI)}, {**beside, **of_redisq, **r2z2(ESI)}):
        assert accepted(document) == accepted(packaged(document)) == accepted(ESI)


@given(unnamed=UNNAMED, mark=JSON, empty=st.sampled_from(EMPTY))
def test_package_with_other_members_becomes_the_same_update(
    unnamed: dict[str, Any], mark: object, empty: object
) -> None:
    beside = {**unnamed, "killmail": empty, "killID": mark, "esi": empty, "sequence_id": mark, "killmail_id": mark}
    for inner in (ESI, redisq(ESI), r2z2(ESI)):
        assert accepted({**beside, **packaged(inner)}) == accepted(ESI)


@given(unnamed=UNNAMED)
def test_placeholder_with_unknown_members_stays_a_placeholder(unnamed: dict[str, Any]) -> None:
    for placeholder in (packaged(None), packaged(redisq(None)), redisq(None), r2z2(None)):
        assert rejected({**unnamed, **placeholder}) == rejected(placeholder)


# Violations


@each_variant
@pytest.mark.parametrize(
    ("change", "at"),
    [
        ({"killmail_id": "1"}, "/killmail_id"),
        ({"killmail_id": None}, "/killmail_id"),
        ({"solar_system_id": -1}, "/solar_system_id"),
        ({"killmail_time": "yesterday"}, "/killmail_time"),
        ({"killmail_time": None}, "/killmail_time"),
        ({"victim": None}, "/victim"),
        ({"victim": {}}, "/victim/ship_type_id"),
        ({"victim": {"ship_type_id": 1, "character_id": 2**53}}, "/victim/character_id"),
        ({"attackers": {}}, "/attackers"),
        ({"attackers": [{}, {}, None]}, "/attackers/2"),
        ({"attackers": [{}, {"ship_type_id": "x"}]}, "/attackers/1/ship_type_id"),
    ],
    ids=str,
)
def test_violation_names_the_schema_of_the_source_format_and_points_into_the_event(
    variant: Variant, change: dict[str, Any], at: str
) -> None:
    outcome = rejected(variant.made_of({**ESI, **change}))
    assert outcome.reason is Reason.SCHEMA_VIOLATION
    assert outcome.pointer == variant.pointer + at
    assert outcome.schema == f"urn:edk-bridge:schema:{variant.schema}"
    assert outcome.detail.startswith(f"{outcome.pointer}: ")


@pytest.mark.parametrize(
    ("variant", "member"),
    [
        (variant, member)
        for variant in VARIANTS
        for member in ("killmail_id", "solar_system_id", "victim", "attackers")
        # A package without victim or attackers counts as a RedisQ package whose killmail is missing.
        if "ESI in a package" not in variant.name or member in {"killmail_id", "solar_system_id"}
    ],
    ids=lambda each: each if isinstance(each, str) else each.name,
)
def test_pointer_leads_to_the_missing_member(variant: Variant, member: str) -> None:
    outcome = rejected(variant.made_of(without(ESI, member)))
    pointer = f"{variant.pointer}/{member}"
    assert outcome.pointer == pointer
    assert outcome.detail.startswith(f"{pointer}: the member '{member}' is missing (validated as a")
    assert outcome.schema == f"urn:edk-bridge:schema:{variant.schema}"


@bare_or_packaged
@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"killmail_id": 1, "victim": {}, "attackers": []}, "a raw ESI killmail because of 'victim' and 'attackers'"),
        (redisq({"a": 1}), "a RedisQ package because of 'killmail'"),
        (r2z2({"a": 1}), "an R2Z2 document because of 'esi'"),
    ],
    ids=str,
)
def test_violation_of_a_source_format_ends_with_the_format_and_its_signs(
    document: object, words: str, around: Callable[[Any], Any], prefix: str
) -> None:
    for body in (around(document), wrapped(around(document))):
        for problem in PIPELINE.problems(Event(orjson.dumps(body), None, "killmail", None)):
            assert problem.detail.endswith(f" (validated as {words})")
            assert problem.pointer.removeprefix("/data").startswith(prefix)


@pytest.mark.parametrize("package", [1, "x", [0]], ids=repr)
def test_violation_of_a_package_that_is_not_an_object_names_the_package(package: object) -> None:
    assert rejected(packaged(package)).detail.endswith(" (validated as a RedisQ package because of 'package')")


def test_violation_of_an_object_with_only_a_killmail_id_names_the_bridges_own_member() -> None:
    raw = "validated as a raw ESI killmail because of 'killmail_id'"
    own = {"killmail_id": 1, "system_id": 1, "ship_type_id": 1, "attacker_count": 1}
    assert rejected(own).detail.endswith(f"({raw}; the bridge's own member is 'killmailId')")
    assert rejected(without(ESI, "victim")).detail.endswith(f"({raw})")


def test_violation_of_the_updates_own_schema_names_no_source_format() -> None:
    assert "validated as" not in rejected(without(EXAMPLE, "systemId")).detail


@each_variant
def test_all_violations_are_listed_and_point_into_the_event(variant: Variant) -> None:
    body = variant.made_of({**ESI, "killmail_id": -1, "victim": {}, "attackers": [1]})
    found = PIPELINE.problems(Event(orjson.dumps(body), None, "killmail", None))
    at = {"/killmail_id", "/victim/ship_type_id", "/attackers/0"}
    assert {problem.pointer for problem in found} == {variant.pointer + pointer for pointer in at}
    assert {problem.schema for problem in found} == {f"urn:edk-bridge:schema:{variant.schema}"}
    assert rejected(body) in found


@pytest.mark.parametrize(
    ("around", "prefix"), [*BARE_OR_PACKAGED, (lambda data: wrapped(packaged(data)), "/data/package")]
)
@pytest.mark.parametrize("value", NOT_EMPTY, ids=str)
def test_other_value_in_the_place_of_the_killmail_is_a_violation_there(
    value: object, around: Callable[[Any], Any], prefix: str
) -> None:
    for document, at, schema in ((redisq(value), "/killmail", REDISQ_SCHEMA), (r2z2(value), "/esi", R2Z2_SCHEMA)):
        outcome = rejected(around(document))
        assert (outcome.reason, outcome.schema) == (Reason.SCHEMA_VIOLATION, schema)
        assert outcome.pointer.startswith(prefix + at)


@pytest.mark.parametrize("package", [1, "x", [0], False], ids=repr)
def test_package_that_is_not_an_object_is_a_violation_at_the_package(package: object) -> None:
    outcome = rejected(packaged(package))
    assert (outcome.reason, outcome.pointer) == (Reason.SCHEMA_VIOLATION, "/package")
    assert outcome.schema == "urn:edk-bridge:schema:redisq-package"


# Placeholders

WITHOUT: list[tuple[dict[str, Any], str, str]] = [
    *((redisq(empty), "/killmail", REDISQ_SCHEMA) for empty in EMPTY),
    ({"killID": 1}, "/killmail", REDISQ_SCHEMA),
    ({"killID": 1, "killmail_id": 1}, "/killmail", REDISQ_SCHEMA),
    ({"killmail": None, "killmail_id": 1}, "/killmail", REDISQ_SCHEMA),
    *((r2z2(empty), "/esi", R2Z2_SCHEMA) for empty in EMPTY),
    ({"esi": {}, "killmail_id": 1}, "/esi", R2Z2_SCHEMA),
    ({"sequence_id": 1}, "/esi", R2Z2_SCHEMA),
    ({"sequence_id": 1, "killmail_id": 1, "hash": "0"}, "/esi", R2Z2_SCHEMA),
    ({"sequence_id": None, "killID": 1}, "/esi", R2Z2_SCHEMA),
    ({"esi": None, "killmail": [], "killID": 1}, "/esi", R2Z2_SCHEMA),
]
REFERENCES: list[dict[str, Any]] = [
    {"killmail_id": 5, "killmail_hash": "abc"},
    {"killmail_id": 5, "hash": "abc"},
    {"killmail_id": 5, "killmail_time": "2024-10-22T10:30:00Z", "killmail_hash": None, "source": "mine"},
    {"killmail_id": 1, "zkb": {"hash": "abc", "totalValue": 1.5}},
    {"killmail_id": 1, "zkb": None},
]
"""Entries of killmail lists, which refer to killmails without containing their data."""


@pytest.mark.parametrize(("around", "prefix"), [(lambda data: data, ""), (wrapped, "/data")], ids=["bare", "wrapped"])
@pytest.mark.parametrize(
    ("placeholder", "pointer", "schema"),
    [
        *((packaged(empty), "/package", REDISQ_SCHEMA) for empty in [*EMPTY, {"killID": None, "killmail": None}]),
        *(({**packaged(None), **data}, "/package", REDISQ_SCHEMA) for data, _, _ in WITHOUT),
        *WITHOUT,
        ({"killmail": None}, "/killmail", REDISQ_SCHEMA),
        ({"esi": None}, "/esi", R2Z2_SCHEMA),
        *((reference, "", ESI_SCHEMA) for reference in REFERENCES),
        *((packaged(reference), "/package/killmail", REDISQ_SCHEMA) for reference in REFERENCES),
        *((packaged(data), f"/package{pointer}", schema) for data, pointer, schema in WITHOUT),
        (packaged({"killmail_id": 1}), "/package/killmail", REDISQ_SCHEMA),
        (packaged({"more": 1}), "/package/killmail", REDISQ_SCHEMA),
        *((packaged(packaged(inner)), "/package/killmail", REDISQ_SCHEMA) for inner in (ESI, redisq(ESI), r2z2(ESI))),
    ],
    ids=str,
)
def test_placeholder_is_rejected_and_points_to_the_place_of_the_killmail(
    placeholder: object,
    pointer: str,
    schema: str,
    around: Callable[[object], object],
    prefix: str,
) -> None:
    outcome = rejected(around(placeholder))
    assert (outcome.reason, outcome.pointer, outcome.schema) == (Reason.PLACEHOLDER, prefix + pointer, schema)
    assert outcome.detail


@pytest.mark.parametrize(
    ("placeholder", "words"),
    [
        (packaged(None), "an empty RedisQ package: "),
        (packaged({"killID": 1, "zkb": {}}), "a RedisQ package without its killmail: "),
        ({"killID": 1, "killmail": None}, "a RedisQ package without its killmail: "),
        *(
            (reference, "only a reference to a killmail: fetch the killmail from ESI and publish it")
            for reference in REFERENCES
        ),
        (dict.fromkeys(r2z2(ESI)), "an R2Z2 document without its killmail: esi is empty or missing"),
    ],
)
def test_rejection_of_a_placeholder_names_the_missing_part(placeholder: object, words: str) -> None:
    assert rejected(placeholder).detail.startswith(words)


@pytest.mark.parametrize("reference", REFERENCES, ids=str)
@pytest.mark.parametrize(
    "member", ["victim", "attackers", "solar_system_id", "system_id", "ship_type_id", "attacker_count"]
)
def test_reference_with_a_part_of_a_killmail_is_an_incomplete_killmail(reference: dict[str, Any], member: str) -> None:
    outcome = rejected({**reference, member: 1})
    assert (outcome.reason, outcome.schema) == (Reason.SCHEMA_VIOLATION, ESI_SCHEMA)


def test_placeholder_is_the_only_problem_of_its_event() -> None:
    event = Event(b'{"package":null}', None, "killmail", None)
    assert PIPELINE.problems(event) == [PIPELINE.process(event, NOW_MS)]


# Killmails whose time is a text


@pytest.mark.parametrize(
    ("timestamp_ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1, "1970-01-01T00:00:00.001Z"),
        (999, "1970-01-01T00:00:00.999Z"),
        (1000, "1970-01-01T00:00:01.000Z"),
        (1704067199999, "2023-12-31T23:59:59.999Z"),
        (1704067200000, "2024-01-01T00:00:00.000Z"),
        (1709164800010, "2024-02-29T00:00:00.010Z"),
        (1729593000000, "2024-10-22T10:30:00.000Z"),
        (4102444799999, "2099-12-31T23:59:59.999Z"),
        (253402300799999, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_date_time_has_three_digits_of_milliseconds_and_ends_in_z(timestamp_ms: int, text: str) -> None:
    assert date_time(timestamp_ms) == text


@given(timestamp_ms=st.integers(0, 253402300799999))
def test_date_time_of_any_time_is_valid_and_equal(timestamp_ms: int) -> None:
    text = date_time(timestamp_ms)
    since = datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)
    assert since == timedelta(milliseconds=timestamp_ms)
    assert data_of({**EXAMPLE, "timestamp": text})["timestamp"] == text


# Real killmails

COLLECTED: list[Any] = (
    [pytest.param(entry, id=entry["file"]) for entry in json.loads(CORPUS_INDEX.read_text())]
    if CORPUS_INDEX.is_file()
    else [pytest.param({}, marks=pytest.mark.skip("there is no collection of real killmails next to this checkout"))]
)


@pytest.mark.parametrize("entry", COLLECTED)
def test_real_killmail_becomes_the_data_of_its_source_and_of_the_index(entry: dict[str, Any]) -> None:
    body = (CORPUS / entry["file"]).read_bytes()
    outcome = PIPELINE.process(Event(body, None, "killmail", None), NOW_MS)
    assert isinstance(outcome, Accepted), outcome
    data = json.loads(outcome.payload)["data"]

    document = json.loads(body)
    raw = document.get("esi") or document.get("killmail") or document
    victim = raw["victim"]
    expected = {
        "killmailId": raw["killmail_id"],
        "timestamp": NOW,
        **{ours: victim[theirs] for ours, theirs in VICTIM if theirs in victim},
        "systemId": raw["solar_system_id"],
        "shipTypeId": victim["ship_type_id"],
        "attackerCount": len(raw["attackers"]),
        "killmailTime": raw["killmail_time"],
    }
    assert data == expected
    assert list(data) == list(expected)
    assert {ours: data.get(ours) for ours in INDEXED} == {ours: entry[theirs] for ours, theirs in INDEXED.items()}
    assert {ours for ours, theirs in INDEXED.items() if entry[theirs] is None} == INDEXED.keys() - data.keys()
    assert outcome.identity == ("killmail", entry["killmail_id"])
