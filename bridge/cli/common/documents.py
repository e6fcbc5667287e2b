"""Events from a file or a pipe: a JSON document, several of them, or one a line (NDJSON).

Only where each begins and ends is found here; whether it is JSON at all is for the pipeline to say.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from select import select
from typing import Protocol

import orjson

from bridge.contract.body_format import is_binary

CHUNK_BYTES = 64 * 1024
"""How much is read at once; a pipe gives less, as soon as it has some."""

_OPENING = b"[{"
_OPENED_BY = {ord("]"): ord("["), ord("}"): ord("{")}
# Brackets, and the strings in which they mean nothing. A string ends with its line: JSON has no line break in one.
# Possessive, because what is remembered for going back would be many times as long as the string.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)


class Readable(Protocol):
    """What is read from: a raw stream, which holds no lock while it waits."""

    def read(self, size: int, /) -> bytes | None: ...

    def fileno(self) -> int: ...


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
    while (chunk := stream.read(CHUNK_BYTES)) != b"":
        if chunk is None:
            # Nothing yet, which is not the end: a program that shares the pipe may have made it one that never waits.
            select([stream], [], [])
            continue
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            yield b"".join((*begun, end, b"\n"))
            begun.clear()
        if rest:
            begun.append(rest)
    if begun:
        yield b"".join(begun)


def documents(lines: Iterable[bytes]) -> Iterator[Document]:
    """The events among the lines, each as soon as its last line is there: a pipe that never ends is fine.

    What is broken ends with its line or, with brackets left open, before a line whose first character begins an object
    where none may stand: it hides no event behind that. A binary format at the beginning is
    one event, up to the next line that is an object or array of its own.
    """
    begun = _Begun()
    binary: bytearray | None = None
    first = 0
    for number, line in enumerate(lines, 1):
        if binary is not None:
            if not line.lstrip().startswith((b"{", b"[")) or not _is_document(line):
                # As much as tells which format it is.
                binary += line if len(binary) < CHUNK_BYTES else b""
                continue
            yield Document(bytes(binary).strip(), first)
            binary = None
        if begun.is_cut_off_by(line):
            yield begun.cut_off()
        if begun:
            yield from begun.go_on(line, number)
        elif not line.isspace():
            # As below, only faster: most input has one event a line.
            if _is_document(line):
                yield Document(line.strip(), number)
            elif not first and is_binary(line):
                binary = bytearray(line)
            else:
                yield from begun.go_on(line, number)
            first = first or number
    if binary is not None:
        yield Document(bytes(binary).strip(), first)
    if begun:
        yield begun.cut_off()


def _is_document(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


class _Begun:
    """The document that has begun and has not ended yet; between two lines it may be none."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._line = 0
        self._open = bytearray()
        """The brackets around what comes next, the innermost last."""
        self._last = 0
        """The last character that is not whitespace; of a string, its opening quote."""
        self._spoilt = False
        """Whether there is something outside of all brackets, beside which no bracket may stand."""

    def __bool__(self) -> bool:
        return bool(self._open)

    def is_cut_off_by(self, line: bytes) -> bool:
        """Whether a line can only begin another document: with an object where JSON has no place for a value."""
        if not line.startswith(b"{") or not self._open:
            return False
        in_array = self._open[-1] == ord("[")
        return self._last not in (b"[," if in_array else b":")

    def cut_off(self) -> Document:
        """The document as far as it has come."""
        self._open.clear()
        return self._ended()

    def go_on(self, line: bytes, number: int) -> Iterator[Document]:
        """The documents that end on a line; one that does not is what has begun from now on."""
        begin = 0
        for end in self._ends_on(line):
            self._add(line[begin:end], number)
            yield self._ended()
            begin = end
        if self._open:
            self._add(line[begin:], number)

    def _ends_on(self, line: bytes) -> list[int]:
        """Where documents end on a line: each where its brackets are closed, but all at once if something else stands
        beside them. Of `{"a":1},{"b":2}` nobody knows what it was meant to be."""
        ends = []
        at = 0
        for token in _TOKEN.finditer(line):
            begin = token.start()
            self._last = line[begin]
            if not self._open and (self._last not in _OPENING or line[at:begin].strip()):
                self._spoilt = True
            at = token.end()
            if self._last in _OPENING:
                self._open.append(self._last)
            # A bracket that fits nothing closes nothing, lest what is inside of a broken document be taken for events.
            elif self._open and self._open[-1] == _OPENED_BY.get(self._last):
                self._open.pop()
                if not self._open:
                    ends.append(at)
        if rest := line[at:].strip():
            self._last = rest[-1]
            self._spoilt |= not self._open
        if self._spoilt:
            return [] if self._open else [len(line)]
        return ends

    def _add(self, piece: bytes, number: int) -> None:
        if not self._pieces:
            self._line = number
        self._pieces.append(piece)

    def _ended(self) -> Document:
        document = Document(b"".join(self._pieces).strip(), self._line)
        self._pieces.clear()
        self._spoilt = False
        return document
