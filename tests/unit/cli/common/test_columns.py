"""Tests of the width of a text on a terminal."""

from __future__ import annotations

import pytest

from bridge.cli.common.columns import columns, truncated

WIDE = "\N{CJK UNIFIED IDEOGRAPH-8266}"


@pytest.mark.parametrize(("text", "number"), [("", 0), ("abc", 3), ("ü", 1), (WIDE, 2), (f"a{WIDE}b", 4)])
def test_wide_character_has_two_columns(text: str, number: int) -> None:
    assert columns(text) == number


@pytest.mark.parametrize("text", ["x" * 50, WIDE * 25, f"a{WIDE}" * 17])
@pytest.mark.parametrize("width", range(60))
def test_truncated_text_fits_and_uses_the_width(text: str, width: int) -> None:
    shown = truncated(text, width)
    if columns(text) <= width:
        assert shown == text
    else:
        assert width - 1 <= columns(shown) <= width
        assert shown.endswith("..."[:width])


def test_text_without_a_column_is_empty() -> None:
    assert truncated("abc", -1) == ""
