"""Writes to sockets past their transports, which have said that they hold nothing."""

import os
from collections.abc import Iterable


def write_one(descriptor: int, frames: bytes) -> int:
    """Writes to one socket; returns the bytes that it took."""
    try:
        return os.write(descriptor, frames)
    except OSError:
        # Full, or broken: the transport will find out.
        return 0


def write_each(descriptors: Iterable[int], frames: bytes) -> list[tuple[int, int]]:
    """Writes to every socket; returns those that did not take everything, each with the bytes that it took."""
    short: list[tuple[int, int]] = []
    size, write = len(frames), os.write
    for descriptor in descriptors:
        # Not write_one: with a thousand sockets its call would be one percent of all (`make bench`, paced).
        try:
            taken = write(descriptor, frames)
        except OSError:
            taken = 0
        if taken != size:
            short.append((descriptor, taken))
    return short
