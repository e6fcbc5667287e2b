"""AMQP without a broker: frames as a broker sends them, and an aiormq connection with scripted answers."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

import aiormq
from pamqp import body, commands, frame
from pamqp.header import ContentHeader

from bridge.amqp.wire.fast_channel import FRAME, FRAME_END, OVERHEAD
from bridge.timing import DEFAULT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from bridge.amqp.nodes import Node
    from bridge.amqp.wire.fast_channel import FastChannel
    from bridge.timing import Timing


OWN = 3
"""The channel number of all frames in this module."""


def method(tag: int = 1, *, redelivered: bool = False, exchange: str = "killmails", routing_key: str = "") -> bytes:
    """Returns the method frame, which is the first frame of a delivery."""
    return frame.marshal(commands.Basic.Deliver("consumer", tag, redelivered, exchange, routing_key), OWN)


def header(size: int, properties: commands.Basic.Properties | None = None) -> bytes:
    """Returns the content header frame."""
    return frame.marshal(ContentHeader(body_size=size, properties=properties), OWN)


def part(data: bytes) -> bytes:
    """Returns a body frame."""
    return frame.marshal(body.ContentBody(data), OWN)


def delivery(*parts: bytes, tag: int = 1) -> bytes:
    """Returns all frames of a delivery. Each part of the body is in its own frame."""
    return method(tag) + header(sum(map(len, parts))) + b"".join(map(part, parts))


def payload_of(whole: bytes) -> bytes:
    """Returns the payload of a frame."""
    return whole[FRAME.size : -1]


def with_payload(whole: bytes, payload: bytes) -> bytes:
    """Returns the same frame with another payload, and with the correct length and end."""
    kind, channel, _ = FRAME.unpack_from(whole)
    return FRAME.pack(kind, channel, len(payload)) + payload + bytes([FRAME_END])


def split_frames(data: bytes) -> tuple[list[bytes], bytes]:
    """Returns the complete frames at the start of some bytes, and the remaining bytes."""
    frames = []
    while len(data) >= OVERHEAD:
        size = OVERHEAD + FRAME.unpack_from(data)[2]
        if size > len(data):
            break
        frames.append(data[:size])
        data = data[size:]
    return frames, data


HANGS: Final = object()
"""In a script, represents an answer that never arrives."""

REFUSED = aiormq.exceptions.ChannelAccessRefused("ACCESS_REFUSED - access refused")
"""The broker's error for a missing permission."""

NO_EXCHANGE = aiormq.exceptions.ChannelNotFoundEntity("NOT_FOUND - no exchange 'killmails' in vhost '/'")
NO_QUEUE = aiormq.exceptions.ChannelNotFoundEntity("NOT_FOUND - no queue 'kept' in vhost '/'")

NACK = aiormq.exceptions.DeliveryError(None, commands.Basic.Nack(1))
"""The exception that aiormq raises for a message that the broker does not accept."""


def returned() -> aiormq.exceptions.PublishError:
    """Returns the exception that aiormq raises for a message that was not routed to a queue."""
    delivery = commands.Basic.Return(312, "NO_ROUTE", "killmails", "")
    message = cast("aiormq.abc.DeliveredMessage", SimpleNamespace(delivery=delivery))
    return aiormq.exceptions.PublishError(message, delivery)


class FakeTransport:
    """A fake transport of a connection, which records writes, and whether reading is paused."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.paused: list[bool] = []
        """One value for each call: True if the call pauses reading, and False if it resumes reading."""
        self.closing = False

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def pause_reading(self) -> None:
        self.paused.append(True)

    def resume_reading(self) -> None:
        self.paused.append(False)


class FakeChannel:
    """One channel.

    A scripted ChannelClosed closes the channel, as a broker does. After a scripted ChannelClosed, all requests fail.
    """

    def __init__(self, broker: FakeAmqp, number: int) -> None:
        self.number = number
        self.closing: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.on_consumer_cancel_callbacks: set[Callable[[object], object]] = set()
        self.published: list[tuple[bytes, commands.Basic.Properties]] = []
        self.consumer: Callable[[Any], Any] | None = None
        """The callback of the last `basic_consume`."""
        self.arguments: list[object] = []
        """The arguments of each declaration and each `basic_consume`."""
        self._broker = broker

    @property
    def is_closed(self) -> bool:
        return self.closing.done()

    async def _ask(self, request: str, default: object = None) -> Any:
        if self.is_closed:
            raise aiormq.exceptions.ChannelInvalidStateError("the channel is closed")
        try:
            return await self._broker.ask(request, default)
        except aiormq.exceptions.ChannelClosed as error:
            if not self.closing.done():
                _end(self.closing, error)
            raise

    async def exchange_declare(
        self,
        exchange: str,
        *,
        exchange_type: str = "direct",
        passive: bool = False,
        durable: bool = False,
        arguments: object = None,
    ) -> Any:
        kind = "passive" if passive else f"{exchange_type}{' durable' * durable}"
        return await self._ask(f"exchange {exchange} {kind}")

    async def queue_declare(
        self,
        queue: str,
        *,
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: object = None,
    ) -> Any:
        kind = "passive" if passive else "exclusive" if exclusive else f"declare{' durable' * durable}"
        answer = commands.Queue.DeclareOk(queue or "amq.gen-1", 0, 1)
        self.arguments.append(arguments)
        return await self._ask(f"queue {queue or '(unnamed)'} {kind}", answer)

    async def queue_bind(self, queue: str, exchange: str, routing_key: str) -> Any:
        return await self._ask(f"bind {queue} to {exchange} {routing_key}")

    async def queue_unbind(self, queue: str, exchange: str, routing_key: str) -> Any:
        return await self._ask(f"unbind {queue} from {exchange} {routing_key}")

    async def basic_qos(self, *, prefetch_count: int) -> Any:
        return await self._ask(f"qos {prefetch_count}")

    async def basic_consume(self, queue: str, callback: Callable[[Any], Any], *, arguments: object = None) -> Any:
        self.consumer = callback
        self.arguments.append(arguments)
        return await self._ask(f"consume {queue}", commands.Basic.ConsumeOk("tag-1"))

    async def basic_cancel(self, consumer_tag: str) -> Any:
        return await self._ask(f"cancel {consumer_tag}")

    async def basic_get(self, queue: str) -> Any:
        return await self._ask(f"get {queue}")

    async def basic_ack(self, delivery_tag: int) -> None:
        await self._ask(f"ack {delivery_tag}")

    async def basic_publish(
        self,
        body: bytes,
        *,
        exchange: str = "",
        routing_key: str = "",
        properties: commands.Basic.Properties,
        mandatory: bool = False,
    ) -> Any:
        assert mandatory, "a message that can't be routed must be returned"
        self.published.append((body, properties))
        return await self._ask(f"publish to {exchange or '(default)'}")

    async def close(self) -> None:
        if not self.closing.done():
            self._broker.requests.append(f"close channel {self.number}")
            self.closing.cancel()


class FakeAmqp:
    """One connection.

    `script` maps the text of a request to the sequence of its answers. The last answer is also used for all later
    requests.

    If an answer is an exception, it is raised. If an answer is a function, it is called to get the answer. If an answer
    is HANGS, the request never returns. A request that is not in the script succeeds.
    """

    def __init__(self, **script: Sequence[object]) -> None:
        self.requests: list[str] = []
        """The text of each request, in order."""
        self.channels: list[FakeChannel] = []
        """The channels in the order in which they were opened. The first channel has the number OWN."""
        self.closing: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.connection_tune = commands.Connection.Tune(frame_max=131_072)
        self.script: dict[str, deque[object]] = {name: deque(answers) for name, answers in script.items()}

    def on(self, request: str, *answers: object) -> FakeAmqp:
        """Scripts the answers to a request."""
        self.script[request] = deque(answers)
        return self

    async def channel(self, *, publisher_confirms: bool, frame_buffer_size: int = 10) -> FakeChannel:
        unbounded = " without a bound" * (frame_buffer_size == 0)
        await self.ask(f"channel{' with confirms' * publisher_confirms}{unbounded}", None)
        channel = FakeChannel(self, OWN + len(self.channels))
        self.channels.append(channel)
        return channel

    def open_channel(self) -> aiormq.abc.AbstractChannel:
        """Opens another channel without a request, and returns it with the type that the bridge expects."""
        channel = FakeChannel(self, OWN + len(self.channels))
        self.channels.append(channel)
        return cast("aiormq.abc.AbstractChannel", channel)

    async def ask(self, request: str, default: object) -> Any:
        self.requests.append(request)
        answers = self.script.get(request)
        if not answers:
            return default
        answer = answers.popleft() if len(answers) > 1 else answers[0]
        if answer is HANGS:
            await asyncio.Event().wait()
        if isinstance(answer, BaseException):
            raise answer
        if callable(answer):
            answer = answer()
        return default if answer is None else answer

    def lose(self, error: BaseException | None = None) -> None:
        """Ends the connection and its channels."""
        error = error or aiormq.exceptions.ConnectionClosed(320, "CONNECTION_FORCED - shutdown")
        for closing in (self.closing, *(channel.closing for channel in self.channels)):
            if not closing.done():
                _end(closing, error)

    @property
    def amqp(self) -> aiormq.abc.AbstractConnection:
        """Returns this fake with the type that the bridge expects."""
        return cast("aiormq.abc.AbstractConnection", self)

    # aiormq's handlers of `connection.blocked` and `connection.unblocked`, which `watch_blocked` replaces.

    async def _Connection__handle_connection_blocked(self, frame: object) -> None:  # noqa: N802 - aiormq's own name
        pass

    async def _Connection__handle_connection_unblocked(self, frame: object) -> None:  # noqa: N802 - aiormq's own name
        pass

    async def block(self, reason: str) -> None:
        """Blocks the connection, as a broker that accepts no more messages does."""
        await self._Connection__handle_connection_blocked(commands.Connection.Blocked(reason))

    async def unblock(self) -> None:
        """Unblocks the connection."""
        await self._Connection__handle_connection_unblocked(commands.Connection.Unblocked())


class FakeBroker:
    """Replaces `open_connection`: returns the scripted connections, or raises the scripted exceptions."""

    def __init__(self, *connections: FakeAmqp | BaseException) -> None:
        self.connections = deque(connections)
        """A connection or an exception for each attempt to connect."""
        self.attempts = 0
        self.nodes: Sequence[Node] = ()
        self.name = ""
        self.fast_channel: FastChannel | None = None
        self.timing = DEFAULT
        """`nodes`, `name`, `fast_channel` and `timing` are the arguments of the last attempt."""
        self.closed = 0

    @asynccontextmanager
    async def open_connection(
        self, nodes: Sequence[Node], name: str, fast_channel: FastChannel | None = None, timing: Timing = DEFAULT
    ) -> AsyncIterator[aiormq.abc.AbstractConnection]:
        """Replaces `open_connection` of `bridge.amqp.connection`."""
        self.attempts += 1
        self.nodes, self.name, self.fast_channel, self.timing = nodes, name, fast_channel, timing
        if not self.connections:
            await asyncio.Event().wait()
        amqp = self.connections.popleft()
        if isinstance(amqp, BaseException):
            raise amqp
        try:
            yield amqp.amqp
        finally:
            self.closed += 1


def _end(closing: asyncio.Future[object], error: BaseException) -> None:
    closing.set_exception(error)
    # Marks the exception as retrieved, so that asyncio does not log it.
    closing.exception()
