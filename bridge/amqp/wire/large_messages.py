"""Publishes a large message in pieces. aiormq would make three copies of it first, of all of it.

Between two pieces, frames of other channels may go out: only those of the same channel must follow each other
(AMQP 0-9-1, section 4.2.6). It goes beside aiormq's own `basic_publish`, with the channel's public parts.
"""

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import AsyncExitStack

import aiormq
from pamqp import commands, frame
from pamqp.header import ContentHeader

from bridge.amqp.wire.fast_channel import BODY, FRAME, FRAME_END, OVERHEAD

LARGE = 1024 * 1024
"""A body of so many bytes or more is published here, in pieces of about this size."""


async def publish(
    channel: aiormq.abc.AbstractChannel,
    body: bytes,
    exchange: str,
    routing_key: str,
    properties: commands.Basic.Properties,
) -> None:
    """Publishes with the flag `mandatory`, and waits for the confirm. Raises what `basic_publish` raises.

    What has begun is sent to its end, also if this is cancelled: half a message ends the connection.
    """
    assert isinstance(channel, aiormq.Channel)
    locked = AsyncExitStack()
    await locked.enter_async_context(channel.lock)
    sending = _publish(channel, locked, body, exchange, routing_key, properties)
    publishing = asyncio.create_task(sending, name="publish")
    publishing.add_done_callback(_forget)
    try:
        await asyncio.shield(publishing)
    finally:
        # The traceback of a failure refers to this frame, and the task to the failure: this cycle would keep the body
        # in memory.
        del publishing


async def _publish(
    channel: aiormq.Channel,
    locked: AsyncExitStack,
    body: bytes,
    exchange: str,
    routing_key: str,
    properties: commands.Basic.Properties,
) -> None:
    """Sends the message, releases the channel's lock, which is `locked`, and waits for the confirm."""
    # aiormq tells by the message id which message the broker has returned.
    message_id = properties.message_id = properties.message_id or uuid.uuid4().hex
    method = commands.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=True)
    header = ContentHeader(body_size=len(body), properties=properties)
    async with locked:
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
        del confirmation  # see above


async def _send_body(channel: aiormq.Channel, body: bytes) -> None:
    # A broker without a limit of its own says 0, of which aiormq takes its overhead away.
    content_size = channel.max_content_size if channel.max_content_size > 0 else LARGE
    # Not where the confirm is awaited: if that fails, the traceback would keep the last piece.
    for piece in _pieces(channel.number, body, content_size):
        await _send(channel, piece)


async def _send(channel: aiormq.Channel, frames: bytes) -> None:
    sent = channel.create_future()
    await channel.write_queue.put(aiormq.abc.ChannelFrame(payload=frames, should_close=False, drain_future=sent))
    await sent


def _pieces(number: int, body: bytes, content_size: int) -> Iterator[bytes]:
    """The body's frames, together up to LARGE bytes."""
    view, end = memoryview(body), bytes([FRAME_END])
    each = max(1, LARGE // (content_size + OVERHEAD)) * content_size
    for first in range(0, len(body), each):
        parts: list[bytes | memoryview] = []
        for at in range(first, min(first + each, len(body)), content_size):
            content = view[at : min(at + content_size, len(body))]
            parts += [FRAME.pack(BODY, number, len(content)), content, end]
        yield b"".join(parts)


def _forget(publishing: asyncio.Task[None]) -> None:
    if not publishing.cancelled():
        publishing.exception()
