"""`python -m tests.bench.curves.picture [CURVE ...]`: draws the pictures of the curves from their points.

This program runs in its own environment, which has matplotlib and no package of the project.
"""

import sys
from collections.abc import Iterable

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from tests.bench.curves.points import CURVES, Curve, Figure, Measured, read, sentence

COLORS = ("#0969da", "#8c959f")
"""The colors of the first series and of the second one."""

PANEL_INCHES = (4.2, 3.2)

LINEAR_SPAN = 20
"""If the largest x is at most this many times the smallest one, the axes are linear, and otherwise logarithmic."""

STYLE = {
    # Text stays text, so that the picture is small and a test can read the models.
    "svg.fonttype": "none",
    # Without a fixed salt, each run would change all ids in the file.
    "svg.hashsalt": "curves",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#d1d9e0",
    "grid.linewidth": 0.6,
}


def draw(curve: Curve, measured: Measured) -> None:
    """Writes the picture of a curve, with one panel for each figure."""
    width, height = PANEL_INCHES
    canvas = Canvas((width * max(2, len(curve.figures)), height), layout="constrained")
    panels = canvas.subplots(1, len(curve.figures), squeeze=False)[0]
    for axes, figure in zip(panels, curve.figures, strict=True):
        _panel(axes, curve, figure, measured)
    # The background is opaque, because GitHub shows the picture on a light page or on a dark one.
    canvas.savefig(curve.picture, metadata={"Date": None, "Creator": None})


def _panel(axes: Axes, curve: Curve, figure: Figure, measured: Measured) -> None:
    is_wide = _spans(curve, figure, measured) > LINEAR_SPAN
    if is_wide:
        axes.set_xscale("log")
        axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_xlabel(curve.x_name)
    axes.set_title(figure.name, fontsize=10, loc="left")
    for series, color in zip(curve.series, COLORS, strict=False):
        xs, ys = zip(*measured.values(series, figure.key), strict=True)
        found = measured.model(series, figure)
        label = series if found is None else f"{series}: {sentence(found, figure)}"
        axes.plot(xs, ys, "o", color=color, markersize=4, label=label)
        if found is not None:
            reached = list(_between(xs[0], xs[-1]))
            axes.plot(reached, [found.line.at(x) for x in reached], color=color, linewidth=1)
            if found.further is not None:
                axes.axvline(found.until, color=color, linewidth=0.8, linestyle=":")
    axes.xaxis.set_major_formatter("{x:,.10g}")
    axes.yaxis.set_major_formatter("{x:,.10g}")
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    low, high = axes.get_ylim()
    room = 0.12 * len(curve.series)  # the share of the height for the legend
    if is_wide:
        axes.set_ylim(low, high * (high / low) ** room)
    else:
        axes.set_ylim(0, high * (1 + room))


def _spans(curve: Curve, figure: Figure, measured: Measured) -> float:
    """Returns the quotient of the largest x and the smallest one."""
    xs = [x for series in curve.series for x, _ in measured.values(series, figure.key)]
    return max(xs) / min(xs)


def _between(low: float, high: float, count: int = 60) -> Iterable[float]:
    return (low * (high / low) ** (step / count) for step in range(count + 1))


def main(names: Iterable[str]) -> None:
    """Draws the named curves, or all curves."""
    matplotlib.use("svg")
    with matplotlib.rc_context(STYLE):
        for curve in CURVES:
            if curve.name in names or not names:
                draw(curve, read(curve))


if __name__ == "__main__":
    main(sys.argv[1:])
