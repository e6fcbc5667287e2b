"""Embeds schemas of draft 2020-12 in another document: the AsyncAPI document or the OpenAPI document.

In a schema file, a reference names the `$id` and the anchor of its target. Most tools resolve only references that name
the place of the target in the document, so all references are replaced. In the AsyncAPI document, schemas use a
superset of draft 7. In the OpenAPI document, they use a superset of draft 2020-12. Only keywords of draft 2020-12 and
extensions (`x-...`) are kept, because any other keyword may have a meaning in the superset.
"""

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any
from urllib.parse import quote, unquote, urldefrag, urljoin

from bridge.contract.keywords import ANCHORS, BY_NAME, PLAIN, REFERENCES, Steps, subschemas


class Dialect(Enum):
    """The draft of JSON Schema whose superset a document uses."""

    DRAFT_07 = "draft 7"
    DRAFT_2020_12 = "draft 2020-12"


def embed(schemas: Mapping[str, Mapping[str, Any]], place: str, dialect: Dialect) -> dict[str, dict[str, object]]:
    """Returns the schemas for the document, without `$schema`, `$id` and anchors.

    Each schema needs an `$id`. `place` is the place in the document that contains all schemas, such as
    `#/components/schemas`. A reference to a schema that is not among `schemas` becomes a schema that accepts
    everything.
    """
    embedding = _Embedding(dialect)
    for name, schema in schemas.items():
        embedding.find(schema, schema["$id"], (), f"{place}/{_step(name)}")
    return {name: embedding.converted(schema, schema["$id"]) for name, schema in schemas.items()}


class _Embedding:
    """Converts schemas, once it has found all their parts."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._places: dict[str, str] = {}
        """Maps each URI that a reference may use to the place in the document."""

    def find(self, schema: object, base: str, uris: tuple[str, ...], place: str) -> None:
        """Adds the URIs that a reference may use for `schema` or for one of its subschemas."""
        if isinstance(schema, dict):
            if "$id" in schema:
                base = _base(schema, base)
                uris = (*uris, f"{base}#")
            self._places.update((f"{base}#{schema[anchor]}", place) for anchor in ANCHORS if anchor in schema)
            for old, keyword, within, part in self._parts(schema):
                below = tuple("/".join((uri, *map(_escaped, old))) for uri in uris)
                self.find(part, base, below, "/".join((place, *map(_step, (keyword, *within)))))
        self._places.update((uri, place) for uri in uris)

    def converted(self, schema: Mapping[str, Any], base: str) -> dict[str, object]:
        """Returns the schema for the document. `base` is the base URI of the references in the schema."""
        base = _base(schema, base)
        result: dict[str, Any] = {
            keyword: value
            for keyword, value in schema.items()
            if (keyword in PLAIN or keyword.startswith("x-")) and not _seems_reference(value)
        }
        for _, keyword, within, part in self._parts(schema):
            converted = self.converted(part, base) if isinstance(part, dict) else part
            if not within:
                result[keyword] = converted
            elif isinstance(within[0], str):
                result.setdefault(keyword, {})[within[0]] = converted
            else:
                result.setdefault(keyword, []).append(converted)
        references = [self._reference(schema[keyword], base) for keyword in REFERENCES if keyword in schema]
        # Draft 7 ignores all keywords next to a reference.
        alone = not result or self._dialect is Dialect.DRAFT_2020_12
        if len(references) == 1 and alone and result.keys().isdisjoint(references[0]):
            return {**result, **references[0]}
        if references:
            result.setdefault("allOf", []).extend(references)
        return result

    def _parts(self, schema: Mapping[str, Any]) -> Iterator[tuple[Steps, str, Steps, object]]:
        """Yields each direct subschema with its path, and with its keyword and further path in the document."""
        for steps, part in subschemas(schema):
            keyword, *within = steps
            if keyword in BY_NAME and within == ["$ref"]:
                # A member that has the name $ref is not a reference, but tools would treat it as one and fail.
                continue
            new = str(keyword)
            if self._dialect is Dialect.DRAFT_07:
                if keyword == "$defs":
                    new = "definitions"
                elif keyword == "prefixItems":
                    new = "items"
                elif keyword == "items" and "prefixItems" in schema:
                    new = "additionalItems"
            yield steps, new, tuple(within), part

    def _reference(self, reference: str, base: str) -> dict[str, str]:
        uri, fragment = urldefrag(reference)
        target = f"{urljoin(base, uri) if uri else base}#{unquote(fragment)}"
        return {"$ref": self._places[target]} if target in self._places else {"$comment": f"see {reference}"}


def _base(schema: Mapping[str, Any], base: str) -> str:
    """Returns the base URI of the references within the schema."""
    return urldefrag(urljoin(base, schema["$id"]))[0] if "$id" in schema else base


def _seems_reference(value: object) -> bool:
    """Whether a value, such as an example, contains, at any depth, a member that tools would resolve as a reference."""
    if isinstance(value, dict):
        return isinstance(value.get("$ref"), str) or any(map(_seems_reference, value.values()))
    return isinstance(value, list) and any(map(_seems_reference, value))


def _escaped(step: str | int) -> str:
    return str(step).replace("~", "~0").replace("/", "~1")


def _step(step: str | int) -> str:
    """Returns a step of a JSON Pointer, encoded for a URI fragment."""
    return quote(_escaped(step), safe="~$")
