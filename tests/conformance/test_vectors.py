"""The bridge's pipeline agrees with every vector of `schemas/vectors`, and the vectors cover all schemas."""

import re
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from bridge.contract import catalog
from bridge.contract.envelope import date_time
from bridge.contract.pipeline import Accepted, Pipeline, Reason, Rejected
from tests.conformance import validators, vectors
from tests.conformance.validators import SCHEMAS
from tests.conformance.vectors import EVENTS, Vector, resolve, steps

NOW_MS = 1697962000000
PIPELINE = Pipeline(catalog.load([catalog.PACKAGED]), 4 * 2**20)
SOURCE_FORMATS = {name for name, schema in SCHEMAS.items() if schema.get("x-role") == "form"}
ALL = vectors.everything()
PUBLISHED = [vector for vector in ALL if vector.published]


# The bridge's result


@pytest.mark.parametrize("vector", [vector for vector in PUBLISHED if vector.valid], ids=str)
def test_valid_event_becomes_the_update(vector: Vector) -> None:
    outcome = PIPELINE.process(vector.event, NOW_MS)
    assert isinstance(outcome, Accepted), outcome
    update = orjson.loads(outcome.payload)
    assert outcome.type == update["type"] == vector.members.get("type", vector.type)
    assert update["timestamp"] == NOW_MS
    data, expected = update["data"], vector.members.get("data", vector.members.get("value"))
    if vector.schema in SOURCE_FORMATS:
        assert validators.jsonschema([("killmail", orjson.dumps(data))]) == [frozenset()]
        assert data.pop("timestamp") == date_time(NOW_MS)
    assert data == expected
    assert _kinds(data) == _kinds(expected)


def _kinds(value: Any) -> Any:
    """Returns the types of all values.

    The types of 1 and true differ, although Python treats 1 and true as equal; the types of 1 and 1.0 do not differ.
    """
    if isinstance(value, dict):
        return {name: _kinds(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return list(map(_kinds, value))
    return float if type(value) is int else type(value)


@pytest.mark.parametrize("vector", [vector for vector in PUBLISHED if not vector.valid], ids=str)
def test_invalid_event_is_rejected_with_reason_and_pointer(vector: Vector) -> None:
    outcome = PIPELINE.process(vector.event, NOW_MS)
    assert isinstance(outcome, Rejected), outcome
    assert outcome.reason == vector.members["reason"], outcome
    assert outcome.schema == ("" if vector.schema is None else SCHEMAS[vector.schema]["$id"])
    problems = {problem.pointer for problem in PIPELINE.problems(vector.event)}
    assert outcome.pointer in problems
    if vector.pointer is None:
        assert len(problems) > 1
    else:
        assert problems == {vector.pointer}


def test_schema_alone_agrees_with_every_vector() -> None:
    cases = [(vector, vector.validated) for vector in ALL if vector.validated is not None]
    results = validators.jsonschema([case for _, case in cases])
    assert [vector for (vector, _), result in zip(cases, results, strict=True) if not vector.agrees(result)] == []


# The format of the files


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_each_schema_has_vectors(name: str) -> None:
    content, its = vectors.load(name)
    assert content["schema"] == name
    role = SCHEMAS[name].get("x-role")
    assert content.get("type") == {None: name, "form": SCHEMAS[name].get("x-form-of")}.get(role)
    assert {vector.valid for vector in its} == {True, False}


def test_each_file_of_vectors_has_a_schema() -> None:
    assert {file.stem for file in vectors.FOLDER.iterdir()} == {*SCHEMAS, EVENTS}


def test_each_reason_that_a_body_can_cause_has_a_vector() -> None:
    reasons = {vector.members["reason"] for vector in PUBLISHED if not vector.valid}
    assert reasons == set(Reason) - {Reason.TOO_LARGE, Reason.INTERNAL_ERROR}


@pytest.mark.parametrize("file", sorted({vector.file for vector in ALL}))
def test_names_are_unique_in_their_file(file: str) -> None:
    names = [vector.name for vector in ALL if vector.file == file]
    assert len(names) == len(set(names))


def test_each_vector_has_the_documented_members() -> None:
    assert [vector for vector in ALL if not _well_formed(vector)] == []


def _well_formed(vector: Vector) -> bool:
    has = set(vector.members)
    need = {"name", "valid"}
    if vector.file != EVENTS:
        need |= {"value"}
        if not vector.valid:
            need |= {"pointer", "reason"} if vector.published else {"pointer"}
        elif vector.schema in SOURCE_FORMATS:
            need |= {"data"}
        return has == need
    bodies = {"event", "body", "base64"} & has
    properties = set(vector.members.get("properties", {}))
    need |= bodies
    may = {"default", "properties"}
    if vector.valid:
        need |= {"type", "data", "schema", "at"}
    elif "schema" in has:
        need |= {"reason", "schema", "at"}
        may |= {"pointer"}
    else:
        need |= {"reason", "pointer"}
    return len(bodies) == 1 and properties <= {"type", "content_encoding"} and need <= has <= need | may


# Coverage of the schemas


def _members(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yields all members and items that the schema file itself describes."""
    for name, inner in schema.get("properties", {}).items():
        yield (*path, name), inner
        yield from _members(inner, (*path, name))
    if "items" in schema:
        yield (*path, "*"), schema["items"]
        yield from _members(schema["items"], (*path, "*"))


def _required(schema: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for path, inner in [((), schema), *_members(schema)]:
        for name in inner.get("required", []):
            yield (*path, name)


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_each_required_member_is_missing_in_a_vector(name: str) -> None:
    without = [vector.pointer for vector in vectors.load(name)[1] if vector.pointer and not _has_value(vector)]
    assert [path for path in _required(SCHEMAS[name]) if not any(_at(path, pointer) for pointer in without)] == []


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_each_member_is_invalid_in_a_vector(name: str) -> None:
    wrong = [vector.pointer for vector in vectors.load(name)[1] if vector.pointer and _has_value(vector)]
    constrained = [path for path, inner in _members(SCHEMAS[name]) if {"type", "$ref"} & inner.keys()]
    assert [path for path in constrained if not any(_at(path, pointer) for pointer in wrong)] == []


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_each_member_is_present_in_a_valid_vector(name: str) -> None:
    values = [vector.members["value"] for vector in vectors.load(name)[1] if vector.valid]
    assert [path for path, _ in _members(SCHEMAS[name]) if not any(_has_member(value, path) for value in values)] == []


def _at(path: tuple[str, ...], pointer: str) -> bool:
    return tuple("*" if step.isdecimal() else step for step in steps(pointer)) == path


def _has_member(value: Any, path: tuple[str, ...]) -> bool:
    """Whether the value has the member at the path."""
    return _resolves(value, "".join(f"/{'0' if step == '*' else step}" for step in path))


def _has_value(vector: Vector) -> bool:
    """Whether the value has a part at the vector's pointer."""
    return _resolves(vector.members["value"], str(vector.pointer))


def _resolves(value: Any, pointer: str) -> bool:
    try:
        resolve(value, pointer)
    except (LookupError, TypeError):
        return False
    return True


# The limits in the schemas. Some limits are so large that a file of vectors can't test them.


def _limits() -> Iterator[tuple[str, tuple[str, ...], str, int]]:
    for name, schema in SCHEMAS.items():
        for path, inner in _members(schema):
            for keyword in ("maxLength", "maxItems"):
                if keyword in inner:
                    yield name, path, keyword, inner[keyword]


@pytest.mark.parametrize(("name", "path", "keyword", "limit"), list(_limits()), ids=str)
def test_value_at_the_limit_is_valid_and_above_it_invalid(
    name: str, path: tuple[str, ...], keyword: str, limit: int
) -> None:
    (member,) = path
    schema = SCHEMAS[name]["properties"][member]
    value = next(
        vector.members["value"]
        for vector in vectors.load(name)[1]
        if vector.valid and vector.members["value"].get(member)
    )

    def long(length: int) -> Any:
        if keyword == "maxItems":
            return value[member][:1] * length
        if re.search(schema.get("pattern", ""), "🚀" * length):
            return "🚀" * length
        return str(value[member]).ljust(length, "a")

    cases = [(name, orjson.dumps({**value, member: long(length)})) for length in (limit, limit + 1)]
    assert validators.jsonschema(cases) == [frozenset(), frozenset({f"/{member}"})]
