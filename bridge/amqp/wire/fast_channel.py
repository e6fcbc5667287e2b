"""One channel's deliveries and acknowledgements, in a lane of their own beside the library.

A connection's bytes go through here first: a delivery on the lane's channel is taken out of them, every other frame
goes on to aiormq as it came. aiormq reads three frames for a message, each through several coroutines, and runs a task
for it: 65 microseconds a message, and four times as much where an update comes alone and finds the caches cold, against
six here (`make bench`, saturated with one client). Everything else that AMQP asks for stays the library's business.

This file must never know of sockets, of what a message means, or of what becomes of it.
"""

import struct
from collections.abc import Callable
from typing import Protocol, cast

from bridge.amqp.wire.properties import MessageProperties, string
from bridge.amqp.wire.settlement import Acknowledgement

FRAME = struct.Struct(">BHI")
"""Type, channel and payload length; an octet FRAME_END follows the payload (AMQP 0-9-1, section 2.3.5)."""
FRAME_END = 0xCE
OVERHEAD = FRAME.size + 1
METHOD, HEADER, BODY = 1, 2, 3
TYPES = frozenset({METHOD, HEADER, BODY, 8})
LARGE = 1024 * 1024
"""A body of so many bytes or more is assembled in one buffer."""
EMPTY_HEADER = 14
"""Bytes of a content header without properties: class, weight, body size, flags."""
DELIVER = b"\x00\x3c\x00\x3c"
"""Class and method id of `basic.deliver`."""
TAG = struct.Struct(">QB")
"""Delivery tag, and a bit for redelivered."""
ACK = struct.Struct(">BHIIQBB")
"""A whole `basic.ack` frame."""
ACK_METHOD, ACK_LENGTH = 0x003C0050, 13


class Receiver(Protocol):
    """Who gets the deliveries: in order, at once, and without raising."""

    def __call__(
        self, tag: int, redelivered: bool, exchange: str, routing_key: str, properties: MessageProperties, body: bytes
    ) -> None: ...


class FastChannel:
    """Takes deliveries out of a connection's bytes, and puts acknowledgements in."""

    def __init__(
        self,
        receive: Receiver,
        received: Callable[[], None],
        read: Callable[[bytes], MessageProperties] = MessageProperties,
    ) -> None:
        """`received` is called after the last delivery of what came together; `read` reads a content header."""
        self.number: int | None = None
        """The number of the channel whose deliveries are taken; its own, with nothing else consuming on it."""
        self.write: Callable[[bytes], None] = lambda frames: None
        """Sends whole frames to the broker. Nothing is sent while there is no connection."""
        self.hold: Callable[[bool], None] = lambda held: None
        """Stops reading from the broker, or goes on with it."""
        self.receive = receive
        """Who gets the next delivery."""
        self._received = received
        self._read = read
        self._held: list[bytes] = []
        self._held_bytes = self._wanted_bytes = 0
        """What is kept of a frame that is not whole yet, and how much it takes to look at it again."""
        self._route = (b"\0\0", "", "")
        """Exchange and routing key as they came last, and as text: they are mostly the same again."""
        self._last_properties: tuple[bytes, MessageProperties] | None = None
        """The same for properties."""
        self._method: tuple[int, bool, str, str] | None = None
        """What the broker delivers, while its content is still to come."""
        self._properties: MessageProperties | None = None
        self._body: list[bytes] = []
        self._large: bytearray | None = None
        """What there is of a large body. A list of its parts, joined at its end, would take as much again."""
        self._missing = 0
        """Bytes of the body that are still to come."""
        self.broken: str | None = None
        """What was not AMQP in the broker's bytes: nothing behind it can be told apart any more."""
        self._handed_out = False

    def begin(self) -> None:
        """To be called for each connection: what another one left behind is not this one's."""
        self._held = []
        self.broken = None

    def feed(self, data: bytes) -> bytes:
        """Hands out the deliveries in what the broker sent; returns the frames that are not the lane's.

        Where something is not AMQP, `broken` says what, and the lane ends. Before it has a channel, all bytes from
        there on are returned: what another protocol's answer means is the library's business. Afterwards none are.
        """
        if self.broken:
            return b"" if self.number else data
        if self._held:
            self._held.append(data)
            self._held_bytes += len(data)
            if self._held_bytes < self._wanted_bytes:
                return b""
            data = b"".join(self._held)
        others: list[bytes] = []
        at, size, end = 0, len(data), OVERHEAD
        while size - at >= OVERHEAD:
            kind, channel, length = FRAME.unpack_from(data, at)
            end = at + OVERHEAD + length
            if kind not in TYPES:
                self.broken = f"a frame of type {kind}"
                break
            if end > size:
                break
            if data[end - 1] != FRAME_END:
                self.broken = "a frame without its end"
                break
            try:
                taken = channel == self.number and self._take(kind, data, at + FRAME.size, end - 1)
            except (IndexError, ValueError, struct.error) as error:
                self.broken = f"a malformed delivery: {error}"
                break
            if not taken:
                others.append(data[at:end])
            at, end = end, end + OVERHEAD
        rest = data[at:]
        if not self.broken:
            self._held = [rest] if rest else []
            self._held_bytes, self._wanted_bytes = len(rest), end - at
        elif not self.number:
            others.append(rest)
        if self._handed_out:
            self._handed_out = False
            self._received()
        return b"".join(others)

    def acknowledge(self, acknowledgements: list[Acknowledgement]) -> None:
        """Sends acknowledgements, all in one piece."""
        frames = [
            ACK.pack(METHOD, self.number, ACK_LENGTH, ACK_METHOD, tag, multiple, FRAME_END)
            for tag, multiple in acknowledgements
        ]
        if frames:
            self.write(b"".join(frames))

    def _take(self, kind: int, data: bytes, start: int, end: int) -> bool:
        """Takes a frame with the payload `data[start:end]`, if it is part of a delivery.

        Raises IndexError, struct.error or ValueError where a delivery is cut short or contradicts itself.
        """
        if kind == METHOD:
            return self._take_method(data, start, end)
        if self._method is None:
            return False
        if kind == HEADER:
            if end - start < EMPTY_HEADER:
                raise ValueError(f"a content header of {end - start} bytes")
            if self._properties is not None:
                raise ValueError("a second content header")
            self._missing = int.from_bytes(data[start + 4 : start + 12], "big")
            properties = data[start + 12 : end]
            if self._last_properties is None or properties != self._last_properties[0]:
                self._last_properties = (properties, self._read(data[start:end]))
            self._properties = self._last_properties[1]
            self._large = bytearray() if self._missing >= LARGE else None
        else:
            self._missing -= end - start
            if self._properties is None or self._missing < 0:
                raise ValueError("a body that its content header does not announce")
            if self._large is None:
                self._body.append(data[start:end])
            else:
                self._large += memoryview(data)[start:end]
        if not self._missing:
            self._hand_out(*self._method, self._properties)
        return True

    def _take_method(self, data: bytes, start: int, end: int) -> bool:
        if data[start : start + 4] != DELIVER:
            if end - start < len(DELIVER):
                raise ValueError(f"a method of {end - start} bytes")
            return False
        if self._method is not None:
            raise ValueError("the content of the one before is missing")
        at = start + 5 + data[start + 4]  # behind the consumer's tag
        tag, redelivered = TAG.unpack_from(data, at)
        route = data[at + TAG.size : end]
        if route != self._route[0]:
            length, exchange = string(route)
            self._route = (route, exchange, string(route[length:])[1])
        self._method = (tag, bool(redelivered), self._route[1], self._route[2])
        return True

    def _hand_out(
        self, tag: int, redelivered: bool, exchange: str, routing_key: str, properties: MessageProperties
    ) -> None:
        if self._large is not None:
            body = cast("bytes", self._large)  # whoever reads bytes reads it as well, and nobody changes it any more
        else:
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._method = self._properties = self._large = None
        self._body = []
        self._handed_out = True
        self.receive(tag, redelivered, exchange, routing_key, properties, body)
