"""Tests of the line that shows an update to a person."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest

from bridge.cli.common import update_line
from bridge.cli.common.colors import ID, TYPE
from bridge.cli.common.update_line import NO_TIME
from tests.support.killmail import EXAMPLE

TIMESTAMP = 1697962000000
"""The Unix time of 2023-10-22 08:06:40 UTC, in ms."""


def update(data: object, kind: str = "killmail") -> dict[str, Any]:
    return {"type": kind, "data": data, "timestamp": TIMESTAMP, "id": "1-9f86d081"}


def as_line(message: dict[str, Any], width: int | None, *, in_color: bool) -> str:
    return update_line.as_line(message, width, in_color=in_color, text=orjson.dumps(message).decode())


KILLMAIL = "08:06:40  killmail  ship 587    system 30000142    15 att.  123456789"


def test_killmail_shows_its_time_ship_system_attackers_and_id() -> None:
    assert as_line(update(EXAMPLE), None, in_color=False) == KILLMAIL
    assert len(KILLMAIL) <= 80


def test_other_update_shows_its_data_as_json() -> None:
    line = as_line(update({"kills": 3, "names": ["a"]}, "statistics"), None, in_color=False)
    assert line == '08:06:40  statistics  {"kills":3,"names":["a"]}'


@pytest.mark.parametrize("data", [{}, None, {**EXAMPLE, "shipTypeId": "587"}], ids=["empty", "null", "text"])
def test_killmail_without_the_members_of_the_contract_is_shown_as_json(data: object) -> None:
    assert as_line(update(data), None, in_color=False).startswith("08:06:40  killmail  ")


@pytest.mark.parametrize("width", range(len(KILLMAIL) + 2))
def test_line_fits_into_the_width(width: int) -> None:
    line = as_line(update(EXAMPLE), width, in_color=False)
    assert len(line) <= width
    assert line == KILLMAIL if width >= len(KILLMAIL) else line.endswith("..."[:width])


@pytest.mark.parametrize("width", range(30, 60))
def test_wide_character_counts_twice(width: int) -> None:
    wide = "\N{CJK UNIFIED IDEOGRAPH-8266}"
    line = as_line(update({"name": wide * 50}, "event"), width, in_color=False)
    assert width - 1 <= len(line) + line.count(wide) <= width


@pytest.mark.parametrize("kind", ["killmail", "statistics", "\x1b[2J"])
def test_control_characters_are_escaped(kind: str) -> None:
    line = as_line(update({"note": "\x9b2J\u202e\x1b]0;x\x07"}, kind), None, in_color=False)
    assert line.isprintable()
    assert '{"note":"\\u009b2J\\u202e\\u001b]0;x\\u0007"}' in line


def test_colors_are_added_and_nothing_else_changes() -> None:
    line = as_line(update(EXAMPLE), 60, in_color=True)
    assert TYPE("killmail") in line
    assert ID("123456789") in as_line(update(EXAMPLE), None, in_color=True)
    assert re.sub(r"\x1b\[[0-9;]*m", "", line) == as_line(update(EXAMPLE), 60, in_color=False)


@pytest.mark.parametrize("levels", [300, 1000])
@pytest.mark.parametrize("kind", ["killmail", "event"])
def test_deeply_nested_data_is_shown_as_it_is(levels: int, kind: str) -> None:
    text = f'{{"type":"{kind}","data":{"[" * levels}"\x9b"{"]" * levels},"timestamp":{TIMESTAMP}}}'
    line = update_line.as_line(orjson.loads(text), 80, in_color=False, text=text)
    assert line == f'08:06:40  {kind}  {{"type":"{kind}","data":{"[" * 80}'[:77] + "..."
    line = update_line.as_line(orjson.loads(text), None, in_color=False, text=text)
    assert line == f"08:06:40  {kind}  {text}".replace("\x9b", "\\u009b")


DEEP = orjson.loads("[" * 1010 + "]" * 1010)


@pytest.mark.parametrize("timestamp", [None, "soon", 1e300, float("nan"), DEEP, 2**64 - 1, -(2**63)])
def test_invalid_timestamp_is_shown_as_no_time(timestamp: object) -> None:
    message = {"type": "event", "data": {}, "timestamp": timestamp}
    line = update_line.as_line(message, None, in_color=False, text="")
    assert line == f"{NO_TIME}  event  {{}}"
