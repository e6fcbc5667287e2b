"""The tests. An assertion shows its values in the modules that support the tests, too."""

import pytest

pytest.register_assert_rewrite("tests.support")
