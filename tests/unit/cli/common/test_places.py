"""On which line of a document a JSON Pointer leads."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from bridge.cli.common.places import line_of

DEEP = b"[" * 100_000 + b"]" * 100_000
"""Nested deeper than Python's json, which recurses, can follow."""


class Counting(json.JSONDecoder):
    """Counts how many characters are decoded, over all instances."""

    decoded = 0

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        value, end = super().raw_decode(s, idx)
        Counting.decoded += end - idx
        return value, end


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> type[Counting]:
    monkeypatch.setattr("bridge.cli.common.places.json.JSONDecoder", Counting)
    monkeypatch.setattr(Counting, "decoded", 0)
    return Counting


def test_thousands_of_places_in_one_document_take_no_more_than_a_few_readings(counting: type[Counting]) -> None:
    times = 2000
    body = json.dumps({"attackers": [{"id": number} for number in range(times)]}, indent=1).encode()
    lines = [line_of(body, f"/attackers/{number}/id") for number in range(times)]
    assert all(after - before == 3 for before, after in pairwise(lines))
    assert counting.decoded <= 4 * len(body)


DOCUMENT = b"""{
  "a": {
    "b": [
      10,
      {"c": "}{[\\"",
       "d": 1}, [
      ],
      "last"
    ]
  },
  "x/y": {
    "~": 1,
    "~1": 2
  },
  "": [
    1
  ],
  "twice": {
    "inside": 1
  },
  "twice":
    {
      "inside": 2
    },
  "\\u0061b": 3,
  "01": [1,
         2]
}
"""


@pytest.mark.parametrize(
    ("pointer", "line"),
    [
        ("", 0),
        ("/a", 1),
        ("/a/b", 2),
        ("/a/b/0", 3),
        ("/a/b/1", 4),
        ("/a/b/1/c", 4),
        ("/a/b/1/d", 5),
        ("/a/b/2", 5),
        ("/a/b/3", 7),
        ("/x~1y", 10),
        ("/x~1y/~0", 11),
        ("/x~1y/~01", 12),
        ("/", 14),
        ("//0", 15),
        ("/twice", 21),
        ("/twice/inside", 22),
        ("/ab", 24),
        ("/01/1", 26),
    ],
)
def test_pointer_leads_to_its_line(pointer: str, line: int) -> None:
    assert line_of(DOCUMENT, pointer) == line
    assert line_of(b"\n \n" + DOCUMENT.replace(b"\n", b"\r\n"), pointer) == line + 2


@pytest.mark.parametrize(
    ("pointer", "line"),
    [
        ("/missing", 0),
        ("/a/missing", 1),
        ("/a/b/4", 2),
        ("/a/b/-1", 2),
        ("/a/b/00", 2),
        ("/a/b/0/deeper/still", 3),
        ("/a/b/2/0", 5),
        ("/a/b/1/c/0", 4),
        ("/twice/missing", 21),
    ],
)
def test_pointer_to_what_is_not_there_leads_to_the_nearest_around_it(pointer: str, line: int) -> None:
    assert line_of(DOCUMENT, pointer) == line


def test_pointer_leads_past_a_number_of_any_length() -> None:
    body = b'{\n"a": [%s,\n-%s.5e7],\n"b": 1\n}' % (b"9" * 5000, b"9" * 5000)
    assert [line_of(body, pointer) for pointer in ("/a", "/a/0", "/a/1", "/b")] == [1, 1, 2, 3]


@pytest.mark.parametrize("scalar", [b"1", b'"text"', b"null", b"[]", b"{}"])
def test_pointer_into_nothing_leads_to_the_start(scalar: bytes) -> None:
    assert line_of(b"\n\n" + scalar, "/a/b") == 2
    assert line_of(b"\n\n" + scalar, "") == 2


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n",
        b"{",
        b"[",
        b'{\n"a"',
        b'{\n"a":',
        b'{\n"a":1',
        b"[\n1",
        b"[\n1 2",
        b"[\n,",
        b"{\n1:2}",
        b"{\n]",
        b"nonsense",
        b"\n\xff",
        b'{\n"a": "\xff"}',
        b"\n[" + DEEP + b"]",
    ],
    ids=lambda body: repr(body[:12]),
)
def test_pointer_into_no_json_leads_to_some_line_of_it(body: bytes) -> None:
    for pointer in ("", "/a", "/0", "/1/a"):
        assert 0 <= line_of(body, pointer) <= body.count(b"\n")
