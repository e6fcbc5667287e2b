"""The number of examples of a property-based test."""

import os

THOROUGH = "TEST_THOROUGH" in os.environ
"""True if `make test-all` runs the tests."""


def examples(count: int) -> int:
    """Returns `count` in a thorough run, and a fifth of it (at least 5) otherwise."""
    return count if THOROUGH else max(5, count // 5)
