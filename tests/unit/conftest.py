"""What all unit tests share: examples, and no limit on the time of each, which a busy machine would break."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.support.examples import examples

settings.register_profile(
    "unit", deadline=None, max_examples=examples(50), suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("unit")
