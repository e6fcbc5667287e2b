"""Events from a file or a pipe: a JSON document, several of them, or one a line (NDJSON).

Only where each begins and ends is found here; whether it is JSON at all is for the pipeline to say.
"""

import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Protocol

import orjson

CHUNK_BYTES = 64 * 1024
"""How much is read at once; a pipe gives less, as soon as it has some."""

_SPACE = frozenset(" \t\r\n")


class Readable(Protocol):
    """What is read from: a raw stream, which holds no lock while it waits."""

    def read(self, size: int, /) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class Document:
    """One event as it stands in its file."""

    body: bytes
    line: int
    """Where it begins, counted from 1."""


def lines_of(stream: Readable) -> Iterator[bytes]:
    """The lines of a stream, each as soon as it is there.

    Not by a buffered stream: Python can't end while another thread waits in one.
    """
    begun: list[bytes] = []
    while chunk := stream.read(CHUNK_BYTES):
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            yield b"".join((*begun, end, b"\n"))
            begun.clear()
        if rest:
            begun.append(rest)
    if begun:
        yield b"".join(begun)


def documents(lines: Iterable[bytes]) -> Iterator[Document]:
    """The events among the lines, each as soon as it is there: a pipe that never ends is fine, if it has one a line.

    Whether there is one a line shows in the first line that is not empty, or else in the second.
    """
    filled = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    first = next(filled, None)
    if first is None:
        return
    begun = [first]
    if not _is_document(first[1]):
        second = next(filled, None)
        if second is not None:
            begun.append(second)
        if second is None or not _begins_anew(first[1], second[1]):
            yield from _of_several_lines([*begun, *filled])
            return
    yield from (Document(line.strip(), number) for number, line in chain(begun, filled))


def _begins_anew(first: bytes, second: bytes) -> bool:
    """Whether the second line is an event of its own, the first not being one: with [, a comma or a colon at its end,
    the first goes on."""
    return second.startswith(b"{") and not first.rstrip().endswith((b"[", b",", b":")) and _is_document(second)


def _is_document(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


def _of_several_lines(numbered: list[tuple[int, bytes]]) -> Iterator[Document]:
    """Documents one after another, as a program prints them for people. What can't be taken apart is one document."""
    line = following = numbered[0][0]
    pieces = []
    for number, content in numbered:
        # The empty lines, which were left out: every line counts.
        pieces.append(b"\n" * (number - following) + content)
        following = number + 1
    text = b"".join(pieces).decode("utf-8", "surrogateescape")
    decoder = json.JSONDecoder()
    at = 0
    while (begin := _skip(text, at)) < len(text):
        line += text.count("\n", at, begin)
        try:
            at = decoder.raw_decode(text, begin)[1]
        except (ValueError, RecursionError):
            at = len(text)
        yield Document(text[begin:at].rstrip().encode("utf-8", "surrogateescape"), line)
        line += text.count("\n", begin, at)


def line_of(body: bytes, pointer: str) -> int:
    """The line, counted from 0, of what a JSON Pointer names in a document; of the nearest around it that is there."""
    try:
        return _places(body).line_of([step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]])
    except (ValueError, IndexError, RecursionError):
        return 0


class _Places:
    """Where the values of a document stand, looked up once in each object and array that is asked for."""

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
        """The positions of an object's members, the last of several with the same name, or of an array's items."""
        text, decoder = self._text, json.JSONDecoder()
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
def _places(body: bytes) -> _Places:
    # One event may have thousands of violations, and is searched once for all of them.
    return _Places(body.decode())


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] in _SPACE:
        at += 1
    return at
