"""Tests that untrusted text becomes safe for headers and log lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.contract.text import LIMIT, from_system, json_pointer, printable, unescape


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("plain", "plain"),
        ("Jita IV \u2013 \u2603", "Jita IV \u2013 \u2603"),
        ("a\nb", "a\\nb"),
        ("\x00\x1b[31m", "\\x00\\x1b[31m"),
        ("\x7f\x85", "\\x7f\\x85"),
        ("\u202egnp", "\\u202egnp"),
        ("\ud800", "\\ud800"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_characters_that_are_not_printable_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_text_of_the_maximum_length_is_unchanged() -> None:
    assert printable("x" * LIMIT) == "x" * LIMIT


def test_longer_text_loses_its_middle() -> None:
    text = "value" + "x" * LIMIT + "expected"
    shown = printable(text)
    assert shown.startswith("value")
    assert shown.endswith("expected")
    assert shown == text[: LIMIT // 2] + " ... " + text[-LIMIT // 2 :]


def test_limit_may_be_given() -> None:
    assert printable("abcdef", 4) == "ab ... ef"


@given(text=st.text(alphabet=st.characters(), max_size=1000), limit=st.integers(2, 500))
def test_any_text_becomes_printable_and_bounded(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit + len(" ... ")


def test_escapes_count_towards_the_limit() -> None:
    shown = printable("\U000e0001" * LIMIT)
    assert shown == "\\U000e0001" * (LIMIT // 20) + " ... " + "\\U000e0001" * (LIMIT // 20)


@pytest.mark.parametrize(
    ("path", "pointer"),
    [
        ([], ""),
        (["killmailId"], "/killmailId"),
        (["a/b", 0], "/a~1b/0"),
        (["~", "~1", ""], "/~0/~01/"),
    ],
)
def test_path_becomes_a_json_pointer(path: list[str | int], pointer: str) -> None:
    assert json_pointer(path) == pointer


@given(path=st.lists(st.text(), max_size=5))
def test_any_pointer_can_be_read_back(path: list[str]) -> None:
    steps = json_pointer(list(path)).split("/")[1:]
    assert [step.replace("~1", "/").replace("~0", "~") for step in steps] == path


@pytest.mark.parametrize(
    ("name", "text"),
    [("a", "a"), ("\xe4", "\xe4"), ("\udcc3\udca4", "\xe4"), ("\udcff", "\\xff"), ("\U0001f680\n", "\U0001f680\n")],
    ids=ascii,
)
def test_name_from_the_system_is_text_that_utf_8_can_encode(name: str, text: str) -> None:
    assert from_system(name) == text


def test_step_of_a_pointer_is_unescaped_as_rfc_6901_says() -> None:
    assert [unescape(step) for step in ("a", "a~1b", "~01", "~0~1")] == ["a", "a/b", "~1", "~/"]
