"""The plan of a run: the times of all its parts. The plan depends only on the length of the run.

A short run has everything that a run of ten minutes has, at shorter intervals.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import cycle, islice

WARM_UP = 0.1
"""The first part of the run, as a fraction of its length, in which memory is not compared.

The first clients load modules and fill caches."""


class Fault(Enum):
    """A fault of the broker, or of the connection to it."""

    CUT = "cut"
    HELD = "no data in either direction"
    ONE_WAY = "no data from the broker"
    HALF_OPEN = "half-open at the broker"
    SLOW = "slow"
    KILLED = "broker killed and started again"


CONNECTION_FAULTS = tuple(fault for fault in Fault if fault is not Fault.KILLED)
"""The faults of the connection, in the order of their use.

Proxy.cut also ends the broker's side of a half-open connection. The cut comes two faults after the half-open
connection, so that the broker first notices by itself that the connection is dead.
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """The numbers that define the plan of a run."""

    seconds: float
    fault_every_s: float
    fault_s: float
    """The duration of a fault that does not end by itself."""
    burst_every_s: float
    heartbeat_s: int
    """The heartbeat interval of the bridge's connections. A broker notices a half-open connection after two or three
    heartbeats."""
    healthy: int = 20
    """The number of WebSocket connections that last for the whole run."""
    streams: int = 10
    """The number of event streams that last for the whole run."""
    polling: int = 10
    """The number of clients that ask for JSON during the whole run."""
    coming: int = 100
    """How many of the clients that come and go are connected at the same time."""
    stalled: int = 10
    """The number of WebSocket connections that are not read. As many event streams and responses are not read."""
    slow: int = 3
    """The number of WebSocket connections that are read slowly, and of event streams."""
    rate: int = 50
    """The steady rate, in events per second."""
    burst: int = 2000
    twice_every: int = 100
    """In each group of this many events, one event is published twice, as if by two fetchers."""
    invalid_every: int = 50
    """An invalid event comes after each group of this many events."""
    prime: int = 9000
    """The number of events published before the run: more than the window of duplicates and the log can hold."""

    @property
    def warm_up_s(self) -> float:
        """The time at which the faults and the comparison of memory begin."""
        return WARM_UP * self.seconds

    @property
    def faults(self) -> int:
        """The number of faults, which is low enough for the last fault to end before the run does."""
        return int((self.seconds - self.warm_up_s) / self.fault_every_s)


DUPLICATE_WINDOW = 8192
"""The number of identities that the bridge remembers.

The broker may take 30 s to notice a half-open connection. The window must exceed the number of events in these 30 s:
1500 at the steady rate, and two bursts. The window must also be small, so that it is full before memory is compared.
"""

LOG_BYTES = 4 * 2**20
"""The size of the bridge's log.

A burst of 2.4 MB must not evict a healthy client, although a single process reads for all clients.
"""

PADDING = "x" * 900
"""Padding of each event. Without padding, a client that reads nothing would be evicted only after minutes."""


def plan_of(seconds: float) -> Plan:
    """Returns the plan of a run of `seconds` seconds."""
    active_s = seconds * (1 - WARM_UP)
    # A short run has each fault once, and a long run has each fault many times.
    fault_every_s = min(20.0, active_s / len(Fault))
    return Plan(
        seconds=seconds,
        fault_every_s=fault_every_s,
        fault_s=min(5.0, 0.4 * fault_every_s),
        burst_every_s=min(30.0, active_s / 4),
        heartbeat_s=round(min(10.0, max(2.0, fault_every_s / 2))),
    )


def rotation(count: int, *, mortal: bool) -> list[Fault]:
    """Returns `count` faults in order.

    A `mortal` broker is killed after one round of connection faults, and again later.
    """
    faults = cycle(CONNECTION_FAULTS)
    if not mortal:
        return list(islice(faults, count))
    kills = {len(CONNECTION_FAULTS), count * 2 // 3} if count >= 3 * len(Fault) else {len(CONNECTION_FAULTS)}
    return list(_with_kills(faults, count, kills))


def _with_kills(faults: Iterator[Fault], count: int, kills: set[int]) -> Iterator[Fault]:
    for slot in range(count):
        yield Fault.KILLED if slot in kills else next(faults)
