"""Measures curves, writes their points and pictures, and prints their models."""

import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tests.bench.candidates import FLOOR, Place
from tests.bench.cases import FAULTS
from tests.bench.curves import points, texts
from tests.bench.curves.points import CURVES, Curve, Measured, Point
from tests.bench.curves.sweeps import Measure, sweeps
from tests.bench.process import Failed
from tests.support.broker.session import say

ROOT = Path(__file__).parents[3]
PLOTS = ROOT / ".venv/plots/bin/python"
"""The interpreter of the environment with matplotlib, which only `make bench` installs."""

NAMES = tuple(curve.name for curve in CURVES)


def run(place: Place, broker_pid: int | None, machine: str, names: Iterable[str], out: Callable[[str], None]) -> bool:
    """Measures the named curves and prints their tables. Returns False if the bridge had a fault."""
    wrong: list[str] = []
    how = sweeps(broker_pid)
    for curve in CURVES:
        if curve.name not in names:
            continue
        measure, places = how[curve.name]
        began = time.monotonic()
        try:
            measured = Measured(machine, measured_series(place, curve, measure, places, wrong))
        except Failed as reason:
            say(f"without {curve.title}: {reason}")
            wrong.append(f"{curve.title}: could not be measured")
            continue
        say(f"{curve.title}: took {time.monotonic() - began:.0f} s")
        points.write(curve, measured)
        out(f"{curve.title}\n\n{texts.models(curve, measured)}\n\n{texts.values(curve, measured)}\n")
    draw(names)
    say("`make readme` writes the models into README.md")
    for sentence in wrong:
        out(f"WRONG: {sentence}")
    return not wrong


def measured_series(
    place: Place, curve: Curve, measure: Measure, xs: Sequence[int], wrong: list[str]
) -> dict[str, list[Point]]:
    """Returns the points of each series. Appends a sentence to `wrong` for each fault."""
    found: dict[str, list[Point]] = {series: [] for series in curve.series}
    for x in xs:
        for series, so_far in found.items():
            say(f"{curve.title}: {series}, {x}")
            point = measure(place, series, x)
            if series != FLOOR:
                title = f"{curve.title}; {series}, {x}"
                wrong += [f"{title}: {point[key]:.0f} {what}" for key, what in FAULTS.items() if point[key]]
            so_far.append({key: float(f"{value:.4g}") for key, value in point.items() if key not in FAULTS})
    return found


def draw(names: Iterable[str]) -> None:
    """Draws the pictures of the named curves, if matplotlib is installed."""
    if not PLOTS.exists():
        say("without pictures: `make bench FLAGS=curves` installs matplotlib")
        return
    subprocess.run([PLOTS, "-m", "tests.bench.curves.picture", *names], cwd=ROOT, check=True)
