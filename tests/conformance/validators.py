"""Two validators that must agree: jsonschema-rs, which the bridge uses, and Ajv, which many clients use.

A case is the name of a schema and a JSON text. A result has the JSON Pointers of all violations, and is empty if the
text is valid. Each validator uses a parser of its own language: orjson in Python, and JSON.parse in JavaScript.
"""

import subprocess
from collections.abc import Sequence

import jsonschema_rs
import orjson

from bridge.contract.catalog import PACKAGED
from bridge.contract.text import json_pointer
from tests.support.prepare import NODE

Case = tuple[str, bytes]
Result = frozenset[str]

SCHEMAS = {file.stem: orjson.loads(file.read_bytes()) for file in sorted(PACKAGED.glob("*.json"))}
"""All schema files by name, including those that the bridge does not use for validation."""

_REGISTRY = jsonschema_rs.Registry([(schema["$id"], schema) for schema in SCHEMAS.values()])
_VALIDATORS = {
    name: jsonschema_rs.Draft202012Validator(schema, registry=_REGISTRY, validate_formats=True)
    for name, schema in SCHEMAS.items()
}


def jsonschema(cases: Sequence[Case]) -> list[Result]:
    """Validates the cases with jsonschema-rs."""
    return [frozenset(map(_pointer, _VALIDATORS[schema].iter_errors(orjson.loads(text)))) for schema, text in cases]


def _pointer(error: jsonschema_rs.ValidationError) -> str:
    path: list[str | int] = list(error.instance_path)
    kind = error.kind
    if isinstance(kind, jsonschema_rs.ValidationErrorKind.Required):
        path.append(str(kind.property))
    return json_pointer(path)


def ajv(node: str, cases: Sequence[Case]) -> list[Result]:
    """Validates the cases with Ajv, in one process of the command `node`."""
    lines = b"".join(orjson.dumps({"schema": schema, "text": text.decode()}) + b"\n" for schema, text in cases)
    answer = subprocess.run(
        [node, "ajv.mjs", str(PACKAGED.resolve())], cwd=NODE, input=lines, stdout=subprocess.PIPE, check=True
    ).stdout
    results = [frozenset[str](orjson.loads(line)) for line in answer.splitlines()]
    assert len(results) == len(cases)
    return results
