"""Tests of the limit on file descriptors, and of the number of clients that this limit allows."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from bridge.server.listeners import descriptors
from bridge.server.listeners.descriptors import MAX_OVERFLOW, OWN_DESCRIPTORS, Capacity

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_soft_limit_becomes_the_hard_one(limits: tuple[int, int]) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    descriptors.raise_nofile_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (limits[1], limits[1])


@pytest.mark.parametrize(
    "limit", [100 + MAX_OVERFLOW + OWN_DESCRIPTORS, 100 + MAX_OVERFLOW + OWN_DESCRIPTORS + 1, resource.RLIM_INFINITY]
)
def test_connections_that_there_are_descriptors_for_are_allowed(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr("bridge.server.listeners.descriptors.resource.getrlimit", lambda _: (limit, limit))
    with capture_logs() as logged:
        assert descriptors.connection_capacity(100) == Capacity(100, MAX_OVERFLOW)
    assert logged == []


def test_few_descriptors_reduce_the_overflow_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "bridge.server.listeners.descriptors.resource.getrlimit",
        lambda _: (OWN_DESCRIPTORS + 200, OWN_DESCRIPTORS + 200),
    )
    with capture_logs() as logged:
        assert descriptors.connection_capacity(100) == Capacity(100, 50)
    assert logged == []


@pytest.mark.parametrize("limit", [1, 70, 128, 400, 1024, 10_000])
def test_clients_alone_cannot_exhaust_the_descriptors(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr("bridge.server.listeners.descriptors.resource.getrlimit", lambda _: (limit, limit))
    with capture_logs() as logged:
        found = descriptors.connection_capacity(10_000)
    assert found.connections >= 1
    assert found.overflow >= 1
    assert found.connections + found.overflow <= max(2, limit - OWN_DESCRIPTORS)
    assert [(line["log_level"], line["descriptors"], line["connections"]) for line in logged] == [
        ("warning", limit, found.connections)
    ]
