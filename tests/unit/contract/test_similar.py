"""Tests which known name a misspelled name probably means."""

import pytest

from bridge.contract.similar import COMPARED_NAMES, similar


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("pilot", "pilot"),
        ("PILOT", "pilot"),
        ("pilots", "pilot"),
        ("pilto", "pilot"),
        ("sihp", "ship"),
        ("ipsh", "ship"),
    ],
)
def test_name_with_nearly_the_same_letters_is_similar(name: str, meant: str) -> None:
    assert similar(name, ["system", "pilot", "ship"], 0.85) == meant


@pytest.mark.parametrize("name", ["corporation", "pilto1", "shop", ""])
def test_other_name_is_similar_to_none(name: str) -> None:
    assert similar(name, ["system", "pilot", "ship"], 0.85) is None


@pytest.mark.parametrize(("count", "found"), [(COMPARED_NAMES, "name0"), (COMPARED_NAMES + 1, None)])
def test_name_is_compared_with_a_bounded_number_of_names(count: int, found: str | None) -> None:
    assert similar("nmae0", [f"name{number}" for number in range(count)]) == found
