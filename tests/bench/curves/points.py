"""The curves, and the file of measured points that each curve has.

This module and `model` need only the standard library, because the environment that draws the pictures has no other
packages of the project.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.curves.model import FEWEST, Model, Points, model

FOLDER = Path(__file__).parent

Point = Mapping[str, float]
"""One measurement: maps the key of each figure to its value. The key `x` is the place on the horizontal axis."""


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit of a part of a model, such as `µs a client`, and the factor from the figure's own unit to this unit."""

    name: str
    factor: float = 1


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure that grows with x."""

    key: str
    name: str
    """The name and the unit of the figure."""
    base: Unit | None = None
    slope: Unit | None = None
    """The units of the model. They are None if the figure is shown without a model."""
    tolerance: float = 0.2
    """The curve is linear as long as a line differs from no value by more than this share of the value."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A growth that the benchmark measures."""

    name: str
    """The name of the files with the points and the picture, and of the measurement."""
    title: str
    x_name: str
    figures: Sequence[Figure]
    series: Sequence[str] = ("ours",)
    """The names of the programs, or of the settings, that are measured at each x."""

    @property
    def file(self) -> Path:
        """The file with the points."""
        return FOLDER / f"{self.name}.json"

    @property
    def picture(self) -> Path:
        """The picture of the points and their models."""
        return FOLDER / f"{self.name}.svg"


_MS, _US = Unit("ms"), Unit("µs")


def _p99(slope: Unit | None) -> Figure:
    # Other programs on the machine change a 99th percentile more than a sum of processor time.
    return Figure("p99_ms", "publish to receipt, p99 ms", _MS if slope else None, slope, tolerance=0.4)


CURVES = (
    Curve(
        "clients",
        "Clients: 2 updates of 250 bytes per second",
        "clients",
        (
            Figure("cpu_ms", "CPU ms per update", _MS, Unit("µs a client", 1e3)),
            _p99(Unit("µs a client", 1e3)),
        ),
        ("ours", "floor"),
    ),
    Curve(
        "sizes",
        "Size of an update: 100 clients, 4 updates per second",
        "bytes",
        (
            Figure("cpu_us", "CPU µs per send", _US, Unit("ns a byte", 1e3)),
            _p99(Unit("ns a byte", 1e6)),
        ),
    ),
    Curve(
        "filters",
        "Different filters: 12,000 clients that get nothing, and 100 clients that get 10 updates per second",
        "filters",
        (
            Figure("cpu_ms", "CPU ms per update", _MS, Unit("µs a filter", 1e3)),
            _p99(Unit("µs a filter", 1e3)),
        ),
    ),
    Curve(
        "rates",
        "Updates per second: 1000 clients, updates of 250 bytes",
        "updates per second",
        (
            Figure("cpu_percent", "CPU, % of a core", Unit("%"), Unit("ms an update", 10)),
            _p99(None),
        ),
    ),
    Curve(
        "resumes",
        "Clients that resume a log of 4 MiB at once, and 100 live clients that get 20 updates per second",
        "clients that resume",
        (
            Figure("cpu_ms", "CPU ms for all replays", _MS, Unit("ms a client")),
            Figure("caught_ms", "ms until all replays are complete", _MS, Unit("ms a client"), tolerance=0.4),
            Figure("p99_ms", "live clients: publish to receipt, p99 ms"),
        ),
    ),
    Curve(
        "bridges",
        "Bridges: one broker, 50 updates per second",
        "bridges",
        (Figure("broker_us", "broker: CPU µs per update", _US, Unit("µs a bridge")),),
        ("queue", "stream"),
    ),
)
"""All curves, in the order of the documentation."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The content of a file with points."""

    machine: str
    """The machine, the versions and the command of the run."""
    points: Mapping[str, Sequence[Point]]
    """The points of each series, with rising x."""

    def values(self, series: str, key: str) -> Points:
        """Returns the pairs of x and a figure. If x was measured several times, the median of its figures counts."""
        by_x: dict[float, list[float]] = {}
        for point in self.points[series]:
            by_x.setdefault(point["x"], []).append(point[key])
        return [(x, statistics.median(values)) for x, values in sorted(by_x.items())]

    def model(self, series: str, figure: Figure) -> Model | None:
        """Returns the model of a figure, or None if the figure has no model or too few points."""
        values = self.values(series, figure.key)
        return model(values, figure.tolerance) if figure.slope and len(values) >= FEWEST else None


def read(curve: Curve) -> Measured:
    """Reads the points of a curve. Raises OSError if the curve has no file."""
    return Measured(**json.loads(curve.file.read_text()))


def write(curve: Curve, measured: Measured) -> None:
    """Writes the points of a curve, with one line for each point, so that a change of one point is one line."""
    series = [
        f"  {json.dumps(name)}: [\n" + ",\n".join(f"    {json.dumps(dict(point))}" for point in points) + "\n  ]"
        for name, points in measured.points.items()
    ]
    machine = json.dumps(measured.machine, ensure_ascii=False)
    curve.file.write_text(f'{{"machine": {machine},\n"points": {{\n' + ",\n".join(series) + "\n}}\n")


def number(value: float) -> str:
    """Returns a number with three significant digits, or all digits of its integer part."""
    if not value:
        return "0"
    # 9.999 is 10.0: the rounded number decides how many digits there are.
    digits = 2 - math.floor(math.log10(abs(float(f"{value:.3g}"))))
    return f"{value:,.{max(0, digits)}f}"


def sentence(found: Model, figure: Figure) -> str:
    """Returns the model as text, such as `1.05 ms + 9.80 µs a client`."""
    assert figure.base is not None
    assert figure.slope is not None
    parts = [f"{number(found.line.slope * figure.slope.factor)} {figure.slope.name}"]
    base = number(found.line.base * figure.base.factor)
    if float(base.replace(",", "")):
        parts.insert(0, f"{base} {figure.base.name}")
    return " + ".join(parts)
