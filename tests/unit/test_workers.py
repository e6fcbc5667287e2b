"""Workers that run tests at the same time do not get in each other's way."""

from __future__ import annotations

import os

import pytest

from bridge.demo import ports
from tests.support.workers import share_of


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64])
def test_shares_lie_within_the_range_and_have_nothing_in_common(count: int) -> None:
    shares = [range(*share_of(20000, 32000, index, count)) for index in range(count)]
    taken = [number for share in shares for number in share]
    assert len(set(taken)) == len(taken)
    assert min(taken) == 20000
    assert max(taken) < 32000
    assert {len(share) for share in shares} == {12000 // count}


def test_worker_takes_ports_of_its_own_share() -> None:
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    index = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = range(*share_of(20000, 32000, index, count))
    assert {ports.free_port() in share for _ in range(20)} == {True}
