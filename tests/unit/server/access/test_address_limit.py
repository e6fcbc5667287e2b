"""Places by address: each has so many, loopback as many as there are, and none is counted twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.server.access.address_limit import RESERVE, Tally


def test_address_has_its_places_some_in_which_it_is_told_so_and_no_more() -> None:
    tally = Tally(3)
    for _ in range(3):
        assert tally.take("10.0.0.1")
        assert not tally.is_crowded("10.0.0.1")
    for _ in range(RESERVE):
        assert tally.take("10.0.0.1")
        assert tally.is_crowded("10.0.0.1")
    assert not tally.take("10.0.0.1")


def test_one_address_takes_no_place_of_another() -> None:
    tally = Tally(1)
    for _ in range(1 + RESERVE):
        tally.take("fd00::1")
    assert not tally.take("fd00::1")
    assert tally.take("fd00::2")
    assert not tally.is_crowded("fd00::2")


def test_place_that_is_given_back_can_be_taken() -> None:
    tally = Tally(1)
    for _ in range(1 + RESERVE):
        tally.take("192.168.1.7")
    tally.leave("192.168.1.7")
    assert tally.take("192.168.1.7")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.10", "::1"])
def test_loopback_has_no_limit(address: str) -> None:
    tally = Tally(1)
    for _ in range(10 + RESERVE):
        assert tally.take(address)
    assert not tally.is_crowded(address)


def test_clients_of_an_address_share_one_string() -> None:
    tally = Tally(10)
    first = tally.take("".join(["10.0.", "0.1"]))
    assert tally.take("".join(["10.0", ".0.1"])) is first


@given(st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "::1"])))
def test_address_without_a_client_is_not_remembered(addresses: list[str]) -> None:
    tally = Tally(1000)
    for each in addresses:
        assert tally.take(each)
    assert len(tally) == len({*addresses})
    for each in addresses:
        tally.leave(each)
    assert len(tally) == 0
