"""Reads events from files and reports their problems, for the commands `check` and `publish`."""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click
import orjson

from bridge.app import load_schemas
from bridge.cli.common.documents import Document, json_location, lines_of
from bridge.cli.common.options import complete_type, warn_of_schemas
from bridge.config.settings import Settings
from bridge.contract.body_format import diagnose
from bridge.contract.catalog import is_reserved
from bridge.contract.pipeline import Event, Pipeline, Reason, Rejected
from bridge.contract.text import from_system, printable
from bridge.errors import ConfigurationError, shown_argument

Callback = TypeVar("Callback", bound=Callable[..., object])


def type_option(command: Callback) -> Callback:
    """Adds the option `--type` to a command, with the parameter `update_type`."""
    return click.option(
        "--type",
        "update_type",
        shell_complete=complete_type,
        metavar="TYPE",
        help="The update type of all events. Without it, an event has the type that it names, or else that of its "
        "exchange.",
    )(command)


def files_argument(command: Callback) -> Callback:
    """Adds an argument for file names to a command, with the parameter `files`.

    Each file is opened only once, because it may be a pipe.
    """
    return click.argument(
        "files",
        type=click.Path(exists=True, dir_okay=False, allow_dash=True),
        nargs=-1,
        default=["-"],
        metavar="[FILE|-]...",
    )(command)


@dataclass(frozen=True, slots=True)
class EventFile:
    """A file of events."""

    name: str
    """The name of the file as the user gave it. The name `-` stands for standard input."""
    lines: Iterable[bytes]
    update_type: str | None
    """The type of all events in the file, or None if each event can have its own type."""
    default_type: str
    """The type of each event that does not name its own type. This is the default type of the event's exchange."""

    def event(self, document: Document) -> Event:
        """Returns the event that a bridge would receive if this document of the file were published."""
        return Event(document.body, self.update_type, self.default_type, None)


def read_lines(name: str) -> Iterator[bytes]:
    """Yields the lines of a file, or of standard input for `-`. Raises ConfigurationError if the file can't be read."""
    try:
        if name == "-":
            if sys.stdin is None:
                raise ConfigurationError(["-: can't be read: standard input is closed"])
            stdin = sys.stdin.buffer
            yield from lines_of(getattr(stdin, "raw", stdin))
        else:
            with Path(name).open("rb", buffering=0) as file:
                yield from lines_of(file)
    except OSError as error:
        raise ConfigurationError([f"{shown_argument(name)}: can't be read: {error.strerror}"]) from error


def load_pipeline(settings: Settings, update_type: str | None) -> Pipeline:
    """Returns the pipeline of a bridge, and prints warnings about the schemas. Raises ConfigurationError."""
    schemas = load_schemas(settings)
    warn_of_schemas(schemas)
    if update_type is not None and is_reserved(update_type):
        raise ConfigurationError(
            [f"--type {shown_argument(update_type)}: this type is reserved for the bridge's own messages"]
        )
    if update_type is not None and update_type not in schemas.types:
        known = ", ".join(sorted(schemas.types))
        hint = "" if settings.schemas else "; BRIDGE_SCHEMAS, the folder for your own types, is not set"
        raise ConfigurationError(
            [f"--type {shown_argument(update_type)}: there is no schema for this type; known: {known}{hint}"]
        )
    return Pipeline(schemas, settings.max_message_bytes)


def exchange_for(settings: Settings, update_type: str | None) -> tuple[str, str]:
    """Returns the exchange for this type, or else the first exchange, together with that exchange's default type."""
    exchanges = list(settings.exchanges.items())
    return next((each for each in exchanges if each[1] == update_type), exchanges[0])


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of an event, and its place in a file."""

    file: str
    """The name of the file as the user gave it."""
    line: int
    """The line of the problem in the file, counted from 1."""
    column: int | None
    """The column of the problem in characters, counted from 1, or None if the event is JSON."""
    pointer: str
    """A JSON Pointer into the event.

    The pointer is empty if the problem concerns the whole event, or if the event is not JSON.
    """
    reason: Reason
    detail: str
    """A description of the problem, without its place in the event."""
    schema: str
    """The `$id` of the schema that the event violates, or an empty text if the event violates no schema."""

    def as_text(self) -> str:
        """One line: `events.ndjson:3: /systemId: the member 'systemId' is missing [schema-violation]`."""
        column = "" if self.column is None else f"{self.column}:"
        pointer = f"{self.pointer}: " if self.pointer else ""
        return f"{printable(self.file)}:{self.line}:{column} {pointer}{self.detail} [{self.reason}]"

    def as_json(self) -> str:
        """One line with a JSON object.

        The object always has all members: `column` is null if the problem has no column, and `schema` is null if it has
        no schema.
        """
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


def problems(file: EventFile, document: Document, pipeline: Pipeline) -> Iterator[Problem]:
    """Yields all problems of an event, or nothing for a valid event."""
    for rejected in pipeline.problems(file.event(document)):
        yield _problem(file.name, document, rejected)


def _problem(name: str, document: Document, rejected: Rejected) -> Problem:
    if rejected.reason is Reason.NOT_JSON:
        try:
            orjson.loads(document.body)
        except orjson.JSONDecodeError as error:
            found = diagnose(document.body, error)
            # This line number is counted in the whole file, not in the document.
            line = document.line + found.line - 1
            return Problem(name, line, found.column, "", rejected.reason, found.text, "")
    # The detail begins with the pointer if the problem is a violation of a schema. The pointer is removed here.
    detail = rejected.detail.removeprefix(f"{rejected.pointer}: ") if rejected.pointer else rejected.detail
    line = document.line + json_location(document.body, rejected.pointer)
    return Problem(name, line, None, rejected.pointer, rejected.reason, detail, rejected.schema)
