"""The number of examples of a property-based test."""

import os

THOROUGH = "TEST_THOROUGH" in os.environ
"""True if `make test-all` runs the tests."""


def examples(count: int) -> int:
    """Returns `count` in a thorough run. Otherwise, returns a fifth of `count`, but at least 5."""
    return count if THOROUGH else max(5, count // 5)
