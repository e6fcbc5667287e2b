"""How many examples a property-based test tries."""

import os

THOROUGH = "TEST_THOROUGH" in os.environ
"""Set by `make test-all`."""


def examples(count: int) -> int:
    """Returns `count` in a thorough run, and a fifth of it (at least 5) otherwise."""
    return count if THOROUGH else max(5, count // 5)
