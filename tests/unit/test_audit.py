"""Tests of the audit's verdict: a package is clean only if the vulnerability service has looked it up."""

from __future__ import annotations

import json

import pytest

from tests.support.audit import CLEAN, NOT_AUDITED, VULNERABLE, judge, locked

WANTED = {"one": "1.0", "two": "2.0"}
WEAKNESS = {"id": "X-1", "fix_versions": [], "aliases": [], "description": ""}


def entry(name: str, **members: object) -> dict[str, object]:
    return {"name": name, "version": WANTED[name], "vulns": [], **members}


SKIPPED: dict[str, object] = {"name": "two", "skip_reason": "not found: two (2.0)"}


def code(*entries: dict[str, object]) -> int:
    return judge(WANTED, json.dumps({"dependencies": entries, "fixes": []}), "").code


def test_all_packages_looked_up_without_a_vulnerability_are_clean() -> None:
    assert code(entry("one"), entry("two")) == CLEAN


@pytest.mark.parametrize(
    "entries",
    [(entry("one"), SKIPPED), (entry("one"),), (entry("one"), entry("two", version="2.1"))],
    ids=["skipped", "missing", "another version"],
)
def test_package_that_was_not_looked_up_is_not_clean(entries: tuple[dict[str, object], ...]) -> None:
    """pip-audit exits with 0 even if it has skipped a package."""
    assert code(*entries) == NOT_AUDITED


def test_vulnerability_is_reported_although_another_package_was_skipped() -> None:
    assert code(entry("one", vulns=[WEAKNESS]), SKIPPED) == VULNERABLE


def test_lock_files_name_the_packages_of_this_machine_only() -> None:
    text = "# a comment\nOne.X==1.0 \\\n    --hash=sha256:00\ntwo==2.0 ; sys_platform == 'nowhere' \\\n"
    assert locked([text, "three==3.0 ; sys_platform != 'nowhere'\n"]) == {"one-x": "1.0", "three": "3.0"}
