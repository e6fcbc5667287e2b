"""Finds the failures of a run, from the published events, the received updates and the bridge's memory.

This module uses no sockets and no clock.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from statistics import median

SHOWN = 5
"""The maximum number of events that a line of the verdict lists. Events beyond this number are only counted."""

GROWTH_KB = 3072
"""The largest allowed growth of memory between the second tenth of a run and the last tenth."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The bridge's memory at one moment."""

    at_s: float
    """The time since the run began."""
    kb: int


@dataclass(frozen=True, slots=True)
class Received:
    """The updates of a client that was connected for the whole run."""

    client: str
    counts: Sequence[int]
    """How often each update arrived.

    The index is the number of the update. Updates beyond the end of the array never arrived.
    """
    end: str = ""
    """How the client's connection ended during the run, or an empty string."""
    first: int = 0
    """The number of the first update that the client must have received."""


@dataclass(frozen=True, slots=True)
class Counted:
    """A number that is counted twice: before other clients join the healthy ones, and after they have left."""

    what: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """All facts that the verdict on a run needs."""

    published: Set[int]
    confirmed: Set[int]
    received: Sequence[Received]
    invalid: Set[int]
    rejected: Set[int]
    seconds: float
    samples: Sequence[Sample]
    counted: Sequence[Counted]
    noticed: Mapping[str, int] = field(default_factory=dict)
    """Failures that were noticed during the run, and how often each was noticed."""
    expected: Mapping[str, int] = field(default_factory=dict)
    """What must happen for the run to be conclusive, and how often each of these things happened."""


def wrong(evidence: Evidence) -> list[str]:
    """Returns a line for each failure."""
    return [
        *(line for received in evidence.received for line in _updates(evidence, received)),
        *_rejects(evidence),
        *_growth(evidence),
        *_left(evidence.counted),
        *(f"{failure}: {count} times" for failure, count in evidence.noticed.items()),
        *(f"this never happened in the run: {what}" for what, count in evidence.expected.items() if not count),
    ]


def _updates(evidence: Evidence, received: Received) -> list[str]:
    counts, client = received.counts, received.client
    owed = {number for number in evidence.confirmed if number >= received.first}
    lost = [number for number in owed if number >= len(counts) or not counts[number]]
    doubled = [number for number, count in enumerate(counts) if count > 1]
    foreign = [number for number, count in enumerate(counts) if count and number not in evidence.published]
    lines = [f"{client} was disconnected: {received.end}"] if received.end else []
    if lost:
        lines.append(f"{client} lost {len(lost)} of {len(owed)} updates: {_some(lost)}")
    if doubled:
        lines.append(f"{client} got {len(doubled)} updates more than once: {_some(doubled)}")
    if foreign:
        lines.append(f"{client} got {len(foreign)} updates that were never published: {_some(foreign)}")
    return lines


def _rejects(evidence: Evidence) -> list[str]:
    missing = evidence.invalid - evidence.rejected
    if not missing:
        return []
    return [f"{len(missing)} of {len(evidence.invalid)} invalid events are not in the queue: {_some(missing)}"]


def memory_kb(evidence: Evidence) -> tuple[float, float]:
    """Returns the bridge's memory in the second tenth of a run, and in the last tenth."""
    tenth_s = evidence.seconds / 10
    return (
        median(sample.kb for sample in evidence.samples if tenth_s <= sample.at_s < 2 * tenth_s),
        median(sample.kb for sample in evidence.samples if sample.at_s >= evidence.seconds - tenth_s),
    )


def _growth(evidence: Evidence) -> list[str]:
    before, after = memory_kb(evidence)
    if after - before <= GROWTH_KB:
        return []
    return [
        f"the bridge grew by {after - before:,.0f} KB, from {before:,.0f} KB in the second tenth of the run to "
        f"{after:,.0f} KB in the last; the limit is {GROWTH_KB:,} KB"
    ]


def _left(counted: Iterable[Counted]) -> list[str]:
    return [
        f"{one.what}: {one.before} before, {one.after} after, with the same clients"
        for one in counted
        if one.after != one.before
    ]


def _some(numbers: Iterable[int]) -> str:
    ordered = sorted(numbers)
    shown = ", ".join(map(str, ordered[:SHOWN]))
    return f"{shown} and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else shown
