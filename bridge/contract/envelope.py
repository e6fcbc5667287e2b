"""The envelope: what every client receives, `{type, data, timestamp}` in this order and nothing more."""

from datetime import UTC, datetime

import orjson


def wrap(update_type: str, data: object, timestamp_ms: int) -> bytes:
    """The update as compact UTF-8 JSON.

    `timestamp_ms` is Unix milliseconds, the moment the update is sent. Raises orjson.JSONEncodeError (a TypeError)
    where the data is nested more than about 250 levels deep: orjson reads deeper than it writes.
    """
    return orjson.dumps({"type": update_type, "data": data, "timestamp": timestamp_ms})


def date_time(timestamp_ms: int) -> str:
    """The same moment as the `timestamp` within an update's data has it: `2024-10-22T10:30:00.000Z`."""
    seconds, milliseconds = divmod(timestamp_ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{milliseconds:03d}Z"
