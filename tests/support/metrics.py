"""The metrics of a bridge in this process.

Reading a metric with a wrong name or label raises an error instead of returning 0.
"""

from bridge.metrics import Metrics

Series = tuple[str, tuple[tuple[str, str], ...]]
"""The name of a metric and its labels."""


def value(metrics: Metrics, name: str, **labels: str) -> float:
    """Returns the value of a series. Raises KeyError if there is no such series."""
    found = metrics.registry.get_sample_value(name, labels)
    if found is None:
        raise KeyError(f"there is no series {name} with the labels {labels}")
    return found


def series(metrics: Metrics) -> set[Series]:
    """Returns the series that a scrape finds."""
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in metrics.registry.collect()
        for sample in family.samples
    }
