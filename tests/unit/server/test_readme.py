"""Tests that the server's README lists every close code, every HTTP status of an error, and every access rule."""

import re
from http import HTTPStatus
from pathlib import Path

import pytest

from bridge.broadcast.close_reasons import CloseReason
from bridge.server.access.rules import Rule
from tests.support.documentation import ROOT

SERVER = ROOT / "bridge" / "server"
README = (SERVER / "README.md").read_text()


def first_cells(heading: str) -> list[str]:
    """Returns the first cell of each table row below a heading, up to the next heading of the same level."""
    _, section = README.split(f"\n## {heading}\n")
    section = section.split("\n## ")[0]
    return re.findall(r"^\| (.+?) \|", section, re.MULTILINE)


def statuses(folder: Path) -> set[HTTPStatus]:
    """Returns the HTTP statuses that occur in the code of a folder."""
    names = {name for path in folder.rglob("*.py") for name in re.findall(r"HTTPStatus\.([A-Z_]+)", path.read_text())}
    return {HTTPStatus[name] for name in names}


@pytest.mark.parametrize("reason", CloseReason)
def test_each_close_code_is_listed(reason: CloseReason) -> None:
    assert str(reason.code) in first_cells("Close codes")


@pytest.mark.parametrize("status", sorted(each for each in statuses(SERVER) if 400 <= each < 500))
def test_each_status_of_a_refusal_is_listed(status: HTTPStatus) -> None:
    assert str(status.value) in first_cells("Close codes")


def test_no_other_status_of_an_error_is_listed() -> None:
    listed = {int(cell) for cell in first_cells("Close codes") if re.fullmatch(r"[45]\d\d", cell)}
    assert listed == {status.value for status in statuses(SERVER) if status >= 400}


@pytest.mark.parametrize("rule", [Rule.PEER, Rule.FORWARDED, Rule.HOST, Rule.ORIGIN])
def test_each_rule_of_access_is_listed(rule: Rule) -> None:
    assert f"`{rule.value}`" in first_cells("Access")
