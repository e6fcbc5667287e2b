"""The envelope of all messages to clients: `{type, data, timestamp}`, and `id` for clients that asked for ids."""

from datetime import UTC, datetime

import orjson


def wrap(update_type: str, data: object, timestamp_ms: int) -> bytes:
    """Returns an envelope as compact UTF-8 JSON.

    `timestamp_ms` is the time when the update is sent, in Unix milliseconds. Raises orjson.JSONEncodeError (a
    TypeError) if the data has more than about 250 levels. orjson can parse documents with more levels than it can
    write.
    """
    return orjson.dumps({"type": update_type, "data": data, "timestamp": timestamp_ms})


def unwrap(payload: bytes | memoryview) -> tuple[str, object]:
    """Returns the type and the data of an envelope that `wrap` has created."""
    update = orjson.loads(payload)
    return update["type"], update["data"]


def ending(id: str) -> bytes:  # noqa: A002 - the member's own name
    """Returns the end of an envelope with an id, which replaces the closing brace of an envelope without an id."""
    return b',"id":%b}' % orjson.dumps(id)


def resume(complete: bool, replayed: int, id: str, timestamp_ms: int) -> bytes:  # noqa: A002 - the member's own name
    """Returns the first message to a client that asked for ids.

    This message is followed by the updates after `id`. `replayed` is the number of these updates that follow
    immediately. `complete` is False if the id in the client's request is unknown, or older than the oldest update in
    the log.
    """
    return wrap("resume", {"complete": complete, "replayed": replayed, "id": id}, timestamp_ms)


def gap(since: str, until: str, reason: str, id: str, timestamp_ms: int) -> bytes:  # noqa: A002 - the member's own name
    """Returns the message about a period in which the bridge may have missed events, for clients that asked for ids.

    `reason` is a fixed word such as `broker-away`, because clients must not receive text from the broker. A client that
    resumes after `id` does not get this message again.
    """
    return wrap("gap", {"since": since, "until": until, "reason": reason, "id": id}, timestamp_ms)


def heartbeat(id: str, consuming: bool, timestamp_ms: int) -> bytes:  # noqa: A002 - the member's own name
    """Returns the message that a client with ids has received everything up to `id`.

    `consuming` says whether the bridge has a working broker.
    """
    return wrap("heartbeat", {"id": id, "consuming": consuming}, timestamp_ms)


def close(code: int, reason: str, timestamp_ms: int) -> bytes:
    """Returns the last message of an event stream, which has no close frame.

    `code` and `reason` are those of a close frame. The client must not adopt an id from this message.
    """
    return wrap("close", {"code": code, "reason": reason}, timestamp_ms)


def date_time(timestamp_ms: int) -> str:
    """Formats a time in the same format as `data.timestamp`: `2024-10-22T10:30:00.000Z`."""
    seconds, milliseconds = divmod(timestamp_ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{milliseconds:03d}Z"
