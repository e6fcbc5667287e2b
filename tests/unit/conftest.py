"""Sets the Hypothesis profile of all unit tests, which has no deadline, because busy machines would exceed it."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.support.examples import examples

settings.register_profile(
    "unit", deadline=None, max_examples=examples(50), suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("unit")
