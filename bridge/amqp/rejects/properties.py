"""What a rejected event is published with: its own properties, and among its headers why it was rejected.

All of them must fit into one frame (AMQP 0-9-1, section 4.2.6.1): the broker closes the connection if they don't, at
each attempt. What is left out is named. This file must never know of connections.
"""

import uuid
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from pamqp import commands, encode
from pamqp.common import FieldTable
from pamqp.header import ContentHeader

from bridge.contract.pipeline import Rejected
from bridge.contract.text import printable

FRAME_OVERHEAD = 8
"""Bytes of a frame beside its payload."""

LEFT_OUT = "x-reject-headers"

LONGEST_NAME = 128
"""Bytes of a header's name, as pamqp writes it: it cuts what is longer."""

_LEFT_OUT = "left out, because they can't be published again: "
_NAMES_LIMIT = 400
"""Bytes of the names of headers that were left out."""
_MORE = " and 12345678 more"

_TABLE_OVERHEAD = 4
"""Bytes of a table beside its headers."""

_SHORT = 200
"""Characters of each reason where there is room for nothing else."""


def reject_properties(
    came: commands.Basic.Properties, exchange: str, rejected: Rejected, instance: str, frame_max: int
) -> commands.Basic.Properties:
    """`came` is what the event came with, from `exchange`; `frame_max` is the largest frame that the connection takes
    (bytes)."""
    reasons: dict[str, Any] = {
        "x-reject-reason": rejected.reason.value,
        "x-reject-detail": rejected.detail,
        "x-reject-pointer": rejected.pointer,
        "x-reject-schema": rejected.schema,
        "x-reject-exchange": exchange,
        "x-reject-instance": instance,
        "x-reject-time": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    values = {name: getattr(came, name) for name in commands.Basic.Properties.attributes()}
    # The broker rejects a user_id of another user, no library sends a cluster_id, and a reject must not expire: they
    # become headers.
    for name in ("user_id", "cluster_id", "expiration"):
        if values[name]:
            reasons[f"x-reject-{name.replace('_', '-')}"] = values[name]
        values[name] = "" if name == "cluster_id" else None
    # aiormq makes one up where there is none, behind the back of whoever has measured the rest.
    message_id = values["message_id"] = values["message_id"] or uuid.uuid4().hex
    if values["delivery_mode"] not in (None, 1, 2):
        values["delivery_mode"] = None
    # The reasons of an earlier rejection, or of a publisher that imitates one, are replaced.
    own = {name: value for name, value in (came.headers or {}).items() if not name.startswith("x-reject-")}
    limit = frame_max - FRAME_OVERHEAD
    with suppress(Exception):  # a value that can be read, but not written: there is no bound to what they raise
        return _fitting(values, own, reasons, limit)
    reasons[LEFT_OUT] = f"{_LEFT_OUT}the event's own properties"
    last = commands.Basic.Properties(
        headers=dict(reasons), message_type=came.message_type, message_id=message_id, delivery_mode=2
    )
    if _size(last) > limit:
        last.headers = {name: printable(str(value), _SHORT) for name, value in reasons.items()}
    return last


def _fitting(
    values: Mapping[str, Any], own: Mapping[str, Any], reasons: Mapping[str, Any], limit: int
) -> commands.Basic.Properties:
    """With as many of the event's own headers as there is room for, the largest left out first."""
    with suppress(Exception):
        everything = commands.Basic.Properties(**{**values, "headers": {**own, **reasons}})
        if _size(everything) <= limit and all(len(name.encode()) <= LONGEST_NAME for name in own):
            return everything
    # The sentence about what is left out is as long as it can get: its room is there in any case.
    fixed = {**reasons, LEFT_OUT: _LEFT_OUT + "x" * _NAMES_LIMIT + _MORE}
    room = limit - _size(commands.Basic.Properties(**{**values, "headers": fixed}))
    if room < 0:
        raise ValueError("there is no room even without them")
    sizes = {name: size for name, value in own.items() if (size := _size_of_header(name, value)) is not None}
    kept = set()
    for name in sorted(sizes, key=sizes.__getitem__):
        room -= sizes[name]
        if room < 0:
            break
        kept.add(name)
    left_out = [name for name in own if name not in kept]
    headers: FieldTable = {**{name: own[name] for name in own if name in kept}, **reasons}
    headers[LEFT_OUT] = _LEFT_OUT + _listed(left_out)
    return commands.Basic.Properties(**{**values, "headers": headers})


def _listed(names: list[str]) -> str:
    """The first of them, in less than _NAMES_LIMIT bytes, and how many more there are."""
    shown: list[str] = []
    room = _NAMES_LIMIT
    for name in names:
        text = printable(name, LONGEST_NAME)
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


def _size_of_header(name: str, value: object) -> int | None:
    """Bytes of one header; None if it can't be written as it came."""
    if len(name.encode()) > LONGEST_NAME:
        return None
    try:
        table = encode.field_table({name: value})  # type: ignore[dict-item]  # what was read, and may be anything
    except Exception:
        return None
    return len(table) - _TABLE_OVERHEAD
