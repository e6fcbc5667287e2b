"""Converts schemas of draft 2020-12 for the AsyncAPI document, in which schemas use a superset of draft 7.

In draft 2020-12, a reference names the `$id` and the anchor of the target. In the AsyncAPI document, a reference names
the place of the target in the document. Only keywords of draft 2020-12 and extensions (`x-...`) are kept. A keyword
without a meaning in draft 2020-12 may have a meaning in draft 7.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote, urldefrag, urljoin

from bridge.contract.keywords import ANCHORS, BY_NAME, PLAIN, REFERENCES, Steps, subschemas


def convert(schemas: Mapping[str, Mapping[str, Any]], place: str) -> dict[str, dict[str, object]]:
    """Converts schemas to draft 7.

    Each schema needs an `$id`. `place` is the place in the document that contains all schemas, such as
    `#/components/schemas`. A reference to a schema that is not among `schemas` becomes a schema that accepts
    everything.
    """
    places: dict[str, str] = {}
    for name, schema in schemas.items():
        _find(schema, schema["$id"], (), f"{place}/{_step(name)}", places)
    return {name: _converted_object(schema, schema["$id"], places) for name, schema in schemas.items()}


def _find(schema: object, base: str, uris: tuple[str, ...], place: str, places: dict[str, str]) -> None:
    """Maps each URI that a reference may use for `schema` or for one of its subschemas to the place of this schema."""
    if isinstance(schema, dict):
        if "$id" in schema:
            base = _base(schema, base)
            uris = (*uris, f"{base}#")
        places.update((f"{base}#{schema[anchor]}", place) for anchor in ANCHORS if anchor in schema)
        for old, keyword, within, part in _parts(schema):
            below = tuple("/".join((uri, *map(_escaped, old))) for uri in uris)
            _find(part, base, below, "/".join((place, *map(_step, (keyword, *within)))), places)
    places.update((uri, place) for uri in uris)


def _converted(schema: object, base: str, places: Mapping[str, str]) -> object:
    return _converted_object(schema, base, places) if isinstance(schema, dict) else schema


def _converted_object(schema: Mapping[str, Any], base: str, places: Mapping[str, str]) -> dict[str, object]:
    base = _base(schema, base)
    result: dict[str, Any] = {
        keyword: value
        for keyword, value in schema.items()
        if (keyword in PLAIN or keyword.startswith("x-")) and not _seems_reference(value)
    }
    for _, keyword, within, part in _parts(schema):
        converted = _converted(part, base, places)
        if not within:
            result[keyword] = converted
        elif isinstance(within[0], str):
            result.setdefault(keyword, {})[within[0]] = converted
        else:
            result.setdefault(keyword, []).append(converted)
    references = [_reference(schema[keyword], base, places) for keyword in REFERENCES if keyword in schema]
    if len(references) == 1 and not result:
        return {**references[0]}
    if references:
        # Draft 7 ignores all keywords next to a reference.
        result.setdefault("allOf", []).extend(references)
    return result


def _parts(schema: Mapping[str, Any]) -> Iterator[tuple[Steps, str, Steps, object]]:
    """Yields each direct subschema with its path in draft 2020-12, and with its keyword and further path in draft 7."""
    for steps, part in subschemas(schema):
        keyword, *within = steps
        if keyword in BY_NAME and within == ["$ref"]:
            # A member that has the name $ref is not a reference, but tools would treat it as one and fail.
            continue
        new = str(keyword)
        if keyword == "$defs":
            new = "definitions"
        elif keyword == "prefixItems":
            new = "items"
        elif keyword == "items" and "prefixItems" in schema:
            new = "additionalItems"
        yield steps, new, tuple(within), part


def _reference(reference: str, base: str, places: Mapping[str, str]) -> dict[str, str]:
    uri, fragment = urldefrag(reference)
    target = f"{urljoin(base, uri) if uri else base}#{unquote(fragment)}"
    return {"$ref": places[target]} if target in places else {"$comment": f"see {reference}"}


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
