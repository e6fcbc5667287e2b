"""The model of a growth: a straight line, and where the growth leaves this line."""

from collections.abc import Sequence
from dataclasses import dataclass

Points = Sequence[tuple[float, float]]
"""The pairs (x, y) of a curve, with rising x. All x and y are positive."""

FEWEST = 3
"""The minimum number of points in a line. Any two points are on a line."""


@dataclass(frozen=True, slots=True)
class Line:
    """The line `base + slope * x`."""

    base: float
    slope: float

    def at(self, x: float) -> float:
        """Returns the value of the line at `x`."""
        return self.base + self.slope * x


@dataclass(frozen=True, slots=True)
class Model:
    """A line through the first points of a curve, and what comes after it."""

    line: Line
    until: float
    """The largest x that is on the line."""
    further: float | None
    """The mean slope from `until` to the last point, or None if all points are on the line."""


def fit(points: Points) -> Line:
    """Returns the line with the least sum of the squares of the relative errors.

    The relative errors count, because a measurement of a large value has a large error. The base is at least 0, because
    a cost is never negative. Raises ZeroDivisionError if all x are equal.
    """
    weights = [1 / y**2 for _, y in points]
    total = sum(weights)
    mean_x = sum(weight * x for weight, (x, _) in zip(weights, points, strict=True)) / total
    mean_y = sum(weight * y for weight, (_, y) in zip(weights, points, strict=True)) / total
    pairs = [(weight, x - mean_x, y - mean_y) for weight, (x, y) in zip(weights, points, strict=True)]
    slope = sum(weight * x * y for weight, x, y in pairs) / sum(weight * x * x for weight, x, _ in pairs)
    base = mean_y - slope * mean_x
    if base >= 0:
        return Line(base, slope)
    through_origin = sum(x / y for x, y in points) / sum((x / y) ** 2 for x, y in points)
    return Line(0.0, through_origin)


def model(points: Points, tolerance: float) -> Model:
    """Returns the line through the longest possible beginning of the curve.

    The line differs from no value in this beginning by more than `tolerance`, a share of the value. If even the first
    FEWEST points are not that close to a line, the line of these points is returned. Raises ValueError if there are
    fewer points.
    """
    if len(points) < FEWEST:
        raise ValueError(f"a model needs {FEWEST} points, and there are {len(points)}")
    count = next((count for count in range(len(points), FEWEST, -1) if _is_linear(points[:count], tolerance)), FEWEST)
    until, reached = points[count - 1]
    last_x, last_y = points[-1]
    further = (last_y - reached) / (last_x - until) if count < len(points) else None
    return Model(fit(points[:count]), until, further)


def _is_linear(points: Points, tolerance: float) -> bool:
    line = fit(points)
    return all(abs(line.at(x) - y) <= tolerance * y for x, y in points)
