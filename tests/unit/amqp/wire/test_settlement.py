"""Deliveries are settled in any order.

Consecutive deliveries are acknowledged together, but only after all of them are settled.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridge.amqp.wire.settlement import Acknowledgement, Settlement

NEVER = 1_000_000


def delivered(count: int, prefetch: int = NEVER) -> Settlement:
    settlement = Settlement(prefetch)
    for tag in range(1, count + 1):
        settlement.deliver(tag)
    return settlement


def test_nothing_settled_gives_nothing_to_acknowledge() -> None:
    assert delivered(3).take() == []


def test_all_settled_is_one_run_up_to_the_last() -> None:
    settlement = delivered(3)
    for tag in (2, 3, 1):
        settlement.settle(tag)
    assert settlement.take() == [Acknowledgement(3, multiple=True)]
    assert settlement.take() == []


def test_run_ends_before_the_first_unsettled() -> None:
    settlement = delivered(4)
    for tag in (1, 2, 4):
        settlement.settle(tag)
    assert settlement.take() == [Acknowledgement(2, multiple=True)]
    assert settlement.outstanding == 1
    settlement.settle(3)
    assert settlement.take() == [Acknowledgement(4, multiple=True)]


def test_few_settled_ones_after_an_unsettled_one_wait() -> None:
    settlement = delivered(3, prefetch=4)
    settlement.settle(2)
    settlement.settle(3)
    assert settlement.take() == []


def test_many_settled_ones_after_an_unsettled_one_are_acknowledged_one_by_one() -> None:
    settlement = delivered(4, prefetch=5)
    for tag in (2, 3, 4):
        settlement.settle(tag)
    assert settlement.take() == [Acknowledgement(tag, multiple=False) for tag in (2, 3, 4)]
    settlement.settle(1)
    assert settlement.take() == [Acknowledgement(1, multiple=True)]
    assert settlement.outstanding == 0


@given(st.integers(2, 40), st.data())
def test_held_deliveries_never_use_up_the_prefetch_while_others_are_settled(prefetch: int, data: st.DataObject) -> None:
    """While fewer deliveries are held than the prefetch allows, settled deliveries never use up the prefetch."""
    settlement = Settlement(prefetch)
    held: list[int] = []
    unacknowledged: set[int] = set()
    for tag in range(1, 3 * prefetch):
        settlement.deliver(tag)
        unacknowledged.add(tag)
        if len(held) + 1 < prefetch and data.draw(st.booleans()):
            held.append(tag)
            continue
        settlement.settle(tag)
        for upto, multiple in settlement.take():
            unacknowledged -= set(range(1, upto + 1)) if multiple else {upto}
        assert unacknowledged >= set(held)
        assert len(unacknowledged) < prefetch


@given(st.permutations(range(1, 21)), st.integers(0, 40), st.sets(st.integers(0, 19)))
def test_any_order_acknowledges_each_settled_tag_once_and_no_other(
    order: list[int], prefetch: int, looks: set[int]
) -> None:
    settlement = delivered(20, prefetch)
    settled: set[int] = set()
    acknowledged: set[int] = set()
    for at, tag in enumerate(order):
        settlement.settle(tag)
        settled.add(tag)
        if at not in looks and at != len(order) - 1:
            continue
        for upto, multiple in settlement.take():
            # The broker closes the channel if a tag is acknowledged again.
            assert upto not in acknowledged
            covered = set(range(1, upto + 1)) if multiple else {upto}
            assert covered <= settled
            acknowledged |= covered
        assert settlement.outstanding == 20 - len(settled)
    assert acknowledged == set(range(1, 21))
