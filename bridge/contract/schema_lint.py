"""Finds probable mistakes in a folder of schema files, beyond the errors that a validator reports.

The functions take file names, and the content of schemas that compile. The functions read no files.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from bridge.contract.keywords import KEYWORDS, Steps, subschemas
from bridge.contract.similar import similar
from bridge.contract.text import json_pointer, printable, unescape

MOST_PER_FILE = 20
"""The maximum number of warnings for a file. A file with more than `MOST_PER_FILE` mistakes is probably not a JSON
Schema."""

LONGEST_TYPE_BYTES = 255
"""The maximum length of AMQP's `type` property, which is a short string."""

IDENTITY, ROLE = "x-identity", "x-role"

_OWN = (IDENTITY, ROLE)
_EXTENSIONS = frozenset((*_OWN, "x-form-of"))

_REPLACED = {
    "$recursiveAnchor": "$dynamicAnchor",
    "$recursiveRef": "$dynamicRef",
    "additionalItems": "items, with prefixItems",
    "dependencies": "dependentRequired or dependentSchemas",
    "disallow": "not",
    "discriminator": "oneOf, with a const in each branch",
    "divisibleBy": "multipleOf",
    "example": "examples, a list",
    "extends": "allOf",
    "id": "$id",
    "nullable": '"null" in a list of types, as in "type": ["string", "null"]',
    "optional": "required, a list of names",
}
"""Keywords of OpenAPI and of older drafts of JSON Schema, each with its replacement in draft 2020-12."""

_LIKE_A_SCHEMA = re.compile(r"\.(?:json[5c]?|jsonschema|schema|ya?ml|jsn|josn|jso|jason|json\.txt)\s*\Z", re.IGNORECASE)
_COPY = re.compile(r"(?: \(\d+\)| - Copy| copy(?: \d+)?)$|^Copy of ", re.IGNORECASE)

_IDENTIFYING = frozenset(("string", "integer", "number"))


@dataclass(frozen=True, slots=True)
class SchemaWarning:
    """A warning that a file or a part of a schema has no effect, or probably not the intended effect."""

    file: str
    """The name of the file or folder, in printable characters."""
    pointer: str
    """The JSON Pointer to the part that the warning is about, in printable characters, or "" for the whole file."""
    detail: str
    """The warning as one sentence, which is printable and has a bounded length."""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.pointer, self.detail) if part)


def not_read(name: str, *, alone: bool = False) -> str | None:
    """Returns why a file with a name like a schema file's is not read, or None for any other file.

    `alone` is True if the folder has no schema file. In a folder without a schema file, a backup (`event.json.bak`) may
    be the intended file.
    """
    if _LIKE_A_SCHEMA.search(name) is None and not (alone and ".json" in name.lower() and not name.endswith(".json")):
        return None
    if name.startswith("."):
        return "not read: its name begins with a dot, like those of hidden and temporary files; rename it"
    if not name.endswith(".json"):
        return "not read: a schema file contains JSON, and its name ends with .json"
    stem = name.removesuffix(".json")
    try:
        length_bytes = len(stem.encode())
    except UnicodeEncodeError:
        return "not read: its name is not UTF-8, so it can't be an update type; rename the file"
    if not stem.isprintable():
        return (
            "not read: its name has characters that are not printable, so it can't be an update type; rename the file"
        )
    if length_bytes > LONGEST_TYPE_BYTES:
        return f"not read: an update type has at most {LONGEST_TYPE_BYTES} bytes; give the file a shorter name"
    return None


def unusual_name(stem: str) -> str | None:
    """Returns why the name of an update type is probably a mistake, or None if the name looks right."""
    bare = re.sub(r"\.(?:schema|json|jsonschema)$", "", stem.strip(), flags=re.IGNORECASE)
    bare = (_COPY.sub("", bare) or bare).strip()
    if bare == stem:
        return None
    meant = f"; if you mean {bare!r}, rename the file to {bare}.json" if bare else "; rename the file"
    return printable(f"the file's name gives the update type {stem!r}{meant}")


def lint(schema: Mapping[str, Any], declared: Mapping[str, Collection[str]] | None) -> list[tuple[str, str]]:
    """Returns up to `MOST_PER_FILE` parts of a schema that have no effect, each as a JSON Pointer and a sentence.

    `declared` maps each member of an update type's data to its JSON types. `declared` is None if the schema does not
    describe an update type.
    """
    found = list(islice(_found(schema, declared), MOST_PER_FILE + 1))
    if len(found) > MOST_PER_FILE:
        found[MOST_PER_FILE - 1 :] = [("", "the file has more problems of this kind")]
    return [(printable(pointer), printable(detail)) for pointer, detail in found]


def _found(schema: Mapping[str, Any], declared: Mapping[str, Collection[str]] | None) -> Iterator[tuple[str, str]]:
    if schema.get(IDENTITY) is not None and (detail := _identity(schema, declared)) is not None:
        yield json_pointer([IDENTITY]), detail
    # A loop is used instead of recursion, because the nesting of a schema may exceed Python's recursion limit.
    rest: list[tuple[Steps, Any]] = [((), schema)]
    while rest:
        steps, part = rest.pop()
        if not isinstance(part, dict):
            continue
        for keyword in part:
            if (detail := _keyword(keyword, is_top=not steps)) is not None:
                yield json_pointer([*steps, keyword]), detail
        yield from ((json_pointer([*steps, "required", at]), detail) for at, detail in _required(part))
        rest += reversed([((*steps, *more), inner) for more, inner in subschemas(part)])


def _keyword(keyword: str, *, is_top: bool) -> str | None:
    if keyword in KEYWORDS:
        return None
    if keyword in _EXTENSIONS:
        return None if is_top else f"{keyword} has an effect only at the top level of a schema file"
    if keyword in _REPLACED:
        return f"the keyword {keyword!r} has no effect in draft 2020-12; use {_REPLACED[keyword]}"
    if keyword.startswith("x-"):
        close = similar(keyword, _OWN, 0.7)
        return None if close is None else f"the keyword {keyword!r} has no effect; did you mean {close}?"
    close = similar(keyword, (*sorted(KEYWORDS), *_OWN))
    hint = f"did you mean {close}?" if close else "prefix your own keywords with x-"
    return f"the keyword {keyword!r} is unknown and has no effect; {hint}"


def _required(schema: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """Yields each undeclared required name that is probably a misspelling of a declared optional name."""
    required = schema.get("required", [])
    declared = [name for name in schema.get("properties", {}) if name not in required]
    for at, name in enumerate(required):
        if name in schema.get("properties", {}):
            continue
        close = similar(name, declared, 0.85)
        if close is not None:
            yield at, f"the property {name!r} is not declared; did you mean {close!r}?"


def _identity(schema: Mapping[str, Any], declared: Mapping[str, Collection[str]] | None) -> str | None:
    if declared is None:
        return f"{IDENTITY} has an effect only in the schema of an update type"
    name = unescape(schema[IDENTITY][1:])
    if name in declared:
        if _IDENTIFYING.isdisjoint(declared[name]):
            return f"{name!r} is never a string or a number, so it identifies no update"
        return None
    others = (schema.get(keyword) for keyword in ("patternProperties", "additionalProperties", "unevaluatedProperties"))
    if name in schema.get("required", []) or any(isinstance(other, dict) for other in others):
        return None
    close = similar(name, declared)
    hint = f"did you mean {close!r}?" if close else "declare it in properties"
    return f"the schema declares no member {name!r}, so updates are probably not identified; {hint}"
