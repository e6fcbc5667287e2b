"""On which line of a document something stands that a JSON Pointer names."""

import json
from bisect import bisect_left
from functools import lru_cache

_SPACE = frozenset(" \t\r\n")


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
        # Numbers stay text: int() refuses more than 4300 digits.
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
def _places(body: bytes) -> _Places:
    # One event may have thousands of violations, and is searched once for all of them.
    return _Places(body.decode())


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] in _SPACE:
        at += 1
    return at
