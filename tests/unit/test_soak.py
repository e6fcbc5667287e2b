"""Tests of the soak test's verdict, which reports each error, and fails a run that has not tested enough."""

from __future__ import annotations

import array
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from tests.soak.__main__ import SHORTEST_S
from tests.soak.crowd import Stretches
from tests.soak.plan import CONNECTION_FAULTS, Fault, plan_of, rotation
from tests.soak.verdict import GROWTH_KB, Counted, Evidence, Received, Sample, memory_kb, wrong

if TYPE_CHECKING:
    from tests.soak.readers import Tally

SAMPLES = [Sample(float(at_s), 1000 if at_s < 20 else 2000) for at_s in range(100)]

GOOD = Evidence(
    published={1, 2, 3, 4},
    confirmed={1, 2, 3},
    received=[Received("a client", bytes([0, 1, 1, 1])), Received("another", bytes([0, 1, 1, 1, 1]))],
    invalid={1, 2},
    rejected={1, 2, 3},
    seconds=100,
    samples=SAMPLES,
    counted=[Counted("tasks", 7, 7)],
    expected={"invalid events": 2},
)


def with_counts(*counts: int) -> Evidence:
    return replace(GOOD, received=[Received("a client", bytes(counts))])


def test_run_is_right_if_confirmed_updates_arrived_once_and_unconfirmed_ones_at_most_once() -> None:
    assert wrong(GOOD) == []


@pytest.mark.parametrize(
    ("evidence", "line"),
    [
        (with_counts(0, 1, 0, 1), "a client lost 1 of 3 updates: 2"),
        (with_counts(), "a client lost 3 of 3 updates: 1, 2, 3"),
        (
            replace(GOOD, received=[Received("a client", bytes([0, 0, 0, 1]), first=2)]),
            "a client lost 1 of 2 updates: 2",
        ),
        (with_counts(0, 1, 2, 1), "a client got 1 updates more than once: 2"),
        (with_counts(0, 1, 1, 1, 2), "a client got 1 updates more than once: 4"),
        (with_counts(0, 1, 1, 1, 0, 1), "a client got 1 updates that were never published: 5"),
        (
            replace(GOOD, received=[Received("a client", bytes([0, 1, 1, 1]), "code 4008")]),
            "a client was disconnected: code 4008",
        ),
        (replace(GOOD, rejected={2}), "1 of 2 invalid events are not in the queue: 1"),
        (replace(GOOD, counted=[Counted("tasks", 7, 8)]), "tasks: 7 before, 8 after, with the same clients"),
        (replace(GOOD, counted=[Counted("tasks", 7, 6)]), "tasks: 7 before, 6 after, with the same clients"),
        (replace(GOOD, noticed={"something broke": 3}), "something broke: 3 times"),
        (replace(GOOD, expected={"invalid events": 0}), "this never happened in the run: invalid events"),
    ],
)
def test_each_fault_is_reported_in_a_line(evidence: Evidence, line: str) -> None:
    assert wrong(evidence) == [line]


@pytest.mark.parametrize(("more_kb", "lines"), [(GROWTH_KB, 0), (GROWTH_KB + 1, 1)])
def test_memory_may_grow_within_a_limit_between_the_second_tenth_and_the_last(more_kb: int, lines: int) -> None:
    samples = [*SAMPLES[:90], *(Sample(float(at_s), 1000 + more_kb) for at_s in range(90, 100))]
    assert len(wrong(replace(GOOD, samples=samples))) == lines


def test_memory_is_compared_by_medians_without_the_start_and_the_bursts() -> None:
    spikes = [Sample(5.0, 900_000), Sample(15.5, 900_000), Sample(50.0, 900_000), Sample(95.5, 900_000)]
    assert memory_kb(replace(GOOD, samples=[*SAMPLES, *spikes])) == (1000, 2000)


# The faults and bursts of a run


@pytest.mark.parametrize("seconds", [SHORTEST_S, 60.0, 600.0])
def test_run_of_any_length_has_every_fault_and_bursts(seconds: float) -> None:
    plan = plan_of(seconds)
    assert set(rotation(plan.faults, mortal=True)) == set(Fault)
    assert set(rotation(plan.faults, mortal=False)) == set(CONNECTION_FAULTS)
    assert plan.burst_every_s * 2 < seconds


def test_cut_does_not_follow_a_half_open_connection_at_once() -> None:
    faults = rotation(30, mortal=False)
    for at in (at for at, fault in enumerate(faults) if fault is Fault.HALF_OPEN):
        assert Fault.CUT not in faults[at + 1 : at + 2]


# The updates of any client must be a contiguous part of the updates of a healthy client


class Reference:
    """A stub of a healthy client, with only what `Stretches` uses."""

    def __init__(self, *numbers: int) -> None:
        self.client = SimpleNamespace(numbers=array.array("I", numbers))
        self.stretches = Stretches(cast("Tally", self.client))

    def judge(self, *numbers: int) -> list[str]:
        """Returns the errors of a client that received the given updates."""
        self.stretches.add("a client", array.array("I", numbers))
        self.stretches.judge_all()
        return self.stretches.wrong


@pytest.mark.parametrize("numbers", [(3, 1, 2), (1,), (3, 1, 2, 5, 4), (2, 5), ()])
def test_stretch_of_the_updates_of_a_healthy_client_is_right_even_if_they_are_out_of_order(
    numbers: tuple[int, ...],
) -> None:
    assert Reference(3, 1, 2, 5, 4).judge(*numbers) == []


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((1, 5), "a client: its update 1 of 2 is 5, that of a healthy client is 2"),
        ((1, 2, 2), "a client: its update 2 of 3 is 2, that of a healthy client is 5"),
        ((2, 1), "a client: its update 1 of 2 is 1, that of a healthy client is 5"),
        ((5, 4, 6), "a client: a healthy client got only 2 of its 3 updates"),
        ((9,), "a client: a healthy client got only 0 of its 1 updates"),
    ],
)
def test_gap_duplicate_and_another_order_are_no_stretch(numbers: tuple[int, ...], words: str) -> None:
    assert Reference(3, 1, 2, 5, 4).judge(*numbers) == [words]


def test_stretch_is_judged_only_after_the_healthy_client_received_its_last_update() -> None:
    reference = Reference(1, 2)
    reference.stretches.add("a client", array.array("I", (2, 3)))
    reference.stretches.judge_ready()
    assert (reference.stretches.right, reference.stretches.wrong) == (0, [])
    reference.client.numbers.append(3)
    reference.stretches.judge_ready()
    assert (reference.stretches.right, reference.stretches.wrong) == (1, [])
