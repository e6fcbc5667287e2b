"""Tests that each free port is returned only once."""

from __future__ import annotations

from tests.support.broker.ports import free_port


def test_port_is_returned_once_by_a_process() -> None:
    # If each of the 300 ports were chosen at random from 12,000, some port would occur twice in 49 of 50 runs.
    ports = [free_port() for _ in range(300)]
    assert len({*ports}) == len(ports)
