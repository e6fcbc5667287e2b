"""`edk-bridge check`: what a bridge would say to events, without a broker."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import orjson

from bridge.cli.common.documents import Document, documents
from bridge.cli.common.places import line_of
from bridge.contract.body_format import diagnose
from bridge.contract.pipeline import Event, Pipeline, Reason, Rejected
from bridge.contract.text import from_system, printable


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with an event, and its place in a file."""

    file: str
    """The file's name as it was given."""
    line: int
    """Counted from 1."""
    column: int | None
    """Counted from 1, in characters; None if the event is JSON."""
    pointer: str
    """JSON Pointer into the event; empty for the event as a whole, and for one that is not JSON."""
    reason: Reason
    detail: str
    """What is wrong, without the place."""
    schema: str
    """The `$id` of the schema that the event breaks; empty if it breaks none."""

    def as_text(self) -> str:
        """One line: `events.ndjson:3: /systemId: the member 'systemId' is missing [schema-violation]`."""
        column = "" if self.column is None else f"{self.column}:"
        pointer = f"{self.pointer}: " if self.pointer else ""
        return f"{printable(self.file)}:{self.line}:{column} {pointer}{self.detail} [{self.reason}]"

    def as_json(self) -> str:
        """One line, an object with all members. `column` and `schema` are null if there is none."""
        members = {
            "file": from_system(self.file),
            "line": self.line,
            "column": self.column,
            "pointer": self.pointer,
            "reason": self.reason.value,
            "detail": self.detail,
            "schema": self.schema or None,
        }
        return orjson.dumps(members).decode()


def check(
    lines: Iterable[bytes],
    name: str,
    update_type: str | None,
    default_type: str,
    pipeline: Pipeline,
    say: Callable[[Problem], None],
) -> tuple[int, int]:
    """Says every violation of the events in a file.

    The types are the message's `type` property, where there is one, and that of the exchange. Returns how many events
    there were, and how many of them are invalid.
    """
    events = invalid = 0
    for document in documents(lines):
        events += 1
        problem = None
        for problem in problems(document, name, Event(document.body, update_type, default_type, None), pipeline):
            say(problem)
        invalid += problem is not None
    return events, invalid


def problems(document: Document, name: str, event: Event, pipeline: Pipeline) -> Iterator[Problem]:
    """Everything that is wrong with an event: one that is a document of the file with this name."""
    for rejected in pipeline.problems(event):
        yield _problem(document, name, rejected)


def _problem(document: Document, name: str, rejected: Rejected) -> Problem:
    if rejected.reason is Reason.NOT_JSON:
        try:
            orjson.loads(document.body)
        except orjson.JSONDecodeError as error:
            found = diagnose(document.body, error)
            # The line of the file, not of the document in it.
            line = document.line + found.line - 1
            return Problem(name, line, found.column, "", rejected.reason, found.text, "")
    # A violation's detail begins with its pointer, other reasons' do not.
    detail = rejected.detail.removeprefix(f"{rejected.pointer}: ") if rejected.pointer else rejected.detail
    line = document.line + line_of(document.body, rejected.pointer)
    return Problem(name, line, None, rejected.pointer, rejected.reason, detail, rejected.schema)
