"""Events from a file or a pipe: a JSON document, several of them, or one a line (NDJSON).

Only where each begins and ends is found here; whether it is JSON at all is for the pipeline to say.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import orjson

_SPACE = frozenset(" \t\r\n")


@dataclass(frozen=True, slots=True)
class Document:
    """One event as it stands in its file."""

    body: bytes
    line: int
    """Where it begins, counted from 1."""


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
        if second is None or not second[1].startswith(b"{") or not _is_document(second[1]):
            yield from _of_several_lines([*begun, *filled])
            return
    yield from (Document(line.strip(), number) for number, line in chain(begun, filled))


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
        text = body.decode()
        steps = [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]
        return text.count("\n", 0, _position(text, steps))
    except (ValueError, RecursionError):
        return 0


def _position(text: str, steps: list[str]) -> int:
    decoder = json.JSONDecoder()
    at = _skip(text, 0)
    for step in steps:
        found = None
        is_object = text[at] == "{"
        if not is_object and text[at] != "[":
            return at
        inner, index = _skip(text, at + 1), 0
        while text[inner] not in "}]":
            key = str(index)
            if is_object:
                key, inner = decoder.raw_decode(text, inner)
                inner = _skip(text, _skip(text, inner) + 1)
            if key == step:
                # The last of several with the same name counts.
                found = inner
            inner = _skip(text, decoder.raw_decode(text, inner)[1])
            if text[inner] == ",":
                inner = _skip(text, inner + 1)
            index += 1
        if found is None:
            return at
        at = found
    return at


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] in _SPACE:
        at += 1
    return at
