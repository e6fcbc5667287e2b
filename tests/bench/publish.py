"""`python -m tests.bench.publish EXCHANGE COUNT RATE [PAD [SYSTEMS]]`: publishes killmails.

If RATE is 0, events are published at full speed.

The environment variable AMQP names the broker, and RATE is the number of events per second. The id of a killmail is the
time of its publication, in microseconds of CLOCK_MONOTONIC. This id tells a client on the same machine how old an
update is, and whether updates arrive in the right order.
"""

import itertools
import os
import sys
import time

import orjson

from tests.bench.amqp import Channel, Publication
from tests.support.killmail import EXAMPLE, killmail

BATCH = 100
"""The number of events in one write at full speed."""

SYSTEM = EXAMPLE["systemId"]
"""The id of the solar system of the killmails, or the lowest id if they are in several systems."""


class Events:
    """Makes the bodies of events, each with a larger id than the previous one.

    Each body is `pad` bytes longer than that of a usual killmail. The killmails are in `systems` different solar
    systems, in turn.
    """

    def __init__(self, pad: int = 0, systems: int = 1) -> None:
        padding = {"pad": "x" * pad} if pad else {}
        events = [killmail(0, systemId=SYSTEM + number, **padding) for number in range(systems)]
        parts = [orjson.dumps(event).split(b'"killmailId":0', 1) for event in events]
        self._parts = itertools.cycle([(before + b'"killmailId":', after) for before, after in parts])
        self._last = 0

    def next(self) -> bytes:
        """Returns an event with the current time as its id."""
        self._last = max(self._last + 1, time.monotonic_ns() // 1000)
        before, after = next(self._parts)
        return b"%b%d%b" % (before, self._last, after)


def publish(channel: Channel, exchange: str, count: int, rate: float, events: Events) -> None:
    """Publishes events. Returns when the broker has all events."""
    publication = Publication(exchange)
    batch = 1 if rate else BATCH
    began = time.monotonic()
    for sent in range(0, count, batch):
        if rate:
            time.sleep(max(0.0, began + sent / rate - time.monotonic()))
        channel.write(b"".join(publication.of(events.next()) for _ in range(min(batch, count - sent))))
    channel.close()


def main(exchange: str, count: str, rate: str, pad: str = "0", systems: str = "1") -> None:
    """Runs the program."""
    with Channel(os.environ["AMQP"]) as channel:
        channel.declare(exchange)
        publish(channel, exchange, int(count), float(rate), Events(int(pad), int(systems)))


if __name__ == "__main__":
    main(*sys.argv[1:])
