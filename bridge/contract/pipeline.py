"""Turns an event into an update. The result is an Accepted, or a Rejected with the reason.

The module is pure: it knows neither deliveries nor clients, and reads no clock. The pipeline raises no exception,
whatever an event contains.
"""

from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import NamedTuple

import orjson

from bridge.contract import killmail_formats
from bridge.contract.body_format import PLAIN, diagnose, is_json
from bridge.contract.catalog import NO_TYPES, Catalog, Identity, Schema, SchemaViolation, is_reserved
from bridge.contract.envelope import wrap
from bridge.contract.text import printable
from bridge.contract.violations import BYTES
from bridge.contract.wrappers import ENVELOPE_MEMBERS, Wrapped, broken_envelope, is_node_bytes, wrapped

MAX_PROBLEMS = 1000
"""The maximum number of violations that `Pipeline.problems` lists for an event."""
ENVELOPE_BYTES = 1024
"""The number of bytes by which the members of the envelope can make an update larger than its event."""
AMQP_1_0 = "amqp-1.0"
"""The `type` that RabbitMQ gives to a message published over AMQP 1.0 without a data section."""

PLAIN_ENCODINGS = frozenset({"", "identity", "utf-8", "utf8", "us-ascii", "ascii", "binary", "8bit", "7bit"})
"""The values of `content_encoding` that leave the bytes unchanged. kombu sets `binary` for every body of bytes."""


class Reason(StrEnum):
    """The reason why an event can't become an update.

    The header `x-reject-reason` and the label of a metric use these values.
    """

    NOT_JSON = "not-json"
    TOO_LARGE = "too-large"
    UNKNOWN_TYPE = "unknown-type"
    SCHEMA_VIOLATION = "schema-violation"
    PLACEHOLDER = "placeholder"
    UNSUPPORTED_ENCODING = "unsupported-encoding"
    INTERNAL_ERROR = "internal-error"


class Event(NamedTuple):
    """A published event: the body of a message, and the properties that the pipeline reads.

    Event and Accepted are tuples, because creating a frozen dataclass takes three times as long.
    """

    body: bytes
    type: str | None
    """The message's `type` property."""
    default_type: str | None
    """The default update type of the exchange, for a message without a `type`."""
    content_encoding: str | None


class Accepted(NamedTuple):
    """A valid update, ready to be sent."""

    type: str
    payload: bytes
    """The update as JSON, in the form that clients receive."""
    identity: Identity | None
    data: object
    """The update's data as Python values, which filters need."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """The reason why an event can't become an update, for the publisher of this event."""

    reason: Reason
    detail: str
    """The problem in one sentence, which is printable and of limited length."""
    pointer: str = ""
    """The JSON Pointer to the wrong part of the event, or "" for the event as a whole."""
    schema: str = ""
    """The `$id` of the violated schema, or "" if the event violates no schema."""


@dataclass(slots=True)
class _Reading:
    """A decoded event, before validation."""

    type: Schema
    """The schema of the update's type."""
    schema: Schema
    """The schema that validates the document: the schema of the update's type, or the schema of a source format."""
    document: object
    pointer: str
    """The JSON Pointer from the event to the document."""
    source: killmail_formats.SourceDocument | killmail_formats.Placeholder | None
    """The detected placeholder or document in a source format.

    The value is None for a document that already is the update's data.
    """
    event: object
    """The whole event, decoded."""


class Pipeline:
    """Decodes, unwraps, validates, converts and wraps events with the schemas of a catalog."""

    def __init__(self, catalog: Catalog, max_message_bytes: int) -> None:
        self._types = catalog.types
        self._declared_members = catalog.declared
        self._formats = catalog.source_formats
        self._format_members = frozenset[str]().union(
            *(self._declared(schema.schema_id) for schema in self._formats.values())
        )
        """The members that identify an object as a document in a source format."""
        self._enveloping = frozenset(
            name for name, schema in catalog.types.items() if self._declared(schema.schema_id) >= {"type", "data"}
        )
        """The update types whose data can look like an envelope, because data and envelope share member names."""
        self._max_message_bytes = max_message_bytes
        self._max_update_bytes = max_message_bytes + ENVELOPE_BYTES

    def process(self, event: Event, now_ms: int) -> Accepted | Rejected:
        """Turns an event into an update. `now_ms` (Unix milliseconds) becomes the update's timestamp."""
        reading = self._read(event)
        if isinstance(reading, Rejected):
            return reading
        source, document, update_type = reading.source, reading.document, reading.type
        if source is not None and isinstance(source, killmail_formats.Placeholder):
            return self._placeholder(event, reading, source)
        payload = self._written(reading, now_ms)
        if isinstance(payload, Rejected):
            return payload
        violation = reading.schema.violation(document)
        if violation is not None:
            return self._explained(event, reading) or _violated(reading, violation)
        name = update_type.name
        if source is None:
            return Accepted(name, payload, update_type.identity_of(document), document)
        data = killmail_formats.convert(source, now_ms)
        return Accepted(name, wrap(name, data, now_ms), update_type.identity_of(data), data)

    def problems(self, event: Event) -> list[Rejected]:
        """Returns all problems of an event, or [] for a valid event. `process` returns only the first problem.

        If there are more than `MAX_PROBLEMS` violations, the last item reports that the other violations are not
        listed.
        """
        reading = self._read(event)
        if isinstance(reading, Rejected):
            return [reading]
        if isinstance(reading.source, killmail_formats.Placeholder):
            return [self._placeholder(event, reading, reading.source)]
        payload = self._written(reading, 0)
        if isinstance(payload, Rejected):
            return [payload]
        found = islice(reading.schema.violations(reading.document), MAX_PROBLEMS + 1)
        violations = [_violated(reading, violation) for violation in found]
        if len(violations) > MAX_PROBLEMS:
            more = f"the event has more than {MAX_PROBLEMS:,} violations; the others are not listed"
            violations[MAX_PROBLEMS:] = [Rejected(Reason.SCHEMA_VIOLATION, more, schema=reading.schema.schema_id)]
        explained = self._explained(event, reading) if violations else None
        return violations if explained is None else [explained]

    def _written(self, reading: _Reading, now_ms: int) -> bytes | Rejected:
        """Wraps the document in an envelope. For an event without a source format, this envelope is the update.

        This method is called before each validation, because it limits the depth of the documents that reach the
        validator.
        """
        try:
            payload = wrap(reading.type.name, reading.document, now_ms)
        except TypeError:
            return _TOO_DEEP
        if len(payload) > self._max_update_bytes:
            # An update can be larger than its event: for example, 1e15 has 4 bytes in the event and 18 bytes in the
            # update.
            return Rejected(
                Reason.TOO_LARGE,
                f"the event has {len(payload)} bytes with its numbers written in full; BRIDGE_MAX_MESSAGE_BYTES allows "
                f"{self._max_message_bytes}",
            )
        return payload

    def _read(self, event: Event) -> _Reading | Rejected:
        """Decodes and unwraps the body of an event, and determines the type and the format of the event."""
        encoding = event.content_encoding
        if encoding is not None and encoding not in PLAIN_ENCODINGS and encoding.strip().lower() not in PLAIN_ENCODINGS:
            return Rejected(Reason.UNSUPPORTED_ENCODING, _encoding_words(encoding, event.body))
        body, type_property = event.body, event.type
        if len(body) > self._max_message_bytes:
            return Rejected(
                Reason.TOO_LARGE,
                f"the body has {len(body)} bytes; BRIDGE_MAX_MESSAGE_BYTES allows {self._max_message_bytes}",
            )
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            if type_property == AMQP_1_0:
                return Rejected(Reason.UNSUPPORTED_ENCODING, _ENCODED)
            return Rejected(Reason.NOT_JSON, printable(str(diagnose(body, error))))
        return self._identified(document, type_property, event.default_type)

    def _identified(self, document: object, type_property: str | None, default_type: str | None) -> _Reading | Rejected:
        """Unwraps a decoded event, and determines the type and the format of the event."""
        name, data, pointer = None if type_property in NO_TYPES else type_property, document, ""
        if (
            isinstance(document, dict)
            and "data" in document
            and isinstance(document.get("type"), str)
            and document.keys() <= ENVELOPE_MEMBERS
        ):
            wrapped_type: str = document["type"]
            # The data of some types can look like an envelope, because it has members with the names of an envelope's
            # members. If the data of the event's type can look like an envelope, a member "type" with an unknown update
            # type counts as part of the data.
            if wrapped_type in self._types or (default_type if name is None else name) not in self._enveloping:
                if wrapped_type not in self._types and is_node_bytes(document):
                    return _rejected(Wrapped("", BYTES), Reason.SCHEMA_VIOLATION)
                if name is not None and name != wrapped_type:
                    return Rejected(
                        Reason.SCHEMA_VIOLATION,
                        f"the envelope's type is {printable(wrapped_type, 80)!r}, but the message's type property is "
                        f"{printable(name, 80)!r}; use the same type in both",
                        "/type",
                    )
                name, data, pointer = wrapped_type, document["data"], "/data"
        if name is None:
            name = default_type
        update_type = self._types.get(name) if name is not None else None
        if update_type is None:
            return self._unknown(name, document, pointer)
        if (
            name == killmail_formats.UPDATE_TYPE
            and isinstance(data, dict)
            and (source := killmail_formats.detect(data)) is not None
            and (schema := self._formats.get(source.format)) is not None
        ):
            inner = None if isinstance(source, killmail_formats.Placeholder) else source.document
            return _Reading(update_type, schema, inner, pointer + source.pointer, source, document)
        return _Reading(update_type, update_type, data, pointer, None, document)

    def _explained(self, event: Event, reading: _Reading) -> Rejected | None:
        """Returns, as a Rejected, the wrapper or broken envelope that caused a schema violation, or None."""
        document, pointer = reading.event, ""
        if reading.pointer.startswith("/data") and isinstance(document, dict):
            document, pointer = document["data"], "/data"
        declared = self._declared(reading.schema.schema_id)

        def is_event(value: object) -> bool:
            inner = self._identified(value, event.type, reading.type.name)
            # `_written` fails if the value was parsed from a string and is nested too deeply.
            return isinstance(inner, _Reading) and _is_valid(inner) and isinstance(self._written(inner, 0), bytes)

        if reading.source is None:
            members = self._format_members if reading.type.name == killmail_formats.UPDATE_TYPE else frozenset[str]()
            found = wrapped(document, pointer, declared, is_event, members)
        elif isinstance(document, dict) and is_event(document.get("data")):
            # If `data` is a valid event, the document is an envelope that has a member of a source format as an extra
            # member.
            found = broken_envelope(document, pointer)
        else:
            return None
        return None if found is None else _rejected(found, Reason.SCHEMA_VIOLATION)

    def _placeholder(self, event: Event, reading: _Reading, placeholder: killmail_formats.Placeholder) -> Rejected:
        return self._explained(event, reading) or Rejected(
            Reason.PLACEHOLDER, placeholder.detail, reading.pointer, reading.schema.schema_id
        )

    def _declared(self, schema_id: str) -> frozenset[str]:
        return self._declared_members.get(schema_id, frozenset())

    def _unknown(self, name: str | None, document: object, pointer: str) -> Rejected:
        if name is None and isinstance(document, dict) and (broken := broken_envelope(document, pointer)) is not None:
            return _rejected(broken, Reason.UNKNOWN_TYPE)
        return Rejected(Reason.UNKNOWN_TYPE, self._unknown_words(name), "/type" if pointer else "")

    def _unknown_words(self, name: str | None) -> str:
        known = ", ".join(sorted(self._types))
        if name is None:
            return f"the message has no type property, and its exchange has no default type; known types: {known}"
        if name in self._formats:
            expected = killmail_formats.UPDATE_TYPE
            return f"{name} is a source format of killmails, not an update type: publish it with the type {expected}"
        if is_reserved(name):
            return f"the type {printable(name, 80)!r} is reserved for the bridge's own messages; known types: {known}"
        hint = f"; {_MEDIA_TYPE_HINT}" if name.strip().lower().startswith(_MEDIA_TYPES) else ""
        return f"there is no schema for the type {printable(name, 80)!r}{hint}; known types: {known}"


def _encoding_words(encoding: str, body: bytes) -> str:
    words = f"content_encoding is {printable(encoding, 40)!r}"
    if is_json(body):
        words += ", but the body is plain JSON: do not set content_encoding"
    else:
        words += f": {PLAIN}"
    return f"{words}; {_MEDIA_TYPE_HINT}" if "/" in encoding else words


_MEDIA_TYPE_HINT = "a media type belongs in content_type"
_MEDIA_TYPES = ("application/", "text/", "multipart/", "message/", "image/", "audio/", "video/", "model/")
"""The prefixes of media types.

The bridge compares an unknown type with these prefixes, because a type with a slash is not always a media type.
"""


def _is_valid(reading: _Reading) -> bool:
    return not isinstance(reading.source, killmail_formats.Placeholder) and reading.schema.validator.is_valid(
        reading.document
    )


def _rejected(found: Wrapped, reason: Reason) -> Rejected:
    pointer, text = printable(found.pointer), printable(found.text)
    return Rejected(reason, f"{pointer}: {text}" if pointer else f"the event {text}", pointer)


_ENCODED = (
    "the body is an AMQP 1.0 value or sequence in AMQP's own encoding; send the JSON as bytes, in a data section "
    "(rhea: rhea.message.data_section(buffer); proton: Message(inferred=True, body=bytes))"
)

_TOO_DEEP = Rejected(Reason.NOT_JSON, "the event is nested too deeply (about 250 levels are allowed)")


def _violated(reading: _Reading, violation: SchemaViolation) -> Rejected:
    pointer = reading.pointer + violation.pointer
    words = f"{pointer}: {violation.detail}" if pointer else violation.detail
    if isinstance(reading.source, killmail_formats.SourceDocument):
        words += f" ({reading.source.validated_as})"
    return Rejected(Reason.SCHEMA_VIOLATION, words, pointer, reading.schema.schema_id)
