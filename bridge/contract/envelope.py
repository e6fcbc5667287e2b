"""The envelope: what every client receives, `{type, data, timestamp}` in this order, and an `id` where it asked for it.

This file must never know who asked.
"""

from datetime import UTC, datetime

import orjson


def wrap(update_type: str, data: object, timestamp_ms: int) -> bytes:
    """The update as compact UTF-8 JSON.

    `timestamp_ms` is Unix milliseconds, the moment the update is sent. Raises orjson.JSONEncodeError (a TypeError)
    where the data is nested more than about 250 levels deep: orjson reads deeper than it writes.
    """
    return orjson.dumps({"type": update_type, "data": data, "timestamp": timestamp_ms})


def unwrap(payload: bytes | memoryview) -> tuple[str, object]:
    """The type and the data of an update that `wrap` made."""
    update = orjson.loads(payload)
    return update["type"], update["data"]


def ending(id: str) -> bytes:  # noqa: A002 - the member's own name
    """What an update with a fourth member, its id, ends with instead of its last bracket."""
    return b',"id":%b}' % orjson.dumps(id)


def resume(complete: bool, replayed: int, id: str, timestamp_ms: int) -> bytes:  # noqa: A002 - the member's own name
    """The first message to a client that asked for ids: everything after `id` follows, `replayed` of it at once.

    `complete` is False where more came after the id that the client named than is kept, or nobody knows that id.
    """
    return wrap("resume", {"complete": complete, "replayed": replayed, "id": id}, timestamp_ms)


def gap(since: str, until: str, reason: str, timestamp_ms: int) -> bytes:
    """What a client that asked for ids is told where the bridge may have missed events, from one moment to another.

    `reason` is a slug: clients get nothing of the broker's own words.
    """
    return wrap("gap", {"since": since, "until": until, "reason": reason}, timestamp_ms)


def date_time(timestamp_ms: int) -> str:
    """The same moment as the `timestamp` within an update's data has it: `2024-10-22T10:30:00.000Z`."""
    seconds, milliseconds = divmod(timestamp_ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{milliseconds:03d}Z"
