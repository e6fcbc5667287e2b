"""The conformance vectors of `schemas/vectors`, read as a client in any language would read them."""

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
"""The file of whole events; each of the others is named for the schema that it is about."""

DEFAULT_TYPE = "killmail"
"""What the exchange of a whole event carries, where the vector does not say."""


@dataclass(frozen=True, slots=True)
class Vector:
    """One vector, and what its file says for all of its vectors."""

    file: str
    name: str
    members: dict[str, Any]
    type: str | None
    """The update type as which the value is published; None in a file of what is never published."""

    @property
    def valid(self) -> bool:
        return bool(self.members["valid"])

    @property
    def pointer(self) -> str | None:
        """Where it is wrong; None where it is not, or in several places of which none comes first."""
        pointer: str | None = self.members.get("pointer")
        return pointer

    @property
    def published(self) -> bool:
        """Whether it is an event, which the bridge has a verdict on."""
        return self.file == EVENTS or self.type is not None

    @property
    def schema(self) -> str | None:
        """The name of the schema that it is held against; None where it is rejected before that."""
        name: str | None = self.members.get("schema") if self.file == EVENTS else self.file
        return name

    @property
    def at(self) -> str:
        """JSON Pointer to what is held against the schema."""
        pointer: str = self.members.get("at", "")
        return pointer

    @property
    def event(self) -> Event:
        """What is published."""
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
    def judged(self) -> tuple[str, bytes] | None:
        """The name of a schema and the JSON text that is held against it; None where there is no such text."""
        if self.schema is None:
            return None
        if self.at:
            return self.schema, orjson.dumps(resolve(orjson.loads(self.event.body), self.at))
        return self.schema, self.event.body

    def agrees(self, pointers: Set[str]) -> bool:
        """Whether a validator says the same: that all is well, or that it is wrong at the pointer and nowhere else.

        Where a killmail should be there is a placeholder: it breaks the schema at the pointer or beneath it.
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
    """A file, whole, and the vectors in it."""
    content: dict[str, Any] = orjson.loads((FOLDER / f"{name}.json").read_bytes())
    return content, [Vector(name, each["name"], each, content.get("type")) for each in content["vectors"]]


def everything() -> list[Vector]:
    """All vectors of all files."""
    return [vector for file in sorted(FOLDER.glob("*.json")) for vector in load(file.stem)[1]]


def steps(pointer: str) -> list[str]:
    """A JSON Pointer's steps (RFC 6901)."""
    return [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]


def resolve(document: Any, pointer: str) -> Any:
    """What a JSON Pointer points at. Raises KeyError, IndexError or TypeError where there is nothing."""
    for step in steps(pointer):
        document = document[int(step)] if isinstance(document, list) else document[step]
    return document
