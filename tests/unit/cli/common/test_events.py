"""The files that `check` and `publish` read."""

from __future__ import annotations

import sys

import pytest

from bridge.cli.common.events import read_lines
from bridge.errors import ConfigurationError


def test_standard_input_that_is_closed_can_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ConfigurationError, match=r"^-: can't be read: standard input is closed$"):
        list(read_lines("-"))


def test_file_that_can_not_be_read_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"^missing: can't be read: No such file or directory$"):
        list(read_lines("missing"))
