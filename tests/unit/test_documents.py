"""Events among lines: where each begins and ends, on which line, and on which line of it a pointer leads."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.commands.documents import Document, documents, line_of, lines_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DEEP = b"[" * 100_000 + b"]" * 100_000
"""Nested deeper than Python's json, which recurses, can follow."""


def found(text: bytes) -> list[tuple[int, bytes]]:
    """The documents of a whole file, each with its line."""
    return [(document.line, document.body) for document in documents(text.splitlines(keepends=True))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", []),
        (b"\n \n\t\r\n", []),
        (b'{"a":1}', [(1, b'{"a":1}')]),
        (b'{"a":1}\n', [(1, b'{"a":1}')]),
        (b'{"a":1}\n{"a":2}\n', [(1, b'{"a":1}'), (2, b'{"a":2}')]),
        (b'{"a":1}\n{"a":2}', [(1, b'{"a":1}'), (2, b'{"a":2}')]),
        (b'\n\n{"a":1}\n\n\n{"a":2}\n\n', [(3, b'{"a":1}'), (6, b'{"a":2}')]),
        (b'{"a":1}\r\n\r\n{"a":2}\r\n', [(1, b'{"a":1}'), (3, b'{"a":2}')]),
        (b'  {"a":1}  \n\t{"a":2}\n', [(1, b'{"a":1}'), (2, b'{"a":2}')]),
        (b'1\n"two"\nnull\n', [(1, b"1"), (2, b'"two"'), (3, b"null")]),
        (b'{"a":1}\n{"a":\n{"a":3}\n', [(1, b'{"a":1}'), (2, b'{"a":'), (3, b'{"a":3}')]),
        (b'{"a":1}\n\xff\n{"a":3}\n', [(1, b'{"a":1}'), (2, b"\xff"), (3, b'{"a":3}')]),
        (b'{"a":1}\n' + DEEP + b'\n{"a":3}\n', [(1, b'{"a":1}'), (2, DEEP), (3, b'{"a":3}')]),
    ],
)
def test_events_one_a_line_are_found_with_their_lines(text: bytes, expected: list[tuple[int, bytes]]) -> None:
    assert found(text) == expected


@pytest.mark.parametrize(
    "broken",
    [b'{"a":1', b'"systemId":3}', b"nonsense", b'{"a": NaN}', b"\xff\xfe", b'"\\ud800"', b'"\xed\xa0\x80"', DEEP],
    ids=["cut", "tail", "words", "NaN", "no UTF-8", "half a pair", "half a pair in UTF-8", "deep"],
)
def test_first_line_that_is_broken_spoils_no_other(broken: bytes) -> None:
    assert found(b"\n" + broken + b'\n\n{"a":2}\n{"a":3}\n') == [(2, broken), (4, b'{"a":2}'), (5, b'{"a":3}')]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{\n  "a": 1\n}\n', [(1, b'{\n  "a": 1\n}')]),
        (b'\n\n{\n  "a": 1\n}', [(3, b'{\n  "a": 1\n}')]),
        (b'{\n\n\n  "a": 1\n\n}\n\n\n', [(1, b'{\n\n\n  "a": 1\n\n}')]),
        (b'{\r\n"a": 1\r\n}\r\n{\r\n"a": 2\r\n}\r\n', [(1, b'{\r\n"a": 1\r\n}'), (4, b'{\r\n"a": 2\r\n}')]),
        (
            b'{\n"a": 1\n}\n\n\n{\n"a": 2\n}{"a":3}\n{}',
            [(1, b'{\n"a": 1\n}'), (6, b'{\n"a": 2\n}'), (8, b'{"a":3}'), (9, b"{}")],
        ),
        (b'{\n"a": NaN\n}\n{\n"a": 2\n}\n', [(1, b'{\n"a": NaN\n}'), (4, b'{\n"a": 2\n}')]),
        (b'{\n"a": "\xff"\n}\n{\n"a": 2\n}\n', [(1, b'{\n"a": "\xff"\n}'), (4, b'{\n"a": 2\n}')]),
        (b'{\n"a": "\xed\xa0\x80"\n}\n{}', [(1, b'{\n"a": "\xed\xa0\x80"\n}'), (4, b"{}")]),
        (b'{\n"a": "\\ud800"\n}\n{}', [(1, b'{\n"a": "\\ud800"\n}'), (4, b"{}")]),
        (b'{\n"a": "}\\"{"\n}\n{}', [(1, b'{\n"a": "}\\"{"\n}'), (4, b"{}")]),
    ],
)
def test_events_of_several_lines_are_found_with_their_lines(text: bytes, expected: list[tuple[int, bytes]]) -> None:
    assert found(text) == expected


@pytest.mark.parametrize(
    "broken",
    [b'{\n"a": 1,\n}', b'{\n"a": ', b"{\n" + DEEP + b"\n}", b'{"a":\n' + DEEP + b"}"],
    ids=["comma", "cut", "deep in no JSON", "deep"],
)
def test_what_cannot_be_taken_apart_is_one_document_to_the_end(broken: bytes) -> None:
    good = b'{\n"a": 1\n}\n\n'
    assert found(good + broken + b'\n\n{\n"a": 3\n}\n') == [(1, good.rstrip()), (5, broken + b'\n\n{\n"a": 3\n}')]
    assert found(broken) == [(1, broken.rstrip())]


@pytest.mark.parametrize("text", [b'[\n{"a":1}\n]', b'{"data":\n{"a":1}\n}', b'[1,\n\n{"a":1}\n]'])
def test_object_on_a_line_inside_of_a_document_is_none_of_its_own(text: bytes) -> None:
    assert found(text) == [(1, text)]


def test_event_is_there_as_soon_as_its_line_is() -> None:
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield b'{"a":%d}\n' % read

    events = documents(endless())
    for number in range(1, 100):
        assert next(events) == Document(b'{"a":%d}' % number, number)
        assert read == number


def test_broken_first_line_holds_up_a_pipe_for_one_line_only() -> None:
    lines = iter([b"nonsense\n", b'{"a":2}\n'])
    events = documents(lines)
    assert [next(events).line, next(events).line] == [1, 2]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
# What is laid out over several lines is known by its first line: a value that fits on one is read as one a line.
LAID_OUT = st.dictionaries(st.text(), VALUES, min_size=1) | st.lists(VALUES, min_size=1)


def numbered(written: Iterable[str], gaps: Iterable[int], end: bytes) -> tuple[bytes, list[int]]:
    """The texts one below the other, with that many blank lines before each; and on which lines they begin."""
    text, lines = b"", []
    for document, gap in zip(written, gaps, strict=True):
        text += end * gap
        lines.append(text.count(b"\n") + 1)
        text += document.encode().replace(b"\n", end) + end
    return text, lines


@given(st.data())
def test_values_come_back_as_they_were_written_with_their_lines(data: st.DataObject) -> None:
    indent = data.draw(st.none() | st.integers(0, 3), "indent")
    if indent is not None:
        values: list[Any] = [data.draw(LAID_OUT, "first"), *data.draw(st.lists(VALUES), "others")]
    else:
        values = data.draw(st.lists(VALUES), "values")
    gaps = data.draw(st.lists(st.integers(0, 3), min_size=len(values), max_size=len(values)), "gaps")
    end = data.draw(st.sampled_from([b"\n", b"\r\n"]), "end")
    ascii_only = data.draw(st.booleans(), "ascii")
    written = [json.dumps(value, indent=indent, ensure_ascii=ascii_only) for value in values]
    text, lines = numbered(written, gaps, end)
    if data.draw(st.booleans(), "cut"):
        text = text.rstrip()
    read = list(documents(io.BytesIO(text)))
    assert [json.loads(document.body) for document in read] == values
    assert [document.line for document in read] == lines


class Counting(json.JSONDecoder):
    """Counts how many characters are decoded, over all instances."""

    decoded = 0

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        value, end = super().raw_decode(s, idx)
        Counting.decoded += end - idx
        return value, end


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> type[Counting]:
    monkeypatch.setattr("bridge.commands.documents.json.JSONDecoder", Counting)
    monkeypatch.setattr(Counting, "decoded", 0)
    return Counting


def test_documents_one_after_another_are_each_decoded_once(counting: type[Counting]) -> None:
    text = b'{\n "a": 1,\n "b": [\n  2\n ]\n}\n\n' * 2000
    assert [line for line, _ in found(text)] == list(range(1, 14_000, 7))
    assert counting.decoded <= len(text)


def test_thousands_of_places_in_one_document_take_no_more_than_a_few_readings(counting: type[Counting]) -> None:
    count = 2000
    body = json.dumps({"attackers": [{"id": number} for number in range(count)]}, indent=1).encode()
    lines = [line_of(body, f"/attackers/{number}/id") for number in range(count)]
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


class Pipe:
    """Gives one piece at each read, however much is asked for."""

    def __init__(self, *pieces: bytes) -> None:
        self.left = list(pieces)

    def read(self, size: int, /) -> bytes:
        return self.left.pop(0) if self.left else b""


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([], []),
        ([b"a"], [b"a"]),
        ([b"a\n"], [b"a\n"]),
        ([b"a\nb\n\nc"], [b"a\n", b"b\n", b"\n", b"c"]),
        ([b"a", b"b", b"\n", b"c\nd", b"\ne"], [b"ab\n", b"c\n", b"d\n", b"e"]),
        ([b"a\r", b"\n\rb\x0b\x0c\n"], [b"a\r\n", b"\rb\x0b\x0c\n"]),
    ],
)
def test_lines_are_put_together_from_what_is_read(pieces: list[bytes], lines: list[bytes]) -> None:
    assert list(lines_of(Pipe(*pieces))) == lines


def test_line_is_there_before_the_next_one_is_read() -> None:
    pipe = Pipe(b"a\nb", b"c\n", b"never read yet")
    lines = lines_of(pipe)
    assert [next(lines), next(lines)] == [b"a\n", b"bc\n"]
    assert len(pipe.left) == 1


@given(st.binary(), st.integers(1, 20))
def test_lines_are_those_of_a_file(content: bytes, size: int) -> None:
    pieces = [content[at : at + size] for at in range(0, len(content), size)]
    assert list(lines_of(Pipe(*pieces))) == list(io.BytesIO(content))
