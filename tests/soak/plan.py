"""What happens in a run, and when: all of it from the run's length alone.

A short run has everything that the ten minutes have, closer together.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import cycle, islice

WARM_UP = 0.1
"""Of the whole, in which nothing is compared yet: what the first of everything brings in is there for good."""


class Fault(Enum):
    """What happens to the broker, or to the line to it."""

    CUT = "cut"
    HELD = "held, both ways"
    ONE_WAY = "held, from the broker"
    FORSAKEN = "forsaken: half open for the broker"
    SLOW = "slow"
    KILLED = "broker killed and started"


LINE_FAULTS = tuple(fault for fault in Fault if fault is not Fault.KILLED)
"""In this order. Proxy.cut ends the broker's side of a forsaken line as well, so it comes two faults behind one: the
broker has missed it by itself by then."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Numbers of a run; whatever depends on its length."""

    seconds: float
    fault_every_s: float
    fault_s: float
    """How long a fault lasts that does not end by itself."""
    burst_every_s: float
    heartbeat_s: int
    """Of the bridge's connections. A broker misses a line that is half open after two or three of them."""
    healthy: int = 20
    coming: int = 100
    """Clients that come and go, at once."""
    stalled: int = 20
    slow: int = 5
    rate: int = 50
    """Events a second."""
    burst: int = 2000
    twice_every: int = 100
    """One of so many events is published twice, as by two fetchers."""
    poison_every: int = 50
    """One of so many is followed by an event that can't become an update."""
    prime: int = 9000
    """Events before the time begins: more than the window of duplicates remembers, and than the log holds."""

    @property
    def warm_up_s(self) -> float:
        """Until memory is compared, and faults begin."""
        return WARM_UP * self.seconds

    @property
    def faults(self) -> int:
        """How many there are room for, the last one with its time to end."""
        return int((self.seconds - self.warm_up_s) / self.fault_every_s)


DUPLICATE_WINDOW = 8192
"""Identities that the bridge remembers. More than are published while the broker believes in a forsaken line, for up to
30 s: 1500 at the steady rate and two bursts. Small, so that it is full, and grows no more, before memory is compared.
"""

LOG_BYTES = 4 * 2**20
"""The bridge's log. A burst, 2.4 MB, must not throw out a client that reads as fast as one process reads for all."""

PADDING = "x" * 900
"""In each event, lest a client that reads nothing take minutes to fall off the log."""


def plan_of(seconds: float) -> Plan:
    """A run that long."""
    active_s = seconds * (1 - WARM_UP)
    # Each fault once, and in a long run often.
    fault_every_s = min(20.0, active_s / len(Fault))
    return Plan(
        seconds=seconds,
        fault_every_s=fault_every_s,
        fault_s=min(5.0, 0.4 * fault_every_s),
        burst_every_s=min(30.0, active_s / 4),
        heartbeat_s=round(min(10.0, max(2.0, fault_every_s / 2))),
    )


def rotation(count: int, *, mortal: bool) -> list[Fault]:
    """So many faults in their order. A `mortal` broker is killed after all others were there once, and once more."""
    line = cycle(LINE_FAULTS)
    if not mortal:
        return list(islice(line, count))
    kills = {len(LINE_FAULTS), count * 2 // 3} if count >= 3 * len(Fault) else {len(LINE_FAULTS)}
    return list(_with_kills(line, count, kills))


def _with_kills(line: Iterator[Fault], count: int, kills: set[int]) -> Iterator[Fault]:
    for slot in range(count):
        yield Fault.KILLED if slot in kills else next(line)
