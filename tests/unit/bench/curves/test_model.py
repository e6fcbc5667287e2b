"""Tests of the line that is fitted to a curve."""

from __future__ import annotations

import pytest

from tests.bench.curves.model import FEWEST, Line, fit, model

XS = (1, 10, 100, 1000, 10_000)


def test_points_of_a_line_give_this_line_and_no_end() -> None:
    found = model([(x, 3 + 0.5 * x) for x in XS], 0.1)
    assert (found.line.base, found.line.slope) == pytest.approx((3, 0.5))
    assert (found.until, found.further) == (10_000, None)


def test_line_ends_before_the_first_point_that_is_too_far_from_every_line() -> None:
    found = model([*((x, 3 + 0.5 * x) for x in XS), (20_000, 50_003)], 0.1)
    assert (found.line.base, found.line.slope) == pytest.approx((3, 0.5))
    assert found.until == 10_000
    assert found.further == pytest.approx((50_003 - 5003) / 10_000)


@pytest.mark.parametrize(("error", "until"), [(0.09, 10_000), (0.5, 1000)])
def test_points_within_the_tolerance_are_on_the_line(error: float, until: float) -> None:
    points = [(x, 3 + 0.5 * x) for x in XS]
    points[-1] = (10_000, 5003 * (1 + error))
    assert model(points, 0.1).until == until


def test_small_values_count_as_much_as_large_values() -> None:
    """A fit of absolute errors would give the base of a small value to the error of a large one."""
    line = fit([(1, 4), (10, 13), (100, 103), (1000, 1100)])
    assert line.at(1) == pytest.approx(4, rel=0.1)


def test_base_is_never_negative() -> None:
    line = fit([(1, 1), (10, 12), (100, 150)])
    assert line.base == 0
    assert 1 < line.slope < 1.5


def test_first_points_give_a_line_even_if_they_are_not_linear() -> None:
    found = model([(1, 1), (2, 10), (3, 1), (4, 1)], 0.01)
    assert found.until == 3


def test_line_of_too_few_points_is_an_error() -> None:
    with pytest.raises(ValueError, match=f"needs {FEWEST} points, and there are 2"):
        model([(1, 1), (2, 2)], 0.1)


def test_equal_places_have_no_line() -> None:
    with pytest.raises(ZeroDivisionError):
        fit([(1, 1), (1, 2)])


def test_line_is_known_at_each_place() -> None:
    assert Line(1, 2).at(3) == 7
