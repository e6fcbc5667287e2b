"""Tests how a line of JSON is colored. The colors do not change the text."""

from __future__ import annotations

import re

import pytest

from bridge.cli.common.colors import ID, NAME, TIME, TYPE, colored

LINE = (
    '{"type":"killmail","data":{"killmailId":1,"timestamp":"2024","note":"a \\"type\\": \\\\","systemId":-1.5e3,'
    '"n":null,"list":[1,"x",true]},"timestamp":1697962000000,"id":"1-9f86d081"}'
)


def test_type_id_and_time_stand_out() -> None:
    shown = colored(LINE)
    for style, value in (
        (TYPE, '"killmail"'),
        (ID, "1"),
        (TIME, '"2024"'),
        (TIME, "1697962000000"),
        (ID, '"1-9f86d081"'),
        (NAME, '"systemId"'),
    ):
        assert style(value) in shown


@pytest.mark.parametrize("line", [LINE, "", "{}", '{"a": "b"}', '"unended', '{"a":"' + "\\\\" * 1000 + '"}'])
def test_text_without_colors_is_unchanged(line: str) -> None:
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored(line)) == line
