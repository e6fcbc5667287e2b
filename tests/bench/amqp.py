"""A minimal AMQP client: it writes and reads the few frames that the benchmark needs.

This client uses little processor time, so that the publisher does not slow down the measured servers on the same
machine.
"""

import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Self, TypeVar

from pamqp import base, commands, frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader
from yarl import URL

_HEADER = b"AMQP\x00\x00\x09\x01"
_CHANNEL = 1

_PIECE_BYTES = 131_072 - 8
"""The maximum number of body bytes in one frame, which is RabbitMQ's default `frame_max` without the 8 bytes around the
payload."""

Method = TypeVar("Method")


class Channel:
    """A connection with one channel."""

    def __init__(self, url: str, timeout_s: float | None = 60) -> None:
        parts = URL(url)
        self._socket = socket.create_connection((parts.host or "localhost", parts.port or 5672), timeout=timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = memoryview(b"")
        self._socket.sendall(_HEADER)
        start = self._expect(commands.Connection.Start)
        self.version = str(start.server_properties.get("version", "?"))
        """The version of the broker."""
        user, password = parts.user or "guest", parts.password or "guest"
        self._send(commands.Connection.StartOk({}, "PLAIN", f"\0{user}\0{password}", "en_US"), 0)
        tune = self._expect(commands.Connection.Tune)
        self._send(commands.Connection.TuneOk(tune.channel_max, tune.frame_max, 0), 0)
        self._send(commands.Connection.Open(parts.path.removeprefix("/") or "/"), 0)
        self._expect(commands.Connection.OpenOk)
        self._send(commands.Channel.Open())
        self._expect(commands.Channel.OpenOk)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()

    def declare(self, exchange: str) -> None:
        """Creates the fanout exchange if it does not exist."""
        self._send(commands.Exchange.Declare(exchange=exchange, exchange_type="fanout", durable=True))
        self._expect(commands.Exchange.DeclareOk)

    def delete(self, exchange: str) -> None:
        """Deletes the exchange."""
        self._send(commands.Exchange.Delete(exchange=exchange))
        self._expect(commands.Exchange.DeleteOk)

    def delete_queue(self, queue: str) -> None:
        """Deletes the queue or the stream if it exists."""
        self._send(commands.Queue.Delete(queue=queue))
        self._expect(commands.Queue.DeleteOk)

    def write(self, frames: bytes) -> None:
        """Sends encoded frames."""
        self._socket.sendall(frames)

    def close(self) -> None:
        """Closes the channel. Returns when the broker has read everything that was written."""
        self._send(commands.Channel.Close(0, "", 0, 0))
        self._expect(commands.Channel.CloseOk)

    def routed(self, exchange: str, body: bytes) -> bool:
        """Publishes an event. Returns whether the broker routed the event to a queue."""
        self._send(commands.Confirm.Select())
        self._expect(commands.Confirm.SelectOk)
        self.write(Publication(exchange, mandatory=True).of(body))
        while True:
            answer = self._receive()
            if isinstance(answer, commands.Basic.Return):
                return False
            if isinstance(answer, commands.Basic.Ack):
                return True

    def _send(self, method: base.Frame, channel: int = _CHANNEL) -> None:
        self._socket.sendall(frame.marshal(method, channel))

    def _expect(self, kind: type[Method]) -> Method:
        answer = self._receive()
        if not isinstance(answer, kind):
            raise TypeError(f"the broker answered {answer} instead of {kind.__name__}")
        return answer

    def consume(self, exchange: str) -> Iterator[bytes]:
        """Yields the bodies of the events that are published to the exchange after this call.

        The broker expects no acks.
        """
        self.declare(exchange)
        self._send(commands.Queue.Declare(exclusive=True))
        queue = self._expect(commands.Queue.DeclareOk).queue or ""
        self._send(commands.Queue.Bind(queue=queue, exchange=exchange, routing_key=""))
        self._expect(commands.Queue.BindOk)
        self._send(commands.Basic.Consume(queue=queue, no_ack=True))
        self._expect(commands.Basic.ConsumeOk)
        while True:
            part = self._receive()
            if isinstance(part, ContentBody) and part.value:
                yield part.value

    def _receive(self) -> object:
        while True:
            size, _, value = frame.unmarshal(bytes(self._next_frame()))
            self._received = self._received[size:]
            if value is not None:
                return value

    def _next_frame(self) -> memoryview:
        """Returns one frame (AMQP 0-9-1, section 4.2.3): a header of 7 bytes, the payload, and an end byte."""
        while len(self._received) < 7 or len(self._received) < (size := self._frame_size()):
            more = self._socket.recv(1 << 20)
            if not more:
                raise ConnectionError("the broker closed the connection")
            self._received = memoryview(bytes(self._received) + more)
        return self._received[:size]

    def _frame_size(self) -> int:
        return 8 + int.from_bytes(self._received[3:7], "big")


class Publication:
    """Encodes messages that differ only in their bodies."""

    def __init__(self, exchange: str, mandatory: bool = False) -> None:
        publish = commands.Basic.Publish(exchange=exchange, routing_key="", mandatory=mandatory)
        self._publish = frame.marshal(publish, _CHANNEL)
        self._properties = commands.Basic.Properties(content_type="application/json", delivery_mode=1)
        self._heads: dict[int, bytes] = {}

    def of(self, body: bytes) -> bytes:
        """Returns the frames of a message with this body."""
        head = self._heads.get(len(body))
        if head is None:
            header = frame.marshal(ContentHeader(0, len(body), self._properties), _CHANNEL)
            head = self._heads[len(body)] = self._publish + header
        pieces = (body[at : at + _PIECE_BYTES] for at in range(0, len(body), _PIECE_BYTES))
        return head + b"".join(frame.marshal(ContentBody(piece), _CHANNEL) for piece in pieces)
