"""What repeats is said so often a minute, and counted beyond."""

from __future__ import annotations

from bridge.server.access.log_limiter import MINUTE_S, MOST, Lines
from tests.support.fakes import Hours


def test_first_ones_of_a_minute_are_said_and_the_others_counted() -> None:
    hours = Hours()
    lines = Lines(hours.time)
    assert [lines.due("host") for _ in range(MOST)] == [{}] * MOST
    assert [lines.due("host") for _ in range(1000)] == [None] * 1000
    hours.now_s += MINUTE_S
    assert lines.due("host") == {"unsaid": 1000}
    assert lines.due("host") == {}


def test_one_now_and_then_is_always_said() -> None:
    hours = Hours()
    lines = Lines(hours.time)
    for _ in range(10 * MOST):
        assert lines.due("host") == {}
        hours.now_s += MINUTE_S / MOST


def test_kinds_do_not_share_their_lines() -> None:
    lines = Lines(Hours().time)
    for _ in range(MOST + 1):
        lines.due("host")
    assert lines.due("origin") == {}
