"""Tests when a turn is over, how steps are spread over turns, and which turn is the longest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bridge.loop_turn import TURN_S, LoopTurn, register_turn_metrics
from bridge.metrics import Metrics
from tests.support.fakes import Turns

if TYPE_CHECKING:
    from collections.abc import Iterator


class Clocks:
    """The clocks of a turn. The test moves them."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.elapsed_s = 100.0
        self.processor_s = 7.0
        self.processor_reads = 0
        self.turn = LoopTurn(self.turns.call_soon, lambda: self.elapsed_s, self._processor_clock)

    def _processor_clock(self) -> float:
        self.processor_reads += 1
        return self.processor_s

    def work(self, seconds: float) -> None:
        """Lets time pass while this thread runs."""
        self.processor_s += seconds
        self.wait(seconds)

    def wait(self, seconds: float) -> None:
        """Lets time pass while another thread runs."""
        self.elapsed_s += seconds

    def steps(self, count: int, seconds: float, done: list[int]) -> Iterator[None]:
        """Yields after each step. A step takes this number of seconds."""
        for number in range(count):
            self.work(seconds)
            done.append(number)
            yield


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def test_turn_is_over_after_its_processor_time(clocks: Clocks) -> None:
    clocks.turn.begin()
    clocks.work(TURN_S * 0.9)
    assert not clocks.turn.is_over()
    clocks.work(TURN_S * 0.2)
    assert clocks.turn.is_over()
    assert not clocks.turn.is_over(2 * TURN_S)


def test_turn_is_not_over_while_other_threads_run(clocks: Clocks) -> None:
    clocks.turn.begin()
    clocks.wait(TURN_S * 10)
    assert not clocks.turn.is_over()


def test_question_begins_the_turn(clocks: Clocks) -> None:
    clocks.work(TURN_S * 2)
    assert not clocks.turn.is_over()
    clocks.work(TURN_S * 2)
    assert clocks.turn.is_over()


def test_processor_clock_is_not_read_while_the_turn_is_short(clocks: Clocks) -> None:
    clocks.turn.begin()
    reads = clocks.processor_reads
    for _ in range(100):
        assert not clocks.turn.is_over()
    assert clocks.processor_reads == reads


def test_next_turn_has_its_own_time(clocks: Clocks) -> None:
    clocks.turn.begin()
    clocks.work(TURN_S * 1.1)
    assert clocks.turn.is_over()
    clocks.turns.turn()
    assert not clocks.turn.is_over()


def test_steps_that_fit_into_the_turn_run_at_once(clocks: Clocks) -> None:
    done: list[int] = []
    clocks.turn.spread(clocks.steps(10, TURN_S / 20, done))
    assert done == list(range(10))


def test_steps_that_do_not_fit_run_in_order_in_later_turns(clocks: Clocks) -> None:
    done: list[int] = []
    clocks.turn.begin()
    clocks.turn.spread(clocks.steps(10, TURN_S * 0.4, done))
    sizes = [len(done)]
    while len(done) < 10:
        clocks.turns.turn()
        sizes.append(len(done))
    assert sizes == [3, 6, 9, 10]
    assert done == list(range(10))
    assert clocks.turn.longest_s == pytest.approx(TURN_S * 1.2)


def test_each_turn_runs_at_least_one_step(clocks: Clocks) -> None:
    done: list[int] = []
    clocks.turn.begin()
    clocks.turn.spread(clocks.steps(3, TURN_S * 5, done))
    assert done == [0]
    clocks.turns.settle()
    assert done == [0, 1, 2]


def test_first_step_does_not_count_in_a_turn_that_has_not_begun(clocks: Clocks) -> None:
    done: list[int] = []
    clocks.turn.spread(clocks.steps(1, 0.0, done))
    assert len(clocks.turns.scheduled) == 1
    clocks.turns.settle()
    clocks.turn.spread(iter(()))
    assert not clocks.turns.scheduled, "work of a single step does not even begin the turn"


def test_step_that_raises_ends_the_steps(clocks: Clocks) -> None:
    def steps() -> Iterator[None]:
        yield
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        clocks.turn.spread(steps())
    assert clocks.turns.turn() == 1, "only the end of the turn is scheduled"


def test_longest_turn_is_shown_in_seconds_of_processor_time(clocks: Clocks) -> None:
    metrics = Metrics()
    register_turn_metrics(metrics, clocks.turn)
    for worked_s, waited_s in ((0.002, 0.0), (0.03, 0.5), (0.01, 2.0), (0.02, 0.0)):
        clocks.turn.begin()
        clocks.work(worked_s)
        clocks.wait(waited_s)
        clocks.turn.begin()
        clocks.turns.turn()
    assert clocks.turn.longest_s == pytest.approx(0.03)
    assert b"\nbridge_loop_turn_seconds_max 0.03" in metrics.exposition()
