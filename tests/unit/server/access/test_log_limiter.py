"""Tests which of many similar lines are written, and how the other lines are counted."""

from __future__ import annotations

from bridge.server.access.log_limiter import MAX_LINES, MINUTE_S, LogLimiter
from tests.support.fakes import Hours


def test_first_lines_of_a_minute_are_allowed_and_the_others_counted() -> None:
    hours = Hours()
    limiter = LogLimiter(hours.time)
    assert [limiter.allow("host") for _ in range(MAX_LINES)] == [{}] * MAX_LINES
    assert [limiter.allow("host") for _ in range(1000)] == [None] * 1000
    hours.now_s += MINUTE_S
    assert limiter.allow("host") == {"suppressed": 1000}
    assert limiter.allow("host") == {}


def test_rare_lines_are_always_allowed() -> None:
    hours = Hours()
    limiter = LogLimiter(hours.time)
    for _ in range(10 * MAX_LINES):
        assert limiter.allow("host") == {}
        hours.now_s += MINUTE_S / MAX_LINES


def test_kinds_do_not_share_a_limit() -> None:
    limiter = LogLimiter(Hours().time)
    for _ in range(MAX_LINES + 1):
        limiter.allow("host")
    assert limiter.allow("origin") == {}
