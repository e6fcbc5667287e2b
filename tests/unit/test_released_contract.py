"""Tests of the comparison with the schema files of the last release, in repositories that the tests create."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import released_contract
from tests.support.released_contract import ACCEPTED, last_release, main, report

OLD: dict[str, Any] = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
NEW: dict[str, Any] = {"type": "object", "required": ["a", "b"], "properties": {"a": {"type": "integer"}, "b": {}}}
BROKEN = "own.json: the member 'b' is required now (breaks publishers)"

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *arguments: str) -> None:
    who = (
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@example.org",
        "-c",
        "commit.gpgsign=false",
        "-c",
        "tag.gpgsign=false",
    )
    subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True)


def write(folder: Path, schema: dict[str, Any], version: str = "1.1.0") -> None:
    (folder / "schemas/vectors").mkdir(parents=True, exist_ok=True)
    (folder / "schemas/own.json").write_text(json.dumps(schema))
    (folder / "schemas/README.md").write_text("This is no schema.\n")
    (folder / "schemas/vectors/own.json").write_text("[]")
    (folder / "pyproject.toml").write_text(f'[project]\nversion = "{version}"\n')


def commit(folder: Path, schema: dict[str, Any], tag: str | None = None, version: str = "1.1.0") -> None:
    write(folder, schema, version)
    git(folder, "add", "--all")
    git(folder, "commit", "--allow-empty", "--message", "Change")
    if tag is not None:
        git(folder, "tag", tag)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with one commit, without a tag."""
    folder = tmp_path / "clone"
    folder.mkdir()
    git(folder, "init", "--initial-branch", "main")
    commit(folder, OLD)
    return folder


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command in a folder. Returns the exit code and the printed lines."""

    def run(folder: Path, accepted: str = "") -> tuple[int, list[str]]:
        code = main(folder, {BROKEN: accepted} if accepted else {})
        return code, capsys.readouterr().out.splitlines()

    return run


def test_change_that_breaks_publishers_fails(clone: Path, printed: Any) -> None:
    git(clone, "tag", "v1.0.0")
    write(clone, NEW)
    assert printed(clone) == (1, [f"schemas: since v1.0.0: {BROKEN}"])


def test_change_that_breaks_nobody_passes(clone: Path, printed: Any) -> None:
    git(clone, "tag", "v1.0.0")
    write(clone, {**OLD, "properties": {**OLD["properties"], "b": {"type": "string"}}})
    assert printed(clone) == (0, ["schemas: no change since v1.0.0 breaks publishers or clients"])


def test_accepted_change_passes_until_it_no_longer_exists(clone: Path, printed: Any) -> None:
    git(clone, "tag", "v1.0.0")
    write(clone, NEW)
    assert printed(clone, accepted="nobody publishes it yet")[0] == 0
    commit(clone, NEW, "v1.1.0")
    assert printed(clone, accepted="nobody publishes it yet") == (
        1,
        [f"schemas: since v1.1.0: this change is accepted, but does not exist: {BROKEN}"],
    )


def test_clone_without_a_release_passes_and_says_so(clone: Path, printed: Any) -> None:
    git(clone, "tag", "other")
    write(clone, NEW)
    assert printed(clone) == (0, ["schemas: not compared with a release: there is no release tag"])


@pytest.mark.parametrize("has_tags", [False, True])
def test_shallow_clone_is_compared_if_it_has_the_tag(clone: Path, tmp_path: Path, printed: Any, has_tags: bool) -> None:
    git(clone, "tag", "v1.0.0")
    commit(clone, NEW)
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--depth", "1", "--no-tags", f"file://{clone}", str(shallow))
    if has_tags:
        git(shallow, "fetch", "--depth", "1", "origin", "tag", "v1.0.0")
    hint = "there is no release tag in this shallow clone (`git fetch --tags` fetches them)"
    expected = (
        (1, f"schemas: since v1.0.0: {BROKEN}") if has_tags else (0, f"schemas: not compared with a release: {hint}")
    )
    code, lines = printed(shallow)
    assert (code, *lines) == expected


def test_exported_tree_passes_and_says_so(tmp_path: Path, printed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    folder = tmp_path / "exported"
    write(folder, NEW)
    code, [line] = printed(folder)
    assert code == 0
    assert line.startswith("schemas: not compared with a release: fatal: not a git repository")


def test_exported_tree_in_another_repository_passes_and_says_so(clone: Path, printed: Any) -> None:
    git(clone, "tag", "v1.0.0")
    folder = clone / "exported"
    write(folder, NEW)
    code, [line] = printed(folder)
    assert (code, "is not a clone: it is a part of" in line) == (0, True)


def test_machine_without_git_passes_and_says_so(
    clone: Path, printed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, [line] = printed(clone)
    assert (code, "git can't be run" in line) == (0, True)


def test_git_without_a_message_passes_and_says_so(
    clone: Path, printed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "git").write_text("#!/bin/sh\nexit 7\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert printed(clone) == (0, ["schemas: not compared with a release: git ended with 7"])


def test_release_newer_than_the_project_is_not_the_last_one(clone: Path, printed: Any) -> None:
    """A branch that maintains an older version is compared with that version."""
    git(clone, "tag", "v1.1.0")
    commit(clone, NEW, "v2.0.0", version="2.0.0")
    commit(clone, OLD, version="1.1.1")
    assert printed(clone) == (0, ["schemas: no change since v1.1.0 breaks publishers or clients"])


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["v1.0.0", "v1.9.0", "v1.10.0"], "v1.10.0"),
        (["v1.0.0", "v2.0.1", "v2.0.0"], "v2.0.0"),
        (["v3.0.0"], None),
        (["1.0.0", "v1.0", "v1.0.0-rc1", "v1.0.0.1", "version1.0.0", ""], None),
        ([], None),
    ],
)
def test_last_release_is_the_highest_version_up_to_the_projects(tags: list[str], expected: str | None) -> None:
    assert last_release(tags, (2, 0, 0)) == expected


def test_accepted_changes_have_reasons() -> None:
    assert all(ACCEPTED.values())


def test_report_has_each_change_once() -> None:
    assert report({"own": OLD}, {"own": NEW}, {}) == [BROKEN]


def test_command_compares_this_project() -> None:
    assert released_contract.present(released_contract.ROOT).keys() >= {"killmail", "update"}
