"""Reads the conformance vectors of `schemas/vectors` in the same way as a client in another language."""

import base64
from collections.abc import Set
from dataclasses import dataclass
from functools import cache
from typing import Any

import orjson

from bridge.contract.catalog import PACKAGED
from bridge.contract.pipeline import Event, Reason

FOLDER = PACKAGED / "vectors"
EVENTS = "events"
"""The file of complete events. Every other file of vectors is named after its schema."""

DEFAULT_TYPE = "killmail"
"""The exchange's default type for a complete event whose vector names no default type."""


@dataclass(frozen=True, slots=True)
class Vector:
    """A vector, including the members that its file gives once for all vectors."""

    file: str
    name: str
    members: dict[str, Any]
    type: str | None
    """The update type of the value, or None if the file's values are not events."""

    @property
    def valid(self) -> bool:
        return bool(self.members["valid"])

    @property
    def pointer(self) -> str | None:
        """The JSON Pointer to what is wrong in the value, or None if the vector is valid or several parts are wrong."""
        pointer: str | None = self.members.get("pointer")
        return pointer

    @property
    def published(self) -> bool:
        """Whether the vector is an event, which the bridge accepts or rejects."""
        return self.file == EVENTS or self.type is not None

    @property
    def schema(self) -> str | None:
        """The name of the schema for the value, or None if the event is rejected before it is validated."""
        name: str | None = self.members.get("schema") if self.file == EVENTS else self.file
        return name

    @property
    def at(self) -> str:
        """The JSON Pointer to the part that the schema validates."""
        pointer: str = self.members.get("at", "")
        return pointer

    @property
    def event(self) -> Event:
        """The event to publish."""
        members = self.members
        if self.file != EVENTS:
            return Event(orjson.dumps(members["value"]), self.type, None, None)
        if "event" in members:
            body = orjson.dumps(members["event"])
        elif "body" in members:
            body = members["body"].encode()
        else:
            body = base64.b64decode(members["base64"], validate=True)
        properties = members.get("properties", {})
        return Event(
            body, properties.get("type"), members.get("default", DEFAULT_TYPE), properties.get("content_encoding")
        )

    @property
    def validated(self) -> tuple[str, bytes] | None:
        """The name of a schema and the JSON text that it validates, or None if no text is validated."""
        if self.schema is None:
            return None
        if self.at:
            return self.schema, orjson.dumps(resolve(orjson.loads(self.event.body), self.at))
        return self.schema, self.event.body

    def agrees(self, pointers: Set[str]) -> bool:
        """Returns whether a validator that finds violations at these pointers agrees with the vector.

        In a valid vector, the validator must find no violation. In an invalid vector, it must find a violation: at the
        vector's pointer, if the vector has one.

        If the event is rejected as a placeholder, the violations may also be below the pointer.
        """
        if self.valid or self.pointer is None:
            return self.valid == (not pointers)
        here = self.pointer.removeprefix(self.at)
        if self.members.get("reason") == Reason.PLACEHOLDER:
            return bool(pointers) and all(f"{pointer}/".startswith(f"{here}/") for pointer in pointers)
        return pointers == {here}

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"


@cache
def load(name: str) -> tuple[dict[str, Any], list[Vector]]:
    """Returns the content of a file, and its vectors."""
    content: dict[str, Any] = orjson.loads((FOLDER / f"{name}.json").read_bytes())
    return content, [Vector(name, each["name"], each, content.get("type")) for each in content["vectors"]]


def everything() -> list[Vector]:
    """Returns all vectors of all files."""
    return [vector for file in sorted(FOLDER.glob("*.json")) for vector in load(file.stem)[1]]


def steps(pointer: str) -> list[str]:
    """Returns the steps of a JSON Pointer (RFC 6901)."""
    return [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]


def resolve(document: Any, pointer: str) -> Any:
    """Returns the value at a JSON Pointer.

    Raises KeyError, IndexError or TypeError if the document has no such value.
    """
    for step in steps(pointer):
        document = document[int(step)] if isinstance(document, list) else document[step]
    return document
