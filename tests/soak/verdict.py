"""What is wrong with a run: from what was published, what came, and what the bridge's process took; nothing else.

This file knows no sockets and no clock.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from statistics import median

SHOWN = 5
"""Numbers that a line names; of the others, it says how many there are."""

GROWTH_KB = 3072
"""What memory may grow by between the second tenth of a run and the last."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The bridge's memory at one moment."""

    at_s: float
    """Since the run began."""
    kb: int


@dataclass(frozen=True, slots=True)
class Received:
    """What a client that was there for the whole time has got."""

    who: str
    counts: Sequence[int]
    """How often each update came, by its number; those behind the end never did."""
    end: str = ""
    """How its connection ended before the run did; empty where it did not."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Something that is there with the healthy clients alone, before the others came and after they have gone."""

    what: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a run is judged by."""

    published: Set[int]
    confirmed: Set[int]
    received: Sequence[Received]
    poison: Set[int]
    rejected: Set[int]
    seconds: float
    samples: Sequence[Sample]
    counted: Sequence[Counted]
    sentences: Mapping[str, int] = field(default_factory=dict)
    """What was seen to be wrong while it happened, and how often."""
    expected: Mapping[str, int] = field(default_factory=dict)
    """What must have happened, lest the run prove nothing; and how often it did."""


def wrong(evidence: Evidence) -> list[str]:
    """A line for each thing that is wrong."""
    return [
        *(line for received in evidence.received for line in _updates(evidence, received)),
        *_rejects(evidence),
        *_growth(evidence),
        *_left(evidence.counted),
        *(f"{sentence}: {count} times" for sentence, count in evidence.sentences.items()),
        *(f"this run shows nothing of it: {what}" for what, count in evidence.expected.items() if not count),
    ]


def _updates(evidence: Evidence, received: Received) -> list[str]:
    counts, who = received.counts, received.who
    lost = [number for number in evidence.confirmed if number >= len(counts) or not counts[number]]
    doubled = [number for number, count in enumerate(counts) if count > 1]
    foreign = [number for number, count in enumerate(counts) if count and number not in evidence.published]
    lines = [f"{who} was cut off: {received.end}"] if received.end else []
    if lost:
        lines.append(f"{who} lost {len(lost)} of {len(evidence.confirmed)} updates: {_some(lost)}")
    if doubled:
        lines.append(f"{who} got {len(doubled)} updates more than once: {_some(doubled)}")
    if foreign:
        lines.append(f"{who} got {len(foreign)} updates that nobody published: {_some(foreign)}")
    return lines


def _rejects(evidence: Evidence) -> list[str]:
    missing = evidence.poison - evidence.rejected
    if not missing:
        return []
    return [f"{len(missing)} of {len(evidence.poison)} invalid events are not among the rejects: {_some(missing)}"]


def memory_kb(evidence: Evidence) -> tuple[float, float]:
    """What the bridge takes in the second tenth of a run, and in the last."""
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
        f"the bridge has grown by {after - before:,.0f} KB, from {before:,.0f} KB in the second tenth of the time to "
        f"{after:,.0f} KB in the last; {GROWTH_KB:,} KB are allowed"
    ]


def _left(counted: Iterable[Counted]) -> list[str]:
    return [
        f"{one.what}: {one.after} in the end, {one.before} at the start, with the same clients"
        for one in counted
        if one.after != one.before
    ]


def _some(numbers: Iterable[int]) -> str:
    ordered = sorted(numbers)
    shown = ", ".join(map(str, ordered[:SHOWN]))
    return f"{shown} and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else shown
