"""Tests of the maximum number of connections from one address, and of loopback, which has no such limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.server.access.address_limit import MAX_ADDRESS_OVERFLOW, AddressLimit


def test_address_has_its_limit_then_an_overflow_and_no_more() -> None:
    limit = AddressLimit(3)
    for _ in range(3):
        assert limit.acquire("10.0.0.1")
        assert not limit.over_limit("10.0.0.1")
    for _ in range(MAX_ADDRESS_OVERFLOW):
        assert limit.acquire("10.0.0.1")
        assert limit.over_limit("10.0.0.1")
    assert not limit.acquire("10.0.0.1")


def test_addresses_do_not_share_a_limit() -> None:
    limit = AddressLimit(1)
    for _ in range(1 + MAX_ADDRESS_OVERFLOW):
        limit.acquire("fd00::1")
    assert not limit.acquire("fd00::1")
    assert limit.acquire("fd00::2")
    assert not limit.over_limit("fd00::2")


def test_released_connection_can_be_acquired_again() -> None:
    limit = AddressLimit(1)
    for _ in range(1 + MAX_ADDRESS_OVERFLOW):
        limit.acquire("192.168.1.7")
    limit.release("192.168.1.7")
    assert limit.acquire("192.168.1.7")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.10", "::1"])
def test_loopback_has_no_limit(address: str) -> None:
    limit = AddressLimit(1)
    for _ in range(10 + MAX_ADDRESS_OVERFLOW):
        assert limit.acquire(address)
    assert not limit.over_limit(address)


def test_clients_of_an_address_share_one_string() -> None:
    limit = AddressLimit(10)
    first = limit.acquire("".join(["10.0.", "0.1"]))
    assert limit.acquire("".join(["10.0", ".0.1"])) is first


@given(st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "::1"])))
def test_address_without_a_client_is_not_remembered(addresses: list[str]) -> None:
    limit = AddressLimit(1000)
    for each in addresses:
        assert limit.acquire(each)
    assert len(limit) == len({*addresses})
    for each in addresses:
        limit.release(each)
    assert len(limit) == 0
