"""Tests that pauses between attempts grow up to a limit, and differ between bridges."""

from hypothesis import given
from hypothesis import strategies as st

from bridge.backoff import Backoff


@given(first_s=st.floats(0.01, 1.0), longest_s=st.floats(1.0, 60.0), attempts=st.integers(1, 20))
def test_pauses_double_up_to_the_longest_and_are_jittered_by_half(
    first_s: float, longest_s: float, attempts: int
) -> None:
    backoff = Backoff(first_s, longest_s)
    for attempt in range(attempts):
        pause_s = min(first_s * 2**attempt, longest_s)
        assert pause_s / 2 <= backoff.pause_s() <= pause_s


def test_pauses_of_several_bridges_differ() -> None:
    assert len({Backoff().pause_s() for _ in range(20)}) > 1


def test_first_pause_follows_a_reset() -> None:
    backoff = Backoff(0.1, 60)
    for _ in range(10):
        backoff.pause_s()
    backoff.reset()
    assert backoff.pause_s() <= 0.1
