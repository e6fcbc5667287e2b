"""The schema files, which define the update types and the data of each type.

Each update type has one file: for example, `statistics.json` describes the data of updates of the type `statistics`. A
schema file that does not describe an update type has an `x-role`. The role `form` describes a source format that the
bridge converts to updates. The role `envelope` describes the envelope of updates, and `message` describes one of the
bridge's own messages. The role `response` describes the body of a response. A file with the role `definitions` contains
definitions that other files use. The validators are compiled only once, when the catalog is loaded.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jsonschema_rs
import orjson
from jsonschema_rs import ValidationErrorKind as Kind

from bridge.contract import filterable, schema_lint
from bridge.contract.keywords import REFERENCES
from bridge.contract.schema_errors import absent_id, describe_error
from bridge.contract.schema_lint import IDENTITY, ROLE, SchemaWarning
from bridge.contract.text import json_pointer, printable, unescape
from bridge.contract.violations import describe

PACKAGED = next(
    folder
    for folder in (Path(__file__).parents[1] / "schemas", Path(__file__).parents[2] / "schemas")
    if folder.is_dir()
)
"""The folder of the bridge's schema files.

The folder is inside the package if the package is installed, or next to the package in a checkout.
"""

DRAFT = "https://json-schema.org/draft/2020-12/schema"

ROLES = (None, "definitions")
PACKAGED_ROLES = (*ROLES, "form", "envelope", "message", "response")
"""The roles that packaged schema files can have.

An operator's file can only have a role from ROLES, because all other roles need code in the bridge.
"""

LONGEST_IDENTITY = 200
"""The maximum length of an identity in characters. An identity that is longer than this is replaced by its digest."""

EXACT = 2**53
"""Below this bound, a floating point number represents a published integer exactly."""

Identity = tuple[str, str | float]
"""The update type, and the value of the member that identifies an update of that type."""


class SchemaError(ValueError):
    """A schema file can't be used. The error's text names the file and the problem."""


@dataclass(frozen=True, slots=True)
class SchemaViolation:
    """A violation of a schema: its place in the data, and its description."""

    pointer: str
    """A JSON Pointer into the data. For a missing member, the pointer names the place where the member should be. The
    pointer is printable and of limited length, because it may contain names from a publisher."""
    detail: str
    """One sentence with the actual and the expected value. The sentence is printable and of limited length."""


NO_TYPES = frozenset({None, "", "binary"})
"""Values of a message's `type` property that are not the name of an update type.

RabbitMQ 3.10 sets the type `binary` if a message was sent as bytes over AMQP 1.0.
"""

_RESERVED = frozenset({"resume", "gap", "heartbeat", "close", "error"})


def is_reserved(name: str) -> bool:
    """Whether a type is reserved for the bridge's messages.

    Events and an operator's schema files can't have a reserved type. Names that differ from a reserved name only in
    case or in surrounding spaces are reserved too, because people confuse such names.
    """
    name = name.strip().lower()
    return name in _RESERVED or name.startswith("bridge.")


@dataclass(frozen=True, slots=True)
class Schema:
    """A compiled schema file, for example for an update type or for a source format."""

    name: str
    schema_id: str
    validator: jsonschema_rs.Draft202012Validator
    identity: str | None
    """The top-level member that identifies an update (the schema's `x-identity`), or None."""
    names: frozenset[str] = frozenset()
    """The names of all members in the schema and in the schemas that it refers to, at any depth."""

    def violation(self, data: object) -> SchemaViolation | None:
        """Returns the first violation in the data, or None. The check is fast for valid data."""
        if self.validator.is_valid(data):
            return None
        try:
            # `validate` finds only the first error. `iter_errors` would take 20 seconds if the body had a million
            # errors.
            self.validator.validate(data)
        except jsonschema_rs.ValidationError as error:
            return _violation(error, self.names)
        raise AssertionError("the validator contradicts itself")

    def violations(self, data: object) -> Iterator[SchemaViolation]:
        """Yields all violations in the data.

        If there are many violations, this method is slow, so only the commands call it.
        """
        seen: set[SchemaViolation] = set()
        for error in self.validator.iter_errors(data):
            violation = _violation(error, self.names)
            # An invalid date-time violates both the format and the pattern of its member, but is reported only once.
            if violation not in seen:
                seen.add(violation)
                yield violation

    def identity_of(self, data: object) -> Identity | None:
        """Returns the identity of an update, or None if the schema names no identifying member or the data lacks it."""
        if self.identity is None or not isinstance(data, dict):
            return None
        value = data.get(self.identity)
        if isinstance(value, str):
            return self.name, value if len(value) <= LONGEST_IDENTITY else hashlib.sha256(value.encode()).hexdigest()
        # A boolean is not an identity, because in Python, `True` equals 1. Above EXACT, two different published numbers
        # may become the same floating point number.
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return (self.name, value) if isinstance(value, int) or abs(value) < EXACT else None


@dataclass(frozen=True, slots=True)
class Catalog:
    """All update types and source formats by name, and the schema files that clients can download."""

    types: Mapping[str, Schema]
    source_formats: Mapping[str, Schema]
    documents: Mapping[str, bytes]
    """The unchanged content of each schema file, by the file's name."""
    messages: Mapping[str, Schema] = field(default_factory=dict)
    """The schemas of the bridge's own messages, by type.

    An event can't have the type of one of the bridge's own messages.
    """
    filterable: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The members of updates that a client can filter by, each with its scalar types (such as `integer` and `null`)."""
    declared: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The top-level members that each schema declares, by the schema's `$id`."""
    warnings: tuple[SchemaWarning, ...] = ()
    """The probable mistakes in the folders. The schema files are usable in spite of these mistakes."""


def load(folders: Sequence[Path]) -> Catalog:
    """Reads every `*.json` file of all folders, and compiles the update types.

    Raises SchemaError for the first file that can't be read, that is not a valid schema of draft 2020-12, or that has a
    reserved or duplicate name.
    """
    documents: dict[str, bytes] = {}
    schemas: dict[str, dict[str, Any]] = {}
    shown: dict[str, str] = {}
    warnings: list[SchemaWarning] = []
    for folder in folders:
        files, skipped = _files(folder)
        warnings += skipped
        if not files:
            skipped = skipped or _alone(folder)
            found = "".join(f"; {warning}" for warning in skipped[:3])
            raise SchemaError(f"{_shown(folder)}: the folder has no schema files (*.json){found}")
        for file in files:
            if file.stem in NO_TYPES:
                raise SchemaError(
                    f"{_shown(file)}: {file.stem!r} can't be a type: RabbitMQ 3.10 sets it on bytes sent by AMQP 1.0; "
                    "rename the file"
                )
            if is_reserved(file.stem) and folder != PACKAGED:
                raise SchemaError(
                    f"{_shown(file)}: the type {file.stem!r} is reserved for the bridge's own messages; rename the file"
                )
            if file.name in documents:
                packaged = shown[file.stem] == _shown(PACKAGED / file.name)
                taken = (
                    f"{file.stem} is one of the bridge's own schemas"
                    if packaged
                    else f"{shown[file.stem]} has the same name"
                )
                raise SchemaError(f"{_shown(file)}: {taken}; rename the file")
            documents[file.name], schemas[file.stem] = _read(file)
            shown[file.stem] = _shown(file)
    registry = _registry(schemas, shown)
    ids = {name: schema["$id"] for name, schema in schemas.items()}
    compiled = {
        name: _compile(name, shown[name], schema, registry, ids, _names(schema, schemas))
        for name, schema in schemas.items()
    }

    def of(role: str | None) -> dict[str, Schema]:
        return {name: schema for name, schema in compiled.items() if schemas[name].get(ROLE) == role}

    types = of(None)
    declared = {name: filterable.declared(schema, registry.resolver(schema["$id"])) for name, schema in schemas.items()}
    for name, schema in schemas.items():
        unusual = schema_lint.unusual_name(name) if name in types else None
        if unusual is not None:
            warnings.append(SchemaWarning(shown[name], "", unusual))
        problems = schema_lint.lint(schema, declared[name] if name in types else None)
        warnings += (SchemaWarning(shown[name], *problem) for problem in problems)
    found_filterable = filterable.filterable(
        {schema.schema_id: schemas[name] for name, schema in types.items()}, registry
    )
    names = {schemas[name]["$id"]: frozenset(found) for name, found in declared.items()}
    return Catalog(types, of("form"), documents, of("message"), found_filterable, names, tuple(warnings))


def _files(folder: Path) -> tuple[list[Path], list[SchemaWarning]]:
    """Returns the schema files of a folder, and warnings about similar files that are not read."""
    files: list[Path] = []
    skipped: list[SchemaWarning] = []
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise SchemaError(f"{_shown(folder)}: can't be read: {error.strerror}") from error
    for entry in entries:
        reason = schema_lint.not_read(entry.name)
        if reason is None and entry.name.endswith(".json"):
            files.append(entry)
        elif reason is None and folder != PACKAGED and not entry.name.startswith(".") and any(entry.glob("*.json")):
            reason = "not read: subfolders are not searched; move the schema files up"
        if reason is not None:
            skipped.append(SchemaWarning(_shown(entry), "", reason))
    return files, skipped


def _alone(folder: Path) -> list[SchemaWarning]:
    """In a folder without schema files, returns a warning for each file that may be intended as a schema file."""
    reasons = {entry: schema_lint.not_read(entry.name, alone=True) for entry in sorted(folder.iterdir())}
    return [SchemaWarning(_shown(entry), "", reason) for entry, reason in reasons.items() if reason is not None]


def _shown(path: Path) -> str:
    return printable(str(path))


def schema_id(name: str) -> str:
    """Returns the `$id` of a schema file that does not declare an `$id` itself."""
    return f"urn:edk-bridge:schema:{quote(name, safe='', errors='surrogateescape')}"


def _violation(error: jsonschema_rs.ValidationError, names: frozenset[str]) -> SchemaViolation:
    path: list[str | int] = list(error.instance_path)
    if isinstance(error.kind, Kind.Required):
        path.append(error.kind.property)
    return SchemaViolation(printable(json_pointer(path)), describe(error, names))


def _read(file: Path) -> tuple[bytes, dict[str, Any]]:
    try:
        content = file.read_bytes()
        schema = orjson.loads(content)
    except (OSError, orjson.JSONDecodeError) as error:
        raise SchemaError(f"{_shown(file)}: can't be read as JSON: {error}") from error
    if not isinstance(schema, dict):
        raise SchemaError(f"{_shown(file)}: a schema file must contain a JSON object")
    if str(schema.get("$schema", DRAFT)).removesuffix("#") != DRAFT:
        raise SchemaError(f"{_shown(file)}: $schema must be {DRAFT} or absent; got {schema['$schema']!r}")
    roles = PACKAGED_ROLES if file.parent == PACKAGED else ROLES
    if schema.get(ROLE) not in roles:
        raise SchemaError(f"{_shown(file)}: x-role must be definitions or absent; got {schema[ROLE]!r}")
    schema.setdefault("$id", schema_id(file.stem))
    return content, schema


def _registry(schemas: Mapping[str, dict[str, Any]], shown: Mapping[str, str]) -> jsonschema_rs.Registry:
    """Returns a registry of all schemas by their `$id`, so that a file can refer to another file."""
    owners: dict[str, str] = {}
    for name, schema in schemas.items():
        identifier = schema["$id"]
        if not isinstance(identifier, str):
            raise SchemaError(f"{shown[name]}: $id must be a URI; got {identifier!r}")
        for each in {identifier, *_strings(schema, "$id")}:
            if owners.setdefault(each, name) != name:
                raise SchemaError(f"{shown[name]}: {shown[owners[each]]} has the same $id {each!r}; change one of them")
    try:
        return _register(schemas)
    except (ValueError, TypeError) as error:
        words = describe_error(error, {name: schema["$id"] for name, schema in schemas.items()})
        culprit = _unusable(schemas, absent_id(str(error)))
        where = "several schema files" if culprit is None else shown[culprit]
        raise SchemaError(f"{where}: not a usable JSON Schema: {words}") from error


def _unusable(schemas: Mapping[str, dict[str, Any]], absent: str | None) -> str | None:
    """Returns the only schema that the library can't use, or None if there are several.

    This function is needed because the library's error does not name the schema. If the problem is an `$id` that no
    schema has, the result is a schema that refers to this `$id`. Otherwise, the result is the schema whose removal
    makes all other schemas usable.
    """
    for name, schema in schemas.items():
        references = (each.partition("#")[0] for each in _strings(schema, *REFERENCES))
        if absent is not None and any(each and absent.endswith(each) for each in references):
            return name
    for name in schemas:
        if _usable({other: schema for other, schema in schemas.items() if other != name}):
            return name
    return None


def _strings(value: object, *keywords: str) -> Iterator[str]:
    """Yields every string that is the value of one of the keywords, at any depth."""
    return (part[each] for part in _objects(value) for each in keywords if isinstance(part.get(each), str))


def _objects(value: object) -> Iterator[dict[str, Any]]:
    """Yields every JSON object in a schema."""
    # This loop replaces recursion, because the nesting of a schema may exceed Python's recursion limit.
    rest = [value]
    while rest:
        part = rest.pop()
        if isinstance(part, dict):
            yield part
            rest += part.values()
        elif isinstance(part, list):
            rest += part


def _names(schema: dict[str, Any], schemas: Mapping[str, dict[str, Any]]) -> frozenset[str]:
    """Returns the names of all members in a schema, and in the files to which the schema refers by their `$id`."""
    files = {other["$id"]: other for other in schemas.values()}
    names: set[str] = set()
    rest = [schema]
    while rest:
        for part in _objects(rest.pop()):
            members = part.get("properties")
            if isinstance(members, dict):
                names.update(members)
            reference = part.get("$ref")
            if isinstance(reference, str) and (file := files.pop(reference.partition("#")[0], None)) is not None:
                rest.append(file)
    return frozenset(names)


def _register(schemas: Mapping[str, dict[str, Any]]) -> jsonschema_rs.Registry:
    return jsonschema_rs.Registry([(schema["$id"], schema) for schema in schemas.values()])


def _usable(schemas: Mapping[str, dict[str, Any]]) -> bool:
    try:
        _register(schemas)
    except (ValueError, TypeError):
        return False
    return True


def _compile(
    name: str,
    shown: str,
    schema: dict[str, Any],
    registry: jsonschema_rs.Registry,
    ids: Mapping[str, str],
    names: frozenset[str],
) -> Schema:
    try:
        validator = jsonschema_rs.Draft202012Validator(
            schema, registry=registry, validate_formats=True, ignore_unknown_formats=False
        )
    except (ValueError, TypeError) as error:
        words = describe_error(error, ids)
        raise SchemaError(f"{shown}: not a usable JSON Schema (draft 2020-12): {words}") from error
    identity = schema.get(IDENTITY)
    if identity is not None and not (
        isinstance(identity, str) and identity.startswith("/") and "/" not in identity[1:] and len(identity) > 1
    ):
        raise SchemaError(f"{shown}: x-identity must name a top-level member, such as /killmailId; got {identity!r}")
    return Schema(name, schema["$id"], validator, None if identity is None else unescape(identity[1:]), names)
