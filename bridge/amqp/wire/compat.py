"""Works around faults and missing features of pamqp, aiormq and aio-pika.

Only this module of `bridge.amqp` touches the internals of pamqp, aiormq and aio-pika. A comment at each workaround says
why it is needed, and for which version of the library. `test_compat.py` has a test for each workaround. The test of a
workaround fails as soon as the workaround is no longer needed.
"""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import cast

import aiormq
from aio_pika import Connection as PikaConnection
from aio_pika.abc import ConnectionParameter
from pamqp import commands, decode, frame
from pamqp.header import ContentHeader

from bridge.amqp.wire.fast_channel import BODY, FRAME, FRAME_END, OVERHEAD
from bridge.amqp.wire.properties import short_string

# Decoding of properties (pamqp 4.0)

# pamqp raises an error for a value that it can't represent: a timestamp after the year 9999, text that is not UTF-8, or
# a deeply nested table. If pamqp raises an error, aiormq closes the connection, and the broker delivers the message
# again. If a single publisher sent timestamps in microseconds, the bridge could never consume again. The bridge does
# not need the values that pamqp can't represent.

Decoder = Callable[[bytes], tuple[int, object]]


def install_lenient_decoders() -> None:
    """Replaces decoders of pamqp for the whole process. Only the first call has an effect.

    An unreadable timestamp or table becomes None. In text, each byte that is not UTF-8 becomes a question mark.
    """
    decoders = cast("dict[str, Decoder]", decode.METHODS)
    if decoders["shortstr"] is short_string:
        return
    decoders["shortstr"] = short_string
    decoders["timestamp"] = _lenient(decoders["timestamp"], lambda value: 8)
    # A table with an unreadable entry is skipped as a whole, because nothing shows where the entry ends.
    decoders["table"] = _lenient(decoders["table"], lambda value: 4 + int.from_bytes(value[:4], "big"))


def _lenient(strict: Decoder, size: Callable[[bytes], int]) -> Decoder:
    """Returns a decoder like `strict`, except that it skips the `size(value)` bytes of an unreadable value."""

    def decoder(value: bytes) -> tuple[int, object]:
        try:
            return strict(value)
        # ValueError includes UnicodeDecodeError. Nested tables may exceed the recursion limit.
        except (ValueError, OverflowError, OSError, RecursionError):
            return size(value), None

    return decoder


# The transport of a connection (aio-pika 10.2)

# The parameter `transport_factory` is accepted by aiormq, but aio-pika does not pass it on, because aio-pika does not
# declare this parameter. Without its own transport factory, the bridge can't read deliveries before aiormq reads them,
# and can't abort a connection.


class Connection(PikaConnection):
    """A connection of aio-pika that takes the parameter `transport_factory`."""

    PARAMETERS = (
        *PikaConnection.PARAMETERS,
        ConnectionParameter("transport_factory", parser=lambda factory: factory, is_kwarg=True),
    )


# Heartbeats (aiormq 7.2)

# aiormq closes a connection if the broker sends no frame for three heartbeats. If a machine is paused, the bridge and
# the broker on it freeze together, and the broker sends nothing while it is frozen. Without a workaround, aiormq would
# close the connection as soon as the bridge and the broker run again. When a connection is closed, the broker deletes
# the connection's exclusive queue with all its events.

LATE_INTERVALS = 2
"""The number of intervals by which a heartbeat check may be late.

A heartbeat check that is later than this does not close the connection.
"""


class _FreezeTolerantConnection(aiormq.connection.Connection):
    """A connection that restarts its heartbeat timeout if a heartbeat check comes too late."""

    checked_at_s: float
    running_since_s: float

    @property
    def is_connection_was_stuck(self) -> bool:
        """True if the broker has sent no frame for too long.

        In each heartbeat interval, aiormq reads this property twice.
        """
        now_s = self.loop.time()
        interval_s = max(1, self.heartbeat_timeout // 2)
        if now_s - self.checked_at_s > (1 + LATE_INTERVALS) * interval_s:
            self.running_since_s = now_s
        self.checked_at_s = now_s
        grace_s = (self.heartbeat_timeout + 1) * self.HEARTBEAT_GRACE_MULTIPLIER
        return super().is_connection_was_stuck and now_s - self.running_since_s > grace_s


def tolerate_freezes(connection: aiormq.abc.AbstractConnection) -> None:
    """Makes the heartbeat timeout of an open connection ignore the time in which the bridge was frozen."""
    if isinstance(connection, aiormq.connection.Connection):
        # aio-pika has no parameter for the class of its aiormq connection.
        connection.__class__ = _FreezeTolerantConnection
        assert isinstance(connection, _FreezeTolerantConnection)
        connection.checked_at_s = connection.loop.time()
        connection.running_since_s = float("-inf")


# Blocked connections (aiormq 7.2)

# A broker that is short of memory or disk blocks connections that publish, maybe for hours. When a connection is
# blocked, aiormq only logs the block and waits until it ends. There is no callback in aiormq for `connection.blocked`
# and `connection.unblocked`.

_ON_BLOCKED, _ON_UNBLOCKED = (f"_Connection__handle_connection_{event}" for event in ("blocked", "unblocked"))


def observe_blocked(connection: aiormq.abc.AbstractConnection, observer: Callable[[str | None], None]) -> None:
    """Calls `observer` with the broker's reason when the connection is blocked, and with None when the block ends.

    If another version of aiormq uses other names for its handlers, `observer` is never called. The bridge then notices
    a block only because confirms are missing.
    """
    handle_blocked = getattr(connection, _ON_BLOCKED, None)
    handle_unblocked = getattr(connection, _ON_UNBLOCKED, None)
    if handle_blocked is None or handle_unblocked is None:
        return

    async def on_blocked(blocked: commands.Connection.Blocked) -> None:
        observer(str(blocked.reason))
        await handle_blocked(blocked)

    async def on_unblocked(unblocked: commands.Connection.Unblocked) -> None:
        observer(None)
        await handle_unblocked(unblocked)

    setattr(connection, _ON_BLOCKED, on_blocked)
    setattr(connection, _ON_UNBLOCKED, on_unblocked)


# Refused connections (aiormq 7.2)

# If the broker closes a connection instead of opening the virtual host, aiormq raises an error without the broker's
# text: the error contains only the `repr` of the close frame. The close frame itself can be found as a local variable
# in the error's traceback.


def close_frame_of(error: BaseException) -> commands.Connection.Close | None:
    """Returns the frame with which the broker refused to open the connection, or None if there was no such frame."""
    step = error.__traceback__
    while step is not None:
        found = step.tb_frame.f_locals.get("frame")
        if isinstance(found, commands.Connection.Close):
            return found
        step = step.tb_next
    return None


# Large messages (aiormq 7.2)

# aiormq copies a body three times before it sends the first byte: it splits the body, encodes all frames, and joins
# them. `publish_in_pieces` publishes a large body in pieces. The function changes the channel's state in the same way
# as aiormq's `basic_publish`. Between two pieces, aiormq may send frames of other channels, but no other frame of the
# same channel (AMQP 0-9-1, section 4.2.6).

LARGE = 1024 * 1024
"""A body of at least this size, in bytes, is published in pieces. Each of these pieces also has about this size."""


async def publish_in_pieces(
    channel: aiormq.abc.AbstractChannel,
    body: bytes,
    exchange: str,
    routing_key: str,
    properties: commands.Basic.Properties,
) -> None:
    """Publishes a message with the flag `mandatory`, and waits for the confirm. Raises the errors of `basic_publish`.

    Even if the caller is cancelled, the whole message is sent, because the broker closes a connection on which a
    message is incomplete.
    """
    assert isinstance(channel, aiormq.Channel)
    lock = AsyncExitStack()
    await lock.enter_async_context(channel.lock)
    sending = _publish(channel, lock, body, exchange, routing_key, properties)
    publishing = asyncio.create_task(sending, name="publish")
    publishing.add_done_callback(_retrieve_exception)
    try:
        await asyncio.shield(publishing)
    finally:
        # If publishing fails, the task refers to the error, and the error's traceback refers to this stack frame. If
        # the frame also referred to the task, this reference cycle would keep the body in memory.
        del publishing


async def _publish(
    channel: aiormq.Channel,
    lock: AsyncExitStack,
    body: bytes,
    exchange: str,
    routing_key: str,
    properties: commands.Basic.Properties,
) -> None:
    """Sends the message, releases the channel's lock, and waits for the confirm."""
    # aiormq recognizes a returned message by its message id.
    message_id = properties.message_id = properties.message_id or uuid.uuid4().hex
    method = commands.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=True)
    header = ContentHeader(body_size=len(body), properties=properties)
    async with lock:
        channel.delivery_tag += 1
        tag = channel.delivery_tag
        confirmation = channel.create_future()
        channel.confirmations[tag] = confirmation
        channel.message_id_delivery_tag[message_id] = tag
        await _send(channel, frame.marshal(method, channel.number) + frame.marshal(header, channel.number))
        await _send_body(channel, body)
    try:
        await confirmation
    finally:
        if channel.message_id_delivery_tag.get(message_id) == tag:
            del channel.message_id_delivery_tag[message_id]
        del confirmation  # breaks a reference cycle, as in publish_in_pieces


async def _send_body(channel: aiormq.Channel, body: bytes) -> None:
    # A broker without a frame limit announces the limit 0. The value of `max_content_size` is then negative, because
    # aiormq subtracts the size of an empty frame from the limit.
    content_size = channel.max_content_size if channel.max_content_size > 0 else LARGE
    # This function is separate from `_publish`, because otherwise the traceback of a missing confirm would keep the
    # last piece in memory.
    for piece in _pieces(channel.number, body, content_size):
        await _send(channel, piece)


async def _send(channel: aiormq.Channel, frames: bytes) -> None:
    drained = channel.create_future()
    await channel.write_queue.put(aiormq.abc.ChannelFrame(payload=frames, should_close=False, drain_future=drained))
    await drained


def _pieces(number: int, body: bytes, content_size: int) -> Iterator[bytes]:
    """Yields the frames of a body, joined into pieces of about LARGE bytes."""
    view, end = memoryview(body), bytes([FRAME_END])
    piece_size = max(1, LARGE // (content_size + OVERHEAD)) * content_size
    for first in range(0, len(body), piece_size):
        parts: list[bytes | memoryview] = []
        for at in range(first, min(first + piece_size, len(body)), content_size):
            content = view[at : min(at + content_size, len(body))]
            parts += [FRAME.pack(BODY, number, len(content)), content, end]
        yield b"".join(parts)


def _retrieve_exception(publishing: asyncio.Task[None]) -> None:
    """Retrieves the exception, because asyncio would otherwise log it if the caller was cancelled."""
    if not publishing.cancelled():
        publishing.exception()
