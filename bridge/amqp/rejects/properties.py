"""Converts the properties of an event to those of a rejected event (with the reason in headers), and back.

The properties of a rejected event must fit into one frame (AMQP 0-9-1, section 4.2.6.1). If the properties did not fit
into one frame, the broker would close the connection at each attempt to publish the event. Headers that don't fit are
omitted, and an additional header names them. This module does no I/O, except that it reads the clock.
"""

import uuid
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from pamqp import commands, encode
from pamqp.common import FieldTable
from pamqp.header import ContentHeader

from bridge.amqp.consume.delivery_counts import DELIVERY_COUNT
from bridge.contract.pipeline import Rejected
from bridge.contract.text import printable

HEADER_PREFIX = "x-reject-"
"""The prefix of the names of all headers that the bridge adds."""

DELIVERY_HEADERS = frozenset({DELIVERY_COUNT, "x-acquired-count", "x-stream-offset"})
"""Headers that a quorum queue or a stream adds to a delivery. These headers did not come from the event's publisher."""

FRAME_OVERHEAD = 8
"""The number of bytes that a frame has in addition to its payload."""

OMITTED_HEADER = "x-reject-headers"
"""The name of the header that lists the omitted headers."""

MAX_NAME_BYTES = 128
"""The maximum size of a header's name, in bytes. Longer names are truncated by pamqp."""

_OMITTED = "omitted, because they can't be published again: "
_MAX_NAMES_BYTES = 400
"""The maximum size of the list of omitted headers, in bytes."""
_MORE = " and 12345678 more"

_TABLE_OVERHEAD = 4
"""The number of bytes that a field table has in addition to its headers."""

_MAX_REASON_CHARACTERS = 200
"""The length to which each reason is shortened if the frame has no room for the full reasons."""


def reject_properties(
    original: commands.Basic.Properties, exchange: str, rejected: Rejected, instance: str, frame_max: int
) -> commands.Basic.Properties:
    """Returns the properties with which to publish a rejected event.

    The event came from `exchange` with the `original` properties.

    `frame_max` is the size in bytes of the largest frame that the connection allows.
    """
    reasons: dict[str, Any] = {
        "x-reject-reason": rejected.reason.value,
        "x-reject-detail": rejected.detail,
        "x-reject-pointer": rejected.pointer,
        "x-reject-schema": rejected.schema,
        "x-reject-exchange": exchange,
        "x-reject-instance": instance,
        "x-reject-time": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    values = {name: getattr(original, name) for name in commands.Basic.Properties.attributes()}
    # Three properties are turned into headers: the broker would refuse a foreign user_id, libraries can't send a
    # cluster_id, and an expiration would remove the rejected event.
    for name in ("user_id", "cluster_id", "expiration"):
        if values[name]:
            reasons[f"{HEADER_PREFIX}{name.replace('_', '-')}"] = values[name]
        values[name] = "" if name == "cluster_id" else None
    # If a message had no id, aiormq would add an id after the size of the properties was measured.
    message_id = values["message_id"] = values["message_id"] or uuid.uuid4().hex
    if values["delivery_mode"] not in (None, 1, 2):
        values["delivery_mode"] = None
    # The new reasons replace the reasons of an earlier rejection and any reasons that a publisher has forged.
    own = {name: value for name, value in (original.headers or {}).items() if not name.startswith(HEADER_PREFIX)}
    limit = frame_max - FRAME_OVERHEAD
    with suppress(Exception):  # pamqp may raise any error for a value that it can't encode
        return _with_fitting_headers(values, own, reasons, limit)
    reasons[OMITTED_HEADER] = f"{_OMITTED}the event's own properties"
    minimal = commands.Basic.Properties(
        headers=dict(reasons), message_type=original.message_type, message_id=message_id, delivery_mode=2
    )
    if _size(minimal) > limit:
        minimal.headers = {name: printable(str(value), _MAX_REASON_CHARACTERS) for name, value in reasons.items()}
    return minimal


def original_properties(properties: commands.Basic.Properties, user: str) -> commands.Basic.Properties:
    """Returns the properties that the event had before its rejection. Leaves out a user_id other than `user`."""
    values = {name: getattr(properties, name) for name in commands.Basic.Properties.attributes()}
    headers = properties.headers or {}
    values["cluster_id"] = ""
    values["expiration"] = headers.get(HEADER_PREFIX + "expiration")
    # The broker accepts a user_id only if it is the name of the user who publishes.
    user_id = headers.get(HEADER_PREFIX + "user-id")
    values["user_id"] = user_id if user_id == user else None
    own = {
        name: value
        for name, value in headers.items()
        if not name.startswith(HEADER_PREFIX) and name not in DELIVERY_HEADERS
    }
    values["headers"] = own or None
    return commands.Basic.Properties(**values)


def _with_fitting_headers(
    values: Mapping[str, Any], own: Mapping[str, Any], reasons: Mapping[str, Any], limit: int
) -> commands.Basic.Properties:
    """Returns properties with all reasons and as many of the event's own headers as fit, the smallest first.

    Raises ValueError if even the reasons don't fit. If a value can't be encoded, pamqp may raise any kind of exception.
    """
    with suppress(Exception):
        complete = commands.Basic.Properties(**{**values, "headers": {**own, **reasons}})
        if _size(complete) <= limit and all(len(name.encode()) <= MAX_NAME_BYTES for name in own):
            return complete
    # One header will list the omitted headers. Room is reserved for the longest possible list of omitted headers.
    fixed = {**reasons, OMITTED_HEADER: _OMITTED + "x" * _MAX_NAMES_BYTES + _MORE}
    room = limit - _size(commands.Basic.Properties(**{**values, "headers": fixed}))
    if room < 0:
        raise ValueError("there is no room even for the reasons")
    sizes = {name: size for name, value in own.items() if (size := _header_size(name, value)) is not None}
    kept = set()
    for name in sorted(sizes, key=sizes.__getitem__):
        room -= sizes[name]
        if room < 0:
            break
        kept.add(name)
    omitted = [name for name in own if name not in kept]
    headers: FieldTable = {**{name: own[name] for name in own if name in kept}, **reasons}
    headers[OMITTED_HEADER] = _OMITTED + _listed(omitted)
    return commands.Basic.Properties(**{**values, "headers": headers})


def _listed(names: list[str]) -> str:
    """Returns a text with the first names (as many as _MAX_NAMES_BYTES allows) and the number of the other names."""
    shown: list[str] = []
    room = _MAX_NAMES_BYTES
    for name in names:
        text = printable(name, MAX_NAME_BYTES)
        room -= len(text.encode()) + 2
        if room < 0:
            break
        shown.append(text)
    more = len(names) - len(shown)
    if not more:
        return ", ".join(shown)
    return f"{', '.join(shown)} and {more} more" if shown else f"{more} headers"


def _size(properties: commands.Basic.Properties) -> int:
    return len(ContentHeader(0, 0, properties).marshal())


def _header_size(name: str, value: object) -> int | None:
    """Returns the size of a header in bytes, or None if the header can't be encoded."""
    if len(name.encode()) > MAX_NAME_BYTES:
        return None
    try:
        table = encode.field_table({name: value})  # type: ignore[dict-item]  # a decoded value of any type
    except Exception:
        return None
    return len(table) - _TABLE_OVERHEAD
