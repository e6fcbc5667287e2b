"""All schema files have the same style, so that people and programs can rely on this style."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import pytest

from bridge.contract import catalog

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILES = sorted(catalog.PACKAGED.glob("*.json"))
CATALOG = catalog.load([catalog.PACKAGED])
MAX_ID = 2**53 - 1

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.stem))


def members(schema: dict[str, Any], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields every member that a schema describes, at any depth, with its path."""
    for member, inner in schema.get("properties", {}).items():
        yield f"{name}.{member}", inner
        yield from members(inner, f"{name}.{member}")
    if "items" in schema:
        yield f"{name}[]", schema["items"]
        yield from members(schema["items"], f"{name}[]")


@each_file
def test_file_has_its_metadata(file: Path) -> None:
    schema = json.loads(file.read_text())
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == f"urn:edk-bridge:schema:{file.stem}"
    assert schema["title"]
    assert schema["description"].endswith(".")
    assert schema["type"] == "object"
    assert schema.get("x-role") in {None, "envelope", "form", "message", "response"}
    assert ("x-form-of" in schema) == (schema.get("x-role") == "form")


@each_file
def test_every_member_is_described(file: Path) -> None:
    found = list(members(json.loads(file.read_text()), file.stem))
    assert found
    assert [name for name, inner in found if not inner.get("description", "$ref" in inner and ".")] == []


@each_file
def test_every_id_and_count_is_exact_in_every_language(file: Path) -> None:
    for name, inner in members(json.loads(file.read_text()), file.stem):
        if "integer" in inner.get("type", []):
            # RFC 6455, section 7.4.2: the range of close codes.
            assert (inner["minimum"], inner["maximum"]) == ((1000, 4999) if name == "close.code" else (0, MAX_ID)), name


def test_every_opaque_id_has_the_same_pattern() -> None:
    ids = {
        name: inner["pattern"]
        for file in FILES
        for name, inner in members(json.loads(file.read_text()), file.stem)
        if "The id is opaque" in inner.get("description", "")
    }
    assert set(ids.values()) == {"^[A-Za-z0-9-]{1,64}$"}
    assert set(ids) == {
        *("resume.id", "gap.id", "heartbeat.id", "update-with-id.id"),
        *("updates-response.id", "updates-response.updates[].id", "updates-response.gaps[].id"),
    }


@each_file
def test_file_that_clients_receive_needs_no_other_file(file: Path) -> None:
    """A client validates with a single file, which it downloads or copies."""
    schema = json.loads(file.read_text())
    if schema.get("x-role") != "form":
        jsonschema_rs.Draft202012Validator(schema, registry=jsonschema_rs.Registry([]))
        assert "$ref" not in file.read_text()


@pytest.mark.parametrize(("name", "part"), [("update-with-id", "updates"), ("gap", "gaps")])
def test_parts_of_a_response_are_the_messages_with_ids(name: str, part: str) -> None:
    message = json.loads((catalog.PACKAGED / f"{name}.json").read_text())
    items = json.loads((catalog.PACKAGED / "updates-response.json").read_text())["properties"][part]["items"]
    described = {"type", "required", "properties", "additionalProperties"}
    assert set(items) - {"description"} == set(message) & described
    assert {key: items[key] for key in items if key in described} == {
        key: message[key] for key in message if key in described
    }


def test_envelope_with_an_id_is_the_envelope_and_an_id() -> None:
    envelope, with_id = (
        json.loads((catalog.PACKAGED / f"{name}.json").read_text()) for name in ("update", "update-with-id")
    )
    assert with_id["properties"] == {**envelope["properties"], "id": with_id["properties"]["id"]}
    assert with_id["required"] == [*envelope["required"], "id"]


@pytest.mark.parametrize("name", sorted(CATALOG.types))
def test_no_member_of_an_update_is_an_enumeration(name: str) -> None:
    """A new value would break the enumerations that programs generate from a schema."""
    for path, inner in members(json.loads(CATALOG.documents[f"{name}.json"]), name):
        assert not {"enum", "const"} & inner.keys(), path


@each_file
def test_examples_are_valid(file: Path) -> None:
    examples = json.loads(file.read_text())["examples"]
    assert examples
    schema = {**CATALOG.types, **CATALOG.source_formats, **CATALOG.messages}.get(file.stem)
    if schema is not None:
        assert [list(schema.violations(example)) for example in examples] == [[]] * len(examples)


@pytest.mark.parametrize("name", sorted(CATALOG.types))
def test_every_type_has_the_time_when_it_was_sent(name: str) -> None:
    schema = json.loads(CATALOG.documents[f"{name}.json"])
    assert "timestamp" in schema["required"]
    killmail = json.loads(CATALOG.documents["killmail.json"])["properties"]["timestamp"]
    timestamp = schema["properties"]["timestamp"]
    assert (timestamp["format"], timestamp["pattern"]) == (killmail["format"], killmail["pattern"])


def test_every_time_has_the_same_pattern() -> None:
    times = {
        inner["pattern"]
        for file in FILES
        for _, inner in members(json.loads(file.read_text()), file.stem)
        if inner.get("format") == "date-time"
    }
    assert len(times) == 1


def test_examples_for_clients_are_not_served_as_schemas() -> None:
    assert {path.suffix for path in (catalog.PACKAGED / "clients").iterdir()} >= {".js", ".mjs", ".py"}
    assert set(CATALOG.documents) == {file.name for file in FILES}
