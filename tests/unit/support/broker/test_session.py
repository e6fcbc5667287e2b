"""Tests what happens to a test if a program that the test needs is not installed."""

from __future__ import annotations

import pytest

from tests.support.broker.session import needs


@pytest.mark.parametrize(
    ("command", "ci", "is_skipped"),
    [("no-such-command", "", True), ("no-such-command", "true", False), ("sh", "", False)],
)
def test_missing_command_skips_a_test_except_in_ci(
    command: str, ci: str, is_skipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", ci)
    assert needs(command).mark.args == (is_skipped,)
