"""Splits a file or a pipe into events, and finds the line of a JSON Pointer in an event.

The input is one JSON document, several JSON documents, or one JSON document on each line (NDJSON). This module finds
where each document begins and ends. The pipeline decides whether a document is valid JSON.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from select import select
from typing import Protocol

import orjson

from bridge.contract.body_format import is_binary

CHUNK_BYTES = 64 * 1024
"""The maximum number of bytes in one read.

A read from a pipe may return fewer bytes, because it does not wait for more.
"""

_OPENING = b"[{"
_OPENED_BY = {ord("]"): ord("["), ord("}"): ord("{")}
# Matches brackets, and also whole strings, so that a bracket inside a string is not matched as a bracket. A string
# without a closing quote ends at the end of its line, because a JSON string contains no line break. The quantifiers are
# possessive, because backtracking would take many times as much memory as the string.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)

_SPACE = frozenset(" \t\r\n")


class Readable(Protocol):
    """An unbuffered stream. A buffered stream would hold a lock while it waits for data."""

    def read(self, size: int, /) -> bytes | None:
        """Reads at most `size` bytes. Returns None if no bytes have arrived yet."""

    def fileno(self) -> int:
        """The descriptor."""


@dataclass(frozen=True, slots=True)
class Document:
    """One event of a file."""

    body: bytes
    line: int
    """The number of the event's first line in the file, counted from 1."""


def lines_of(stream: Readable) -> Iterator[bytes]:
    """Yields each line of a stream as soon as it has arrived.

    The stream must be unbuffered: Python can't exit while another thread waits in a buffered stream.
    """
    partial: list[bytes] = []
    while (chunk := stream.read(CHUNK_BYTES)) != b"":
        if chunk is None:
            # None does not mean the end of the stream. None means that no data has arrived yet, and that a program that
            # shares the pipe has set O_NONBLOCK.
            select([stream], [], [])
            continue
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            yield b"".join((*partial, end, b"\n"))
            partial.clear()
        if rest:
            partial.append(rest)
    if partial:
        yield b"".join(partial)


def documents(lines: Iterable[bytes]) -> Iterator[Document]:
    """Yields each event as soon as its last line has arrived, so that a pipe can stay open.

    An invalid document ends at the end of its line. If a bracket is never closed, the document ends before the next
    line on which an object begins where JSON does not allow one. Therefore, an unclosed bracket does not hide later
    events. Binary data at the start of the input counts as one event, which ends before the next line that is an object
    or an array.
    """
    partial = _Partial()
    binary: bytearray | None = None
    first = 0
    for number, line in enumerate(lines, 1):
        if binary is not None:
            if not line.lstrip().startswith((b"{", b"[")) or not _is_document(line):
                # The first CHUNK_BYTES of binary data are enough to recognize its format.
                binary += line if len(binary) < CHUNK_BYTES else b""
                continue
            yield Document(bytes(binary).strip(), first)
            binary = None
        if partial.ends_before(line):
            yield partial.end()
        if partial:
            yield from partial.add_line(line, number)
        elif not line.isspace():
            # Most inputs have one event on each line, so this case has a fast path.
            if _is_document(line):
                yield Document(line.strip(), number)
            elif not first and is_binary(line):
                binary = bytearray(line)
            else:
                yield from partial.add_line(line, number)
            first = first or number
    if binary is not None:
        yield Document(bytes(binary).strip(), first)
    if partial:
        yield partial.end()


def _is_document(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


class _Partial:
    """The document that is still incomplete. The truth value of this object is False if there is no such document."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._line = 0
        self._open = bytearray()
        """The brackets that are not closed yet. The innermost bracket is the last one."""
        self._last = 0
        """The last character that is not whitespace, or, if a string comes last, the string's opening quote."""
        self._has_other_text = False
        """Whether the line has text outside all brackets. Such a line can't be split at brackets."""

    def __bool__(self) -> bool:
        return bool(self._open)

    def ends_before(self, line: bytes) -> bool:
        """Returns whether the line begins with an object where JSON allows no value, and so begins another document."""
        if not line.startswith(b"{") or not self._open:
            return False
        in_array = self._open[-1] == ord("[")
        return self._last not in (b"[," if in_array else b":")

    def end(self) -> Document:
        """Ends the incomplete document, and returns it."""
        self._open.clear()
        return self._take()

    def add_line(self, line: bytes, number: int) -> Iterator[Document]:
        """Yields the documents that end on this line. The rest of the line begins the next document."""
        begin = 0
        for end in self._ends_on(line):
            self._add(line[begin:end], number)
            yield self._take()
            begin = end
        if self._open:
            self._add(line[begin:], number)

    def _ends_on(self, line: bytes) -> list[int]:
        """Returns the positions where documents end on the line.

        A document ends with its last bracket. If the line has any text outside the brackets, the entire line is one
        document, because it is unclear what a line such as `{"a":1},{"b":2}` means.
        """
        ends = []
        at = 0
        for token in _TOKEN.finditer(line):
            begin = token.start()
            self._last = line[begin]
            if not self._open and (self._last not in _OPENING or line[at:begin].strip()):
                self._has_other_text = True
            at = token.end()
            if self._last in _OPENING:
                self._open.append(self._last)
            # A closing bracket that does not match the innermost open bracket is ignored. If a mismatched bracket
            # closed the open bracket, parts of an invalid document would become events.
            elif self._open and self._open[-1] == _OPENED_BY.get(self._last):
                self._open.pop()
                if not self._open:
                    ends.append(at)
        if rest := line[at:].strip():
            self._last = rest[-1]
            self._has_other_text |= not self._open
        if self._has_other_text:
            return [] if self._open else [len(line)]
        return ends

    def _add(self, piece: bytes, number: int) -> None:
        if not self._pieces:
            self._line = number
        self._pieces.append(piece)

    def _take(self) -> Document:
        document = Document(b"".join(self._pieces).strip(), self._line)
        self._pieces.clear()
        self._has_other_text = False
        return document


# Places in a document


def json_location(body: bytes, pointer: str) -> int:
    """Returns the line, counted from 0, of the value at a JSON Pointer.

    If there is no such value, returns the line of the nearest enclosing value.
    """
    try:
        return _locations(body).line_of([step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]])
    except (ValueError, IndexError, RecursionError):
        return 0


class _Locations:
    """The positions of the values in a document. Each object or array is scanned once, when it is first needed."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._ends = [at for at, character in enumerate(text) if character == "\n"]
        self._inside: dict[int, dict[str, int]] = {}

    def line_of(self, steps: list[str]) -> int:
        at = _skip(self._text, 0)
        for step in steps:
            if at not in self._inside:
                self._inside[at] = self._members(at)
            if step not in self._inside[at]:
                break
            at = self._inside[at][step]
        return bisect_left(self._ends, at)

    def _members(self, at: int) -> dict[str, int]:
        """Returns the positions of an array's items, or of an object's members.

        If an object has two members with the same name, the last member counts.
        """
        # Numbers are not parsed, because int() rejects numbers with more than 4300 digits.
        text, decoder = self._text, json.JSONDecoder(parse_int=str, parse_float=str)
        is_object = text[at] == "{"
        if not is_object and text[at] != "[":
            return {}
        found: dict[str, int] = {}
        inner, index = _skip(text, at + 1), 0
        while text[inner] not in "}]":
            key = str(index)
            if is_object:
                key, inner = decoder.raw_decode(text, inner)
                inner = _skip(text, _skip(text, inner) + 1)
            found[key] = inner
            inner = _skip(text, decoder.raw_decode(text, inner)[1])
            if text[inner] == ",":
                inner = _skip(text, inner + 1)
            index += 1
        return found


@lru_cache(maxsize=1)
def _locations(body: bytes) -> _Locations:
    # An event may have thousands of violations. Because of the cache, the event is scanned only once for all its
    # violations.
    return _Locations(body.decode())


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] in _SPACE:
        at += 1
    return at
