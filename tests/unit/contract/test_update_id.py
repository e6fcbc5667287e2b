"""Tests that every update id can be parsed from its text, and that no other text is an id."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.contract.update_id import UpdateId


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1), st.booleans())
def test_text_of_an_id_can_be_parsed_and_is_within_the_contract(sequence: int, tag: int, before: bool) -> None:
    text = str(UpdateId(sequence, tag, before))
    assert UpdateId.parse(text) == (sequence, tag, before)
    assert re.fullmatch(r"[A-Za-z0-9-]{1,64}", text)


def test_id_has_this_text() -> None:
    assert str(UpdateId(1234, 0xABC)) == "1234-00000abc"
    assert str(UpdateId(1234, 0xABC, before=True)) == "before-1234-00000abc"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "5-",
        "-5-00000001",
        "05-00000001",
        "5-1",
        "5-0000000A",
        "5-00000001\n",
        " 5-00000001",
        "\u0665-00000001",
        "9" * 20 + "-00000001",
        "before-",
        "before-before-5-00000001",
        "Before-5-00000001",
        "-before-5-00000001",
    ],
)
def test_other_text_is_not_an_id(text: str) -> None:
    assert UpdateId.parse(text) is None
