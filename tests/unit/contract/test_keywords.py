"""Tests of the places of subschemas in a schema, and of the keywords."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pytest

from bridge.contract import catalog
from bridge.contract.keywords import KEYWORDS, subschemas

if TYPE_CHECKING:
    from pathlib import Path


def test_subschemas_are_found_by_keyword_by_name_and_in_lists() -> None:
    schema = {
        "not": {"type": "null"},
        "properties": {"a": True, "not": {"minimum": 1}},
        "anyOf": [{}, False],
        "const": {"not": {}},
        "examples": [{"properties": {"b": {}}}],
    }
    assert list(subschemas(schema)) == [
        (("not",), {"type": "null"}),
        (("properties", "a"), True),
        (("properties", "not"), {"minimum": 1}),
        (("anyOf", 0), {}),
        (("anyOf", 1), False),
    ]


@pytest.mark.parametrize("file", sorted(catalog.PACKAGED.glob("*.json")), ids=lambda file: file.stem)
def test_packaged_schema_has_only_keywords_and_extensions(file: Path) -> None:
    schema = orjson.loads(file.read_bytes())
    assert {keyword for keyword in schema if not keyword.startswith("x-")} <= KEYWORDS
