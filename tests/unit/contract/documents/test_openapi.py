"""Tests of the OpenAPI document for schema files and a deployment. A validator of OpenAPI checks each document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jsonschema_rs
import orjson
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing.exceptions import Unresolvable

from bridge.config.paths import NAMED
from bridge.contract import catalog
from bridge.contract.documents import openapi
from bridge.contract.documents.deployment import Deployment
from bridge.server.router import DEFAULT_LIMIT, PREFLIGHT
from tests.unit.contract.documents.test_asyncapi import references, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

PACKAGED = catalog.load([catalog.PACKAGED])


def document(
    documents: Mapping[str, bytes] = PACKAGED.documents,
    *,
    secure: bool = False,
    filterable: Mapping[str, frozenset[str]] = PACKAGED.filterable,
) -> Any:
    """Returns a document, which must be valid."""
    deployment = Deployment(
        host="localhost:3001", secure=secure, path="/kills", exchanges={"killmails": "killmail"}, reject_exchange=None
    )
    content = openapi.document(documents, filterable, deployment)
    assert content.endswith(b"}\n")
    made = orjson.loads(content)
    assert problems(made) == []
    return made


def problems(made: Any) -> list[str]:
    """Returns the validator's messages about a document."""
    try:
        return [error.message for error in OpenAPIV31SpecValidator(made).iter_errors()]
    except Unresolvable as error:
        return [str(error)]


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("info", {"title": "no version"}),
        ("paths./kills.get.parameters", [{"name": "a", "in": "body"}]),
        ("paths./kills.get.responses.200.content.application/json.schema", {"$ref": "#/components/schemas/nothing"}),
        ("components.schemas.killmail.type", "integers"),
    ],
)
def test_validator_finds_a_mistake(path: str, wrong: object) -> None:
    made = document()
    *steps, last = path.split(".")
    part = made
    for step in steps:
        part = part[step]
    part[last] = wrong
    assert problems(made) != []


def test_every_reference_has_its_target() -> None:
    made = document()
    found = set(references(made))
    assert len(found) >= 4
    for reference in found:
        assert resolve(made, reference) is not None


def test_document_has_the_version_of_the_contract_and_the_address() -> None:
    made = document()
    assert (made["openapi"], made["info"]["version"]) == ("3.1.1", "1")
    assert made["servers"] == [{"url": "http://localhost:3001"}]
    assert document(secure=True)["servers"] == [{"url": "https://localhost:3001"}]


def test_document_has_every_path() -> None:
    paths = document()["paths"]
    assert set(paths) == {"/kills", "/", *NAMED, "/schemas/{name}"}
    assert {path for path, item in paths.items() if "get" not in item} == set()


def test_operations_have_different_ids() -> None:
    operations = [item[method] for item in document()["paths"].values() for method in item if method != "parameters"]
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids))


def test_query_has_all_parameters() -> None:
    endpoint = document()["paths"]["/kills"]
    asked = {each["name"]: each for each in endpoint["parameters"]}
    names = ["type", "after", "last", "format", "limit", "wait", *PACKAGED.filterable, "Last-Event-ID"]
    assert list(asked) == names
    assert [name for name, each in asked.items() if each["in"] != "query"] == ["Last-Event-ID"]
    assert asked["type"]["schema"]["items"]["enum"] == sorted(PACKAGED.types)
    assert asked["systemId"]["schema"] == {"type": "array", "items": {"type": ["integer", "null"]}}
    repeated = {name for name, each in asked.items() if each.get("explode")}
    assert repeated == {"type", *PACKAGED.filterable}
    assert asked["format"]["schema"]["enum"] == ["sse", "json"]
    assert asked["limit"]["schema"] == {"type": "integer", "minimum": 1, "maximum": 1000, "default": DEFAULT_LIMIT}
    assert asked["wait"]["schema"] == {"type": "integer", "minimum": 0, "maximum": 30, "default": 0}
    assert asked["last"]["schema"] == {"type": "integer", "minimum": 1, "maximum": 1000}


def test_member_with_the_name_of_a_parameter_has_a_prefix() -> None:
    kinds = frozenset({"string"})
    made = document(filterable=dict.fromkeys(("type", "last", "$ref", "x"), kinds))
    names = [each["name"] for each in made["paths"]["/kills"]["parameters"]]
    assert names[-5:] == ["data.type", "data.last", "$ref", "x", "Last-Event-ID"]


def test_endpoint_has_every_status() -> None:
    get = document()["paths"]["/kills"]["get"]["responses"]
    assert set(get) == {"101", "200", "400", "403", "405", "426", "429", "503"}
    assert set(get["200"]["content"]) == {"text/event-stream", "application/json"}
    for status in ("429", "503"):
        assert "Retry-After" in get[status]["headers"]


def test_head_has_the_status_of_get_without_a_body() -> None:
    endpoint = document()["paths"]["/kills"]
    head = endpoint["head"]["responses"]
    assert set(head) == set(endpoint["get"]["responses"]) - {"101"}
    assert [status for status, response in head.items() if "content" in response] == []


def test_options_have_the_headers_of_a_preflight_request() -> None:
    headers = document()["paths"]["/kills"]["options"]["responses"]["204"]["headers"]
    assert set(headers) == {"Access-Control-Allow-Origin", *(name for name, _ in PREFLIGHT)} - {
        "Access-Control-Max-Age"
    }


def test_response_is_described_by_its_schema_and_has_a_valid_example() -> None:
    made = document()
    as_json = made["paths"]["/kills"]["get"]["responses"]["200"]["content"]["application/json"]
    assert as_json["schema"] == {"$ref": "#/components/schemas/updates-response"}
    schema = {**as_json["schema"], "components": made["components"]}
    validator = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
    [example] = as_json["examples"].values()
    assert validator.is_valid(example["value"])
    assert not validator.is_valid({**example["value"], "id": ""})


def test_example_of_an_event_stream_is_one() -> None:
    content = document()["paths"]["/kills"]["get"]["responses"]["200"]["content"]
    lines = content["text/event-stream"]["example"].split("\n")
    assert lines[:2] == [":", "retry: 2500"]
    assert lines[-2:] == ["", ""]
    ids = [line.removeprefix("id: ") for line in lines if line.startswith("id: ")]
    resume, killmail = (orjson.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: "))
    assert (resume["type"], killmail["type"]) == ("resume", "killmail")
    assert ids == [resume["data"]["id"], killmail["id"]]
    assert ids[0] != ids[1]


def test_schemas_are_those_of_the_files() -> None:
    schemas = document()["components"]["schemas"]
    assert set(schemas) == {name.removesuffix(".json") for name in PACKAGED.documents}
    for name, content in PACKAGED.documents.items():
        schema = orjson.loads(content)
        if b"$ref" not in content:
            del schema["$schema"], schema["$id"]
            assert schemas[name.removesuffix(".json")] == schema


def test_reference_to_another_file_names_its_place() -> None:
    schemas = document()["components"]["schemas"]
    assert schemas["r2z2-document"]["properties"]["esi"]["$ref"] == "#/components/schemas/esi-killmail"


def test_schema_files_are_listed() -> None:
    [name] = document()["paths"]["/schemas/{name}"]["parameters"]
    assert name["schema"]["enum"] == sorted(PACKAGED.documents)


def test_document_of_an_operators_schemas_is_valid() -> None:
    """The schema has what tools misread: members named $ref, keywords of OpenAPI, and names that are no keys."""
    own = {
        "$id": "urn:example:own",
        "$defs": {"größe": {"type": "number"}, "inner": {"$id": "urn:example:inner", "$anchor": "here"}},
        "discriminator": {"propertyName": "kind"},
        "xml": 5,
        "externalDocs": "see the wiki",
        "properties": {
            "$ref": {"type": "string"},
            "size": {"$ref": "#/$defs/gr%C3%B6%C3%9Fe"},
            "inner": {"$ref": "urn:example:inner#here"},
            "system": {"$ref": "urn:edk-bridge:schema:killmail#/properties/systemId", "description": "Where."},
            "shape": {"$ref": "https://json-schema.org/draft/2020-12/schema"},
            "pair": {"prefixItems": [{"type": "string"}], "items": False},
        },
        "examples": [{"$ref": "nowhere"}],
    }
    made = document({**PACKAGED.documents, "fleet move.json": orjson.dumps(own), "any.json": b"{}"})
    place = "#/components/schemas/fleet_20_move"
    schema = made["components"]["schemas"]["fleet_20_move"]
    assert schema["properties"] == {
        "size": {"$ref": f"{place}/$defs/gr%C3%B6%C3%9Fe"},
        "inner": {"$ref": f"{place}/$defs/inner"},
        "system": {"$ref": "#/components/schemas/killmail/properties/systemId", "description": "Where."},
        "shape": {"$comment": "see https://json-schema.org/draft/2020-12/schema"},
        "pair": {"prefixItems": [{"type": "string"}], "items": False},
    }
    assert "fleet move" in made["paths"]["/kills"]["parameters"][0]["schema"]["items"]["enum"]


def test_document_without_packaged_schemas_is_valid() -> None:
    made = document({"fleet.json": b"{}"}, filterable={})
    content = made["paths"]["/kills"]["get"]["responses"]["200"]["content"]
    assert content["application/json"] == {"schema": {}}
    assert content["text/event-stream"]["example"] == ":\nretry: 2500\n"
