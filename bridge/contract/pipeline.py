"""From an event to an update: bytes and properties in, Accepted or Rejected out, never an exception for any input.

What is done with either is for others to decide: this file must never know about deliveries, clients or time.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import orjson

from bridge.contract import forms
from bridge.contract.catalog import NO_TYPES, Catalog, Identity, Schema, Violation, is_reserved
from bridge.contract.envelope import wrap
from bridge.contract.text import printable

ENVELOPE_MEMBERS = frozenset({"type", "data", "timestamp"})
ENVELOPE_BYTES = 1024
"""What an update may have beyond its event: the envelope's own members."""
AMQP_1_0 = "amqp-1.0"
"""The `type` that RabbitMQ gives to what was sent by AMQP 1.0, and not as bytes in a data section."""

PLAIN_ENCODINGS = frozenset({"", "identity", "utf-8", "utf8"})


class Reason(StrEnum):
    """Why an event can't become an update: the value of `x-reject-reason`, and a metric's label."""

    NOT_JSON = "not-json"
    TOO_LARGE = "too-large"
    UNKNOWN_TYPE = "unknown-type"
    SCHEMA_VIOLATION = "schema-violation"
    PLACEHOLDER = "placeholder"
    UNSUPPORTED_ENCODING = "unsupported-encoding"
    INTERNAL_ERROR = "internal-error"


class Event(NamedTuple):
    """What came in: a message's body and what its properties say of it.

    A tuple, as Accepted is: a frozen dataclass takes three times as long to make, for each event again.
    """

    body: bytes
    type: str | None
    """The message's own `type` property."""
    default_type: str | None
    """What the exchange carries where the message does not say."""
    content_encoding: str | None


class Accepted(NamedTuple):
    """A valid update, ready to be sent."""

    type: str
    payload: bytes
    """The envelope as JSON: what every client gets."""
    identity: Identity | None
    data: object
    """The update's data as Python values: what a filter is asked about."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """An event that can't become an update, and why, for its publisher to read."""

    reason: Reason
    detail: str
    """One sentence: printable and bounded."""
    pointer: str = ""
    """JSON Pointer into the event; empty for the event as a whole."""
    schema: str = ""
    """The `$id` of the schema that was broken, where it was one."""


@dataclass(slots=True)
class _Reading:
    """A decoded event: what it would be, and what has to be held against which schema before it is that."""

    type: Schema
    schema: Schema
    document: object
    pointer: str
    """JSON Pointer to the document, in the event."""
    foreign: forms.Foreign | None


class Pipeline:
    """Decodes, unwraps, validates, converts and wraps events by the schemas of a catalog."""

    def __init__(self, catalog: Catalog, max_message_bytes: int) -> None:
        self._types = catalog.types
        self._forms = catalog.forms
        self._max_message_bytes = max_message_bytes
        self._max_update_bytes = max_message_bytes + ENVELOPE_BYTES

    def process(self, event: Event, now_ms: int) -> Accepted | Rejected:
        """The event's fate; `now_ms` (Unix milliseconds) becomes the update's timestamp."""
        reading = self._read(event)
        if isinstance(reading, Rejected):
            return reading
        name = reading.type.name
        payload = self._written(reading, now_ms)
        if isinstance(payload, Rejected):
            return payload
        violation = reading.schema.violation(reading.document)
        if violation is not None:
            return _violated(reading, violation)
        if reading.foreign is None:
            return Accepted(name, payload, reading.type.identity_of(reading.document), reading.document)
        data = forms.convert(reading.foreign, now_ms)
        return Accepted(name, wrap(name, data, now_ms), reading.type.identity_of(data), data)

    def problems(self, event: Event) -> list[Rejected]:
        """Everything that is wrong with the event, where `process` names the first; empty where it is valid."""
        reading = self._read(event)
        if isinstance(reading, Rejected):
            return [reading]
        payload = self._written(reading, 0)
        if isinstance(payload, Rejected):
            return [payload]
        return [_violated(reading, violation) for violation in reading.schema.violations(reading.document)]

    def _written(self, reading: _Reading, now_ms: int) -> bytes | Rejected:
        """The document in an envelope: the update itself, where it is no foreign form.

        Before validation in any case: this bounds the depth of what the validator walks through.
        """
        try:
            payload = wrap(reading.type.name, reading.document, now_ms)
        except TypeError:
            return _TOO_DEEP
        if len(payload) > self._max_update_bytes:
            # 1e15, published in 4 bytes, is delivered in 18.
            return Rejected(Reason.TOO_LARGE, f"written out in full, the event has {len(payload)} bytes")
        return payload

    def _read(self, event: Event) -> _Reading | Rejected:
        """Decodes the body, takes it out of its envelope, and finds out what it is."""
        encoding = event.content_encoding
        if encoding is not None and encoding.lower() not in PLAIN_ENCODINGS:
            return Rejected(
                Reason.UNSUPPORTED_ENCODING,
                f"content_encoding is {printable(encoding, 40)!r}; publish plain UTF-8 JSON",
            )
        if len(event.body) > self._max_message_bytes:
            return Rejected(
                Reason.TOO_LARGE,
                f"the body has {len(event.body)} bytes; BRIDGE_MAX_MESSAGE_BYTES allows {self._max_message_bytes}",
            )
        try:
            data = orjson.loads(event.body)
        except orjson.JSONDecodeError as error:
            if event.type == AMQP_1_0:
                return Rejected(Reason.UNSUPPORTED_ENCODING, _ENCODED)
            return Rejected(Reason.NOT_JSON, _not_json(event.body, error))

        name, pointer = None if event.type in NO_TYPES else event.type, ""
        if (
            isinstance(data, dict)
            and "data" in data
            and isinstance(data.get("type"), str)
            and data.keys() <= ENVELOPE_MEMBERS
        ):
            wrapped_type: str = data["type"]
            if name is not None and name != wrapped_type:
                return Rejected(
                    Reason.SCHEMA_VIOLATION,
                    f"the envelope says {printable(wrapped_type, 80)!r}, "
                    f"the message's type property {printable(name, 80)!r}",
                    "/type",
                )
            name, data, pointer = wrapped_type, data["data"], "/data"
        if name is None:
            name = event.default_type
        update_type = self._types.get(name) if name is not None else None
        if update_type is None:
            return Rejected(Reason.UNKNOWN_TYPE, self._unknown(name), "/type" if pointer else "")
        if name == forms.UPDATE_TYPE and isinstance(data, dict):
            return self._recognised(update_type, data, pointer)
        return _Reading(update_type, update_type, data, pointer, None)

    def _recognised(self, update_type: Schema, data: dict[str, object], pointer: str) -> _Reading | Rejected:
        """A killmail's data, in whichever form it came."""
        found = forms.recognise(data)
        schema = self._forms.get(found.form) if found is not None else None
        if found is None or schema is None:
            return _Reading(update_type, update_type, data, pointer, None)
        pointer += found.pointer
        if isinstance(found, forms.Placeholder):
            return Rejected(Reason.PLACEHOLDER, found.detail, pointer, schema.schema_id)
        return _Reading(update_type, schema, found.document, pointer, found)

    def _unknown(self, name: str | None) -> str:
        known = ", ".join(sorted(self._types))
        if name is None:
            return f"the message has no type property and its exchange no default type; known types: {known}"
        if name in self._forms:
            return f"{name} is a form of a killmail, not an update type: publish it with the type {forms.UPDATE_TYPE}"
        if is_reserved(name):
            return (
                f"the type {printable(name, 80)!r} is reserved for messages of the bridge itself; known types: {known}"
            )
        return f"there is no schema for the type {printable(name, 80)!r}; known types: {known}"


def _not_json(body: bytes, error: orjson.JSONDecodeError) -> str:
    if not body:
        return "the body is empty"
    try:
        body.decode()
    except UnicodeDecodeError as broken:
        return f"the body is not UTF-8: byte {broken.start} can't be read"
    return f"the body is not JSON: {printable(str(error))}"


_ENCODED = (
    "the body is an AMQP 1.0 value or sequence in AMQP's own encoding; send the JSON as bytes, in a data section "
    "(rhea: rhea.message.data_section(buffer); proton: Message(inferred=True, body=bytes))"
)

_TOO_DEEP = Rejected(Reason.NOT_JSON, "the event is nested too deeply (about 250 levels are allowed)")


def _violated(reading: _Reading, violation: Violation) -> Rejected:
    pointer = reading.pointer + violation.pointer
    return Rejected(
        Reason.SCHEMA_VIOLATION,
        f"{pointer or 'the event'}: {violation.sentence}",
        pointer,
        reading.schema.schema_id,
    )
