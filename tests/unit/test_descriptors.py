"""The limit of file descriptors: raised to what it may be, and a warning where that is not enough."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from bridge import descriptors

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_soft_limit_becomes_the_hard_one(limits: tuple[int, int]) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    with capture_logs() as logged:
        descriptors.allow(10)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (limits[1], limits[1])
    assert logged == []


def test_more_connections_than_descriptors_are_warned_of(limits: tuple[int, int]) -> None:
    with capture_logs() as logged:
        descriptors.allow(limits[1])
    assert [(line["log_level"], line["descriptors"]) for line in logged] == [("warning", limits[1])]
