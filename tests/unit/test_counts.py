"""Tests of numbers with a noun in the singular or plural."""

import pytest

from bridge.counts import counted


@pytest.mark.parametrize(("number", "text"), [(0, "0 events"), (1, "1 event"), (2, "2 events"), (1204, "1,204 events")])
def test_noun_is_in_the_plural_unless_the_number_is_1(number: int, text: str) -> None:
    assert counted(number, "event") == text
