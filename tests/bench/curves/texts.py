"""The tables of the curves in the documentation."""

from collections.abc import Iterator, Sequence

from tests.bench.curves.points import CURVES, Curve, Measured, number, read, sentence


def section(curve: Curve) -> str:
    """Returns the picture of a curve and the table of its models. Raises OSError if the curve has no points."""
    return f"![{curve.title}](curves/{curve.picture.name})\n\n{models(curve, read(curve))}"


def machines() -> str:
    """Returns the machines and versions of the committed points, without the commands."""
    lines = {read(curve).machine.partition("; `")[0] for curve in CURVES}
    return "\n".join(f"- {line}" for line in sorted(lines))


def models(curve: Curve, measured: Measured) -> str:
    """Returns the table of the models of a curve."""
    rows = []
    for series, label in _labels(curve):
        for figure in curve.figures:
            found, slope = measured.model(series, figure), figure.slope
            if found is None or slope is None:
                continue
            beyond = "" if found.further is None else f"{number(found.further * slope.factor)} {slope.name}"
            rows.append([f"{label}{figure.name}", sentence(found, figure), f"{found.until:,.0f}", beyond])
    return _table(["figure", "model", f"linear up to, {curve.x_name}", "beyond it"], rows)


def values(curve: Curve, measured: Measured) -> str:
    """Returns the table of the points of a curve."""
    rows = [
        [f"{label}{figure.name}", *(number(y) for _, y in measured.values(series, figure.key))]
        for series, label in _labels(curve)
        for figure in curve.figures
    ]
    xs = [f"{x:,.0f}" for x, _ in measured.values(curve.series[0], curve.figures[0].key)]
    return _table([curve.x_name, *xs], rows)


def _labels(curve: Curve) -> Iterator[tuple[str, str]]:
    """Yields each series with the text that precedes its figures. The text is empty if there is only one series."""
    for series in curve.series:
        yield series, f"{series}: " if len(curve.series) > 1 else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)
