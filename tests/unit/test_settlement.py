"""Whatever the order in which deliveries are settled, acknowledgements are runs without a gap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.broker.settlement import Settlement


def delivered(count: int) -> Settlement:
    settlement = Settlement()
    for tag in range(1, count + 1):
        settlement.deliver(tag)
    return settlement


def test_nothing_delivered_means_nothing_to_take() -> None:
    settlement = Settlement()
    assert settlement.take() is None
    assert settlement.outstanding == 0


@pytest.mark.parametrize(
    ("order", "takes"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([3, 2, 1], [None, None, 3]),
        ([2, 1, 3], [None, 2, 3]),
        ([1, 3, 2], [1, None, 3]),
        ([2, 3], [None, None]),
    ],
)
def test_run_ends_before_the_first_unsettled_delivery(order: list[int], takes: list[int | None]) -> None:
    settlement = delivered(3)
    taken = []
    for tag in order:
        settlement.settle(tag)
        taken.append(settlement.take())
    assert taken == takes
    assert settlement.outstanding == 3 - len(order)


def test_what_was_taken_is_not_taken_again() -> None:
    settlement = delivered(2)
    settlement.settle(1)
    assert settlement.take() == 1
    assert settlement.take() is None


def test_several_settled_deliveries_are_one_run() -> None:
    settlement = delivered(3)
    settlement.settle(1)
    settlement.settle(2)
    assert settlement.take() == 2
    assert settlement.outstanding == 1


@given(data=st.data(), count=st.integers(1, 30))
def test_any_order_of_settling_takes_everything_once_and_nothing_unsettled(data: st.DataObject, count: int) -> None:
    settlement = Settlement()
    waiting: list[int] = []
    settled: set[int] = set()
    taken = came = 0
    while came < count or waiting:
        if came < count and (not waiting or data.draw(st.booleans())):
            came += 1
            settlement.deliver(came)
            waiting.append(came)
        else:
            tag = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
            settlement.settle(tag)
            settled.add(tag)
        assert settlement.outstanding == len(waiting)
        if data.draw(st.booleans()):
            tag_or_none = settlement.take()
            if tag_or_none is not None:
                assert tag_or_none > taken
                assert settled.issuperset(range(1, tag_or_none + 1))
                taken = tag_or_none
    assert (settlement.take() or taken) == count
    assert settlement.outstanding == 0
