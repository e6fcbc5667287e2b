"""AMQP frames as a broker sends them, whole and damaged."""

from __future__ import annotations

from pamqp import body, commands, frame
from pamqp.header import ContentHeader

from bridge.broker.lane import FRAME, FRAME_END, OVERHEAD

OWN = 3
"""The channel that they are of, unless they are said to be of another."""


def method(tag: int = 1, *, redelivered: bool = False, exchange: str = "killmails", routing_key: str = "") -> bytes:
    """The first frame of a delivery."""
    return frame.marshal(commands.Basic.Deliver("consumer", tag, redelivered, exchange, routing_key), OWN)


def header(size: int, properties: commands.Basic.Properties | None = None) -> bytes:
    """The second."""
    return frame.marshal(ContentHeader(body_size=size, properties=properties), OWN)


def part(data: bytes) -> bytes:
    """One of those that follow."""
    return frame.marshal(body.ContentBody(data), OWN)


def delivery(*parts: bytes, tag: int = 1) -> bytes:
    """All frames of a delivery, whose body comes in these parts."""
    return method(tag) + header(sum(map(len, parts))) + b"".join(map(part, parts))


def payload_of(whole: bytes) -> bytes:
    """What a frame holds."""
    return whole[FRAME.size : -1]


def with_payload(whole: bytes, payload: bytes) -> bytes:
    """The same frame with another payload: its length and its end are right."""
    kind, channel, _ = FRAME.unpack_from(whole)
    return FRAME.pack(kind, channel, len(payload)) + payload + bytes([FRAME_END])


def split_frames(data: bytes) -> tuple[list[bytes], bytes]:
    """The whole frames at the start of some bytes, and the rest."""
    frames = []
    while len(data) >= OVERHEAD:
        size = OVERHEAD + FRAME.unpack_from(data)[2]
        if size > len(data):
            break
        frames.append(data[:size])
        data = data[size:]
    return frames, data
