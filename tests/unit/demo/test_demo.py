"""Tests of the lines that the demo prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bridge import logs, queued_output
from bridge.demo import demo

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(("number", "shown"), [(1, "1 line dropped: "), (1204, "1,204 lines dropped: ")])
def test_dropped_lines_are_counted(
    number: int, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reports: list[Callable[[int], None]] = []
    monkeypatch.setattr(queued_output, "install", lambda _stream, report, _limit: reports.append(report))
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    demo.never_block()
    for report in reports:
        report(number)
    assert [line.startswith(shown) for line in capsys.readouterr().err.splitlines()] == [True, True]
