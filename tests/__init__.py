"""The tests. pytest also rewrites assertions in `tests.support`, so that a failure shows their values."""

import pytest

pytest.register_assert_rewrite("tests.support")
