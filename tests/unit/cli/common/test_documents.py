"""Tests of the search for events in text, the first line of each event, and the lines to which JSON Pointers lead."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import tracemalloc
import zlib
from itertools import count, pairwise
from select import select
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.cli.common.documents import CHUNK_BYTES, Document, documents, json_location, lines_of

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPTH = 30_000
DEEP = b"[" * DEPTH + b"]" * DEPTH
"""JSON that is nested too deeply for Python's json, which parses recursively."""


def found(text: bytes) -> list[tuple[int, bytes]]:
    """Returns the documents of a file, each with its line."""
    return [(document.line, document.body) for document in documents(io.BytesIO(text))]


def told(expected: dict[int, bytes]) -> list[tuple[int, bytes]]:
    return list(expected.items())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", {}),
        (b"\n \n\t\r\n", {}),
        (b'{"a":1}', {1: b'{"a":1}'}),
        (b'{"a":1}\n', {1: b'{"a":1}'}),
        (b'{"a":1}\n{"a":2}\n', {1: b'{"a":1}', 2: b'{"a":2}'}),
        (b'{"a":1}\n{"a":2}', {1: b'{"a":1}', 2: b'{"a":2}'}),
        (b'\n\n{"a":1}\n\n\n{"a":2}\n\n', {3: b'{"a":1}', 6: b'{"a":2}'}),
        (b'{"a":1}\r\n\r\n{"a":2}\r\n', {1: b'{"a":1}', 3: b'{"a":2}'}),
        (b'  {"a":1}  \n\t{"a":2}\n', {1: b'{"a":1}', 2: b'{"a":2}'}),
        (b'1\n"two"\nnull\n[]\n', {1: b"1", 2: b'"two"', 3: b"null", 4: b"[]"}),
    ],
)
def test_events_one_a_line_are_found_with_their_lines(text: bytes, expected: dict[int, bytes]) -> None:
    assert found(text) == told(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{\n  "a": 1\n}\n', {1: b'{\n  "a": 1\n}'}),
        (b'\n\n{\n  "a": 1\n}', {3: b'{\n  "a": 1\n}'}),
        (b'{\n\n\n  "a": 1\n\n}\n\n\n', {1: b'{\n\n\n  "a": 1\n\n}'}),
        (b'{\r\n"a": 1\r\n}\r\n{\r\n"a": 2\r\n}\r\n', {1: b'{\r\n"a": 1\r\n}', 4: b'{\r\n"a": 2\r\n}'}),
        (b'{\n"a": 1\n}\n\n\n{\n"a": 2\n}', {1: b'{\n"a": 1\n}', 6: b'{\n"a": 2\n}'}),
        (b'  {\n"a": 1\n  }  \n [\n1\n ]', {1: b'{\n"a": 1\n  }', 4: b"[\n1\n ]"}),
        (b'{\n"a": 1\n}\n{"a": 2}\n3\n{\n}', {1: b'{\n"a": 1\n}', 4: b'{"a": 2}', 5: b"3", 6: b"{\n}"}),
        (b'{\n"a": "}\\"{",\n"b": "\\\\"\n}\n{}', {1: b'{\n"a": "}\\"{",\n"b": "\\\\"\n}', 5: b"{}"}),
        (b'{\n"a": ' + b"9" * 5000 + b"\n}\n{}", {1: b'{\n"a": ' + b"9" * 5000 + b"\n}", 4: b"{}"}),
    ],
)
def test_events_of_several_lines_are_found_with_their_lines(text: bytes, expected: dict[int, bytes]) -> None:
    assert found(text) == told(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"a":1}{"a":2}\n', [(1, b'{"a":1}'), (1, b'{"a":2}')]),
        (b'{"a":1} [2]\t{}\r\n{}', [(1, b'{"a":1}'), (1, b"[2]"), (1, b"{}"), (2, b"{}")]),
        (b'{\n"a":1\n}{\n"a":2\n}{}\n', [(1, b'{\n"a":1\n}'), (3, b'{\n"a":2\n}'), (5, b"{}")]),
        (b'{"a":1} {\n}\n', [(1, b'{"a":1}'), (1, b"{\n}")]),
        (b'{"a":1}{"a":\n', [(1, b'{"a":1}'), (1, b'{"a":')]),
        (b'{"a":nonsense}{"a":2}\n', [(1, b'{"a":nonsense}'), (1, b'{"a":2}')]),
    ],
)
def test_events_on_one_line_are_separate(text: bytes, expected: list[tuple[int, bytes]]) -> None:
    assert found(text) == expected


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"}",
        b"]",
        b'"systemId":3}',
        b'"systemId":3}{"a":1}',
        b'{"a":1}}',
        b'{"a":1},{"b":2}',
        b'{"a":1} {"b":2},',
        b'{"a":1} nonsense',
        b'{"a":1}"nonsense',
        b'1 {"a":1}',
        b'"one" {"a":1}',
        b'INFO [main] {"a":1}',
        b'\xef\xbb\xbf{"a":1}',
    ],
)
def test_line_with_text_outside_an_event_is_one_document(line: bytes) -> None:
    assert found(line) == [(1, line)]
    assert found(b'{"a":1}\n\n' + line + b'\n{\n"a":4\n}\n') == [(1, b'{"a":1}'), (3, line), (4, b'{\n"a":4\n}')]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{\n"a":1\n},\n{\n"a":2\n}\n', {1: b'{\n"a":1\n},', 4: b'{\n"a":2\n}'}),
        (b'{\n"a":1\n}{"b":2},{"c":3}\n{}\n', {1: b'{\n"a":1\n}{"b":2},{"c":3}', 4: b"{}"}),
        (b'{\n"a":1\n}, {\n"a":2\n}\n{}\n', {1: b'{\n"a":1\n}, {\n"a":2\n}', 6: b"{}"}),
        (b'config: {\n"a":1\n}{}\n[\n]\n', {1: b'config: {\n"a":1\n}{}', 4: b"[\n]"}),
        (b'nonsense\n[\n{"a":1}\n]\n', {1: b"nonsense", 2: b'[\n{"a":1}\n]'}),
        (b'nonsense\n{\n}{"a":1}\n', {1: b"nonsense", 2: b"{\n}", 3: b'{"a":1}'}),
        # This text begins in the middle of an event.
        (b'  "b": [\n    {"a":1}\n  ]\n}\n{}\n', {1: b'"b": [\n    {"a":1}\n  ]', 4: b"}", 5: b"{}"}),
    ],
)
def test_open_brackets_end_before_the_next_event(text: bytes, expected: dict[int, bytes]) -> None:
    assert found(text) == told(expected)


BROKEN = [
    b'{"a":1',
    b'{"a":{"b":1}',
    b'{"a":[1,2',
    b'{"a":1,',
    b'{"a":"text',
    b'{"a":"text:',
    b'{"a":["text,',
    b'{"a":"text\\',
    b'{"a":"}\\"',
    b'{"a":1]',
    b'{"a":[1}',
    b'[{"a":1}',
    b'["a":',
    b"{",
    b"nonsense",
    b"don't \"quote",
    b'"systemId":3}',
    b'{"a": NaN}',
    b"\xff\xfe",
    b'{"a":"\xff"}',
    b'"\\ud800"',
    b'"\xed\xa0\x80"',
    b"9" * 5000,
    b"[" * 2000 + b"]" * 2000,
    b"{" * 2000 + b"]" * 2000,
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: repr(broken[:15]))
def test_invalid_line_affects_no_other_line(broken: bytes) -> None:
    good = [b'{"a":%d}' % number for number in range(3)]
    for at in range(4):
        lines = [*good[:at], broken, *good[at:]]
        assert found(b"\n".join(lines) + b"\n") == list(enumerate(lines, 1))
        assert found(b"\r\n".join(lines)) == list(enumerate(lines, 1))


@pytest.mark.parametrize(
    "broken",
    [
        [b"INFO starting", b"INFO [main] to export"],
        [b'{"a":1', b'{"a":"text', b'{"a":[1}'],
        [b'"systemId":3}', b"nonsense", b"}"],
        [b"don't \"quote", b'"either', b'{"a":1}}'],
    ],
)
def test_invalid_lines_at_the_start_hide_no_later_event(broken: list[bytes]) -> None:
    lines = [*broken, b'{"a":1}', *broken, *broken, b'{"a":2}', b'{"a":3}', *broken]
    assert found(b"\n".join(lines)) == list(enumerate(lines, 1))


@pytest.mark.parametrize(
    "broken",
    [
        b'{\n "a": 1,\n',
        b'{\n "a": 1',
        b'{\n "a": 1,\n}',
        b'{\n "a": x\n}',
        b'{\n "a": "x\n}',
        b'{\n "a": [\n  1\n}',
        b'{\n "a": 1\n ],\n "b": [\n  {"a":2}\n ]\n}',
        b'{\n "a": [\n  {"b": 1}\n',
        b'{\n "a": {\n',
        b'{\n "a": NaN\n}',
        b'{\n "a": "\xff"\n}',
        b'{\n "a": "\xed\xa0\x80"\n}',
        b'{\n "a": "\\ud800"\n}',
        b"{\n" + DEEP + b"\n}",
        b'{"a":\n' + DEEP + b"}",
    ],
    ids=lambda broken: repr(broken[:20]),
)
@pytest.mark.parametrize("good", [b'{\n "a": 1\n}', b'{"a":1}'], ids=["pretty", "one a line"])
def test_invalid_event_of_several_lines_affects_no_other_event(broken: bytes, good: bytes) -> None:
    text = good + b"\n" + broken + b"\n" + good + b"\n\n" + good
    second = 2 + good.count(b"\n")
    third = second + broken.count(b"\n") + 1
    fourth = third + good.count(b"\n") + 2
    assert found(text) == [(1, good), (second, broken.strip()), (third, good), (fourth, good)]
    assert found(broken) == [(1, broken.strip())]


@pytest.mark.parametrize(
    "text",
    [
        b'[\n{"a":1}\n]',
        b'[\n{"a":1},\n\n{"a":2}\n,\n{\n}\n]',
        b'{"data":\n{"a":1}\n}',
        b'{"data"\n:\n{\n}\n}',
        b'[1,\n\n{"a":1}\n]',
        b'["}",\n{"a":1}\n]',
        b'{"a":[{"b":[]},\n{"c":1}]}',
    ],
)
def test_object_where_a_value_is_allowed_begins_no_document(text: bytes) -> None:
    assert found(b"{}\n" + text + b"\n{}") == [(1, b"{}"), (2, text), (3 + text.count(b"\n"), b"{}")]


@pytest.mark.parametrize("line", [b'{"a":', b"nonsense [", b'nonsense {"a":', b'{"a":1},{"b":', b"\xef\xbb\xbf["])
def test_line_truncated_where_a_value_is_allowed_includes_the_next_line(line: bytes) -> None:
    """The line after a truncated line may belong to the same document. The parts of a document are not events."""
    assert found(line + b'\n{"a":2}\n{"a":3}\n') == [(1, line + b'\n{"a":2}'), (3, b'{"a":3}')]


def test_list_after_a_byte_order_mark_is_not_split() -> None:
    assert found(b'\xef\xbb\xbf[\n{"a":1},\n{"a":2}\n]\n') == [(1, b'\xef\xbb\xbf[\n{"a":1},\n{"a":2}\n]')]


@pytest.mark.parametrize("event", [b'{"a":%d}\n', b'{\n "a": %d\n}\n', b'{"a":%d}}\n', b"nonsense %d\n"])
def test_event_is_yielded_as_soon_as_its_last_line_has_arrived(event: bytes) -> None:
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        for number in count():
            for line in io.BytesIO(event % number):
                read += 1
                yield line

    events = documents(endless())
    height = event.count(b"\n")
    for number in range(100):
        assert next(events) == Document((event % number).strip(), number * height + 1)
        assert read == (number + 1) * height


@pytest.mark.parametrize("following", [b'{"a":2}', b'{\n"a":2\n}'], ids=["one a line", "pretty"])
def test_truncated_event_waits_until_the_next_one_begins(following: bytes) -> None:
    lines = iter([b'{"a":1,\n', b"\n", *io.BytesIO(following + b"\n"), b"never read yet\n"])
    events = documents(lines)
    assert next(events) == Document(b'{"a":1,', 1)
    assert next(events) == Document(following, 3)
    assert list(lines) == [b"never read yet\n"]


@pytest.mark.parametrize(
    ("document", "times"),
    [
        (b'{\n "a": 1,\n "b": [\n  2\n ]\n}', 5_000),
        (b'{"a": "' + b"x" * 2**22 + b'"}', 1),
        (b'{"a": "' + b"x" * 2**22, 1),
        (b'{"a": "' + b'\\"' * 2**21, 1),
        (b"[" + b'{"a":"%s"},' % (b"b" * 100) * 2**15 + b"x]", 1),
        (json.dumps([{"a": "b" * 100}] * 2**13, indent=2).encode(), 1),
        (DEEP, 1),
        (DEEP.replace(b"[", b"[\n").replace(b"]", b"]\n"), 1),
        (b"{" * DEPTH + b"]" * DEPTH, 1),
        (b"}" * DEPTH, 1),
    ],
    ids=["many", "string", "cut off", "escapes", "line", "lines", "deep", "deep lines", "never closed", "never opened"],
)
def test_long_and_deep_input_is_scanned_once(document: bytes, times: int) -> None:
    read = found((document + b"\n") * times)
    assert [line for line, _ in read] == [1 + number * (document.count(b"\n") + 1) for number in range(times)]
    assert {body for _, body in read} == {document.strip()}


@pytest.mark.parametrize("inside", [b"x" * 2**20, b'\\"' * 2**19], ids=["text", "escapes"])
def test_long_string_needs_the_memory_of_a_few_copies(inside: bytes) -> None:
    line = b'{"a": "' + inside
    tracemalloc.start()
    try:
        assert next(documents([line])) == Document(line, 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # orjson needs 12 times as much memory as the text, even if it only finds that the text is not JSON.
    assert peak < 20 * len(line)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
WRITTEN = st.builds(
    lambda value, indent, ascii_only: json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode(),
    VALUES,
    st.none() | st.integers(0, 4),
    st.booleans(),
)
# Each text begins with "!". Without this character, a text might begin with a digit, and would then be read as a JSON
# number.
GARBAGE = st.text(st.characters(exclude_characters='[]{}"\r\n', exclude_categories=["Cs"])).map(
    lambda text: f"!{text.rstrip()}".encode()
)


def numbered(written: list[bytes], gaps: list[int], end: bytes) -> tuple[bytes, list[int]]:
    """Returns the texts, each after some blank lines, and the line on which each text begins."""
    text, lines = b"", []
    for document, gap in zip(written, gaps, strict=True):
        text += end * gap
        lines.append(text.count(b"\n") + 1)
        text += document.replace(b"\n", end) + end
    return text, lines


@given(st.lists(st.tuples(WRITTEN, st.integers(0, 3))), st.sampled_from([b"\n", b"\r\n"]), st.booleans())
def test_values_are_found_unchanged_with_their_lines(written: list[tuple[bytes, int]], end: bytes, cut: bool) -> None:
    text, lines = numbered([document for document, _ in written], [gap for _, gap in written], end)
    read = list(documents(io.BytesIO(text.rstrip() if cut else text)))
    assert [json.loads(document.body) for document in read] == [json.loads(document) for document, _ in written]
    assert [document.line for document in read] == lines


@given(st.lists(st.tuples(WRITTEN | GARBAGE, st.integers(0, 3))))
def test_values_between_other_text_are_found(written: list[tuple[bytes, int]]) -> None:
    bodies = [document for document, _ in written]
    text, lines = numbered(bodies, [gap for _, gap in written], b"\n")
    assert [(document.line, document.body) for document in documents(io.BytesIO(text))] == list(
        zip(lines, bodies, strict=True)
    )


@given(st.lists(st.sampled_from([*b'[]{}",:\\ \n1x'])).map(bytes))
def test_any_text_is_found_completely_with_correct_lines(text: bytes) -> None:
    read = list(documents(io.BytesIO(text)))
    at = 0
    for document in read:
        begin = text.index(document.body, at)
        assert not text[at:begin].strip()
        assert document.line == text.count(b"\n", 0, begin) + 1
        assert document.body == document.body.strip() != b""
        at = begin + len(document.body)
    assert not text[at:].strip()


@given(st.binary(), st.lists(st.binary()))
def test_any_input_is_accepted(first: bytes, rest: list[bytes]) -> None:
    lines = [line.replace(b"\n", b"") + b"\n" for line in (first, *rest)]
    assert b"".join(b"".join(document.body.split()) for document in documents(lines)) == b"".join(
        b"".join(lines).split()
    )


class Pipe:
    """Returns the next piece at each read, no matter what size is requested."""

    def __init__(self, *pieces: bytes) -> None:
        self.left = list(pieces)

    def read(self, size: int, /) -> bytes:
        return self.left.pop(0) if self.left else b""

    def fileno(self) -> int:
        raise AssertionError("there is nothing to wait for")


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
def test_lines_are_joined_from_chunks(pieces: list[bytes], lines: list[bytes]) -> None:
    assert list(lines_of(Pipe(*pieces))) == lines


def test_line_is_yielded_before_the_next_one_is_read() -> None:
    pipe = Pipe(b"a\nb", b"c\n", b"never read yet")
    lines = lines_of(pipe)
    assert [next(lines), next(lines)] == [b"a\n", b"bc\n"]
    assert len(pipe.left) == 1


def test_nonblocking_pipe_is_polled(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    pieces = [b"a\nb", b"c\n", b"d"]
    waits = reads = 0

    class Counted(io.FileIO):
        def read(self, size: int | None = -1, /) -> Any:
            nonlocal reads
            reads += 1
            assert reads <= 2 * waits + 1, "reads again without having waited"
            return super().read(size)

    def wait(*streams: Any) -> Any:
        """Writes the next piece whenever the reader waits. Closes the file after the last piece."""
        nonlocal waits
        waits += 1
        if pieces:
            os.write(writing, pieces.pop(0))
        else:
            os.close(writing)
        return select(*streams)

    monkeypatch.setattr("bridge.cli.common.documents.select", wait)
    with Counted(reading) as stream:
        lines = lines_of(stream)
        assert (next(lines), waits) == (b"a\n", 1)
        assert (next(lines), waits) == (b"bc\n", 2)
        assert (list(lines), waits) == ([b"d"], 4)


@given(st.binary(), st.integers(1, 20))
def test_lines_are_those_of_a_file(content: bytes, size: int) -> None:
    pieces = [content[at : at + size] for at in range(0, len(content), size)]
    assert list(lines_of(Pipe(*pieces))) == list(io.BytesIO(content))


BINARY = {
    "gzip": gzip.compress(random.Random(1).randbytes(100_000)),
    "zlib": zlib.compress(bytes(range(256)) * 20, 0),
    "pickle": b"\x80\x04\x95\n\x00\x00\n\x00\x00\x00}\x94\n.",
    "UTF-16": '[{"a":\n1},\n2]'.encode("utf-16"),
    "UTF-16 without a mark": '{"a":\n1}\n{}'.encode("utf-16-le"),
    "BSON": b"{\x01\x00\x00\x10a\x00\n\x00\n\x00\x00\n1\n\x00",
    "Protocol Buffers": b"\n\n\x08\x01\x12\n{\n1\n",
    "MessagePack": b"\x81\xa1a\n{\n\n1",
    "no UTF-8": b"\xfa\xfe\xfd\n{\n",
}


@pytest.mark.parametrize("content", BINARY.values(), ids=BINARY)
def test_binary_file_is_one_event_with_any_line_breaks(content: bytes) -> None:
    [document] = documents(io.BytesIO(content))
    assert content[:CHUNK_BYTES].lstrip(b"\n").startswith(document.body[:CHUNK_BYTES])
    assert len(document.body) >= min(len(content.strip()), CHUNK_BYTES)


@pytest.mark.parametrize(
    "lines",
    [
        [b'{"a": "\xe4"}\n', b"{}\n"],
        [b'{"a": "\x00"}\n', b"{}\n"],
        [b'  ["\xff"\n', b"{}\n"],
        ["käse\n".encode(), b"{}\n"],
        [b"\x1e{}\n", b"\x1e{}\n"],
        [b"\xef\xbb\xbf{}\n", b"{}\n"],
        [b"kill\tmail\x1b\n", b"{}\n"],
        [b"kill\x00mail\n", b"kill\n"],
        [b"\x1bkill\n", b"kill\n"],
        [b"x" * 1023 + "ä\n".encode(), b"{}\n"],
    ],
    ids=repr,
)
def test_invalid_text_hides_no_event_of_a_later_line(lines: list[bytes]) -> None:
    assert [document.line for document in documents(lines)] == [1, 2]


def test_binary_beginning_hides_no_event_of_a_later_line() -> None:
    read = list(documents([b"\n", b"\x1f\x8b\x08\n", b"x\n", b"1\n", b' {"a":\n', b" [1]\n", b"x\n", b"\xff\n"]))
    assert [document.line for document in read] == [2, 6, 7, 8]
    assert read[0].body.startswith(b"\x1f\x8b\x08\nx\n1\n")


def test_binary_data_after_an_event_is_one_line() -> None:
    assert [document.line for document in documents([b"{}\n", b"\x1f\x8b\x08\n", b"{}\n"])] == [1, 2, 3]


def test_only_the_beginning_of_a_large_binary_file_is_kept() -> None:
    [document] = documents(b"\x1f\x8b\x08" + b"x" * 1000 + b"\n" for _ in range(1000))
    assert CHUNK_BYTES <= len(document.body) < CHUNK_BYTES + 1100


class Counting(json.JSONDecoder):
    """A decoder that counts the characters that all its instances have decoded."""

    decoded = 0

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        value, end = super().raw_decode(s, idx)
        Counting.decoded += end - idx
        return value, end


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> type[Counting]:
    monkeypatch.setattr("bridge.cli.common.documents.json.JSONDecoder", Counting)
    monkeypatch.setattr(Counting, "decoded", 0)
    return Counting


def test_thousands_of_places_in_one_document_need_few_scans(counting: type[Counting]) -> None:
    times = 2000
    body = json.dumps({"attackers": [{"id": number} for number in range(times)]}, indent=1).encode()
    lines = [json_location(body, f"/attackers/{number}/id") for number in range(times)]
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
    assert json_location(DOCUMENT, pointer) == line
    assert json_location(b"\n \n" + DOCUMENT.replace(b"\n", b"\r\n"), pointer) == line + 2


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
def test_pointer_to_a_missing_value_leads_to_the_nearest_one_around_it(pointer: str, line: int) -> None:
    assert json_location(DOCUMENT, pointer) == line


def test_pointer_leads_past_a_number_of_any_length() -> None:
    body = b'{\n"a": [%s,\n-%s.5e7],\n"b": 1\n}' % (b"9" * 5000, b"9" * 5000)
    assert [json_location(body, pointer) for pointer in ("/a", "/a/0", "/a/1", "/b")] == [1, 1, 2, 3]


@pytest.mark.parametrize("scalar", [b"1", b'"text"', b"null", b"[]", b"{}"])
def test_pointer_into_an_empty_document_leads_to_the_start(scalar: bytes) -> None:
    assert json_location(b"\n\n" + scalar, "/a/b") == 2
    assert json_location(b"\n\n" + scalar, "") == 2


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
def test_pointer_into_invalid_json_leads_to_one_of_its_lines(body: bytes) -> None:
    for pointer in ("", "/a", "/0", "/1/a"):
        assert 0 <= json_location(body, pointer) <= body.count(b"\n")
