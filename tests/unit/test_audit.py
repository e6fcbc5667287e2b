"""What is made of pip-audit's answer: clean is only what was looked up."""

from __future__ import annotations

import json

from tests.support.audit import CLEAN, NOT_AUDITED, VULNERABLE, judge, locked

WANTED = {"one": "1.0", "two": "2.0"}
WEAKNESS = {"id": "X-1", "fix_versions": [], "aliases": [], "description": ""}


def entry(name: str, **members: object) -> dict[str, object]:
    return {"name": name, "version": WANTED[name], "vulns": [], **members}


def verdict(*entries: dict[str, object]) -> tuple[int, str]:
    found = judge(WANTED, json.dumps({"dependencies": entries, "fixes": []}), "")
    return found.code, "\n".join(found.lines)


def test_every_package_looked_up_and_nothing_known_is_clean() -> None:
    assert verdict(entry("one"), entry("two")) == (CLEAN, "2 packages looked up, no known vulnerability")


def test_package_that_was_skipped_is_no_clean_bill() -> None:
    """What pip-audit itself calls "No known vulnerabilities found", with the exit code 0."""
    code, text = verdict(entry("one"), {"name": "two", "skip_reason": "not found: two (2.0)"})
    assert code == NOT_AUDITED
    assert "could not tell of 1 of 2 packages:\n  not found: two (2.0)\n" in text


def test_package_that_is_not_in_the_answer_is_no_clean_bill() -> None:
    code, text = verdict(entry("one"))
    assert code == NOT_AUDITED
    assert "not asked about: two" in text


def test_other_version_than_the_locked_one_is_no_clean_bill() -> None:
    assert verdict(entry("one"), entry("two", version="2.1"))[0] == NOT_AUDITED


def test_of_many_that_were_skipped_the_first_are_named() -> None:
    wanted = {f"p{number}": "1" for number in range(7)}
    entries = [{"name": name, "skip_reason": f"not found: {name}"} for name in wanted]
    found = judge(wanted, json.dumps({"dependencies": entries}), "")
    assert found.lines[1:7] == (*(f"  not found: p{number}" for number in range(5)), "  and 2 more")


def test_vulnerability_counts_also_where_something_was_skipped() -> None:
    code, text = verdict(entry("one", vulns=[WEAKNESS]), {"name": "two", "skip_reason": "not found"})
    assert (code, text) == (VULNERABLE, "known vulnerabilities: 1\none 1.0: X-1; not mended yet")


def test_no_json_shows_the_last_line_at_the_margin() -> None:
    found = judge(WANTED, "", "Traceback:\n  File somewhere\nConnectionError: nobody there\n  a note\n")
    assert found.code == NOT_AUDITED
    assert found.lines[1] == "  ConnectionError: nobody there"


def test_locked_are_those_of_this_machine() -> None:
    text = "# a comment\nOne.X==1.0 \\\n    --hash=sha256:00\ntwo==2.0 ; sys_platform == 'nowhere' \\\n"
    assert locked([text, "three==3.0 ; sys_platform != 'nowhere'\n"]) == {"one-x": "1.0", "three": "3.0"}
