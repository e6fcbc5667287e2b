"""Tests of this project's code for `make mutants`, which chooses modules and tests, and summarizes mutmut's results."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.mutants import Usage, change, changed, named, summary, unit_tests_of

ORIGINAL = """import os


def free(limit: int = 1) -> int:
    return limit


class Hub:
    # A comment, and a decorator, before the function.
    @staticmethod
    async def free(
        limit: int,
    ) -> int:
        one = 1
        return one + limit
"""

MUTATED = """import os


def free(limit: int = 1) -> int:
    return limit

def x_free__mutmut_orig(limit: int = 1) -> int:
    return limit

def x_free__mutmut_1(limit: int = 2) -> int:
    return limit


class Hub:
    @staticmethod
    async def xǁHubǁfree__mutmut_orig(
        limit: int,
    ) -> int:
        one = 1
        return one + limit

    @staticmethod
    async def xǁHubǁfree__mutmut_1(
        limit: int,
    ) -> int:
        one = 1
        return one - limit
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Makes a project with some modules and tests."""
    files = {
        "bridge/__init__.py": "",
        "bridge/one.py": "",
        "bridge/two.py": "from bridge import one",
        "bridge/three.py": "",
        "tests/unit/test_two.py": "def test() -> None:\n    import bridge.two",
        "tests/unit/test_three.py": "from bridge.three import name",
        "tests/unit/test_architecture.py": "import bridge.one",
        "tests/integration/test_one.py": "import bridge.one",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


# The root file system with the newest Python has no git.
with_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(tree: Path, *arguments: str) -> None:
    who = ("-c", "user.name=somebody", "-c", "user.email=", "-c", "init.defaultBranch=main")
    subprocess.run(["git", *who, *arguments], cwd=tree, check=True, capture_output=True)


def test_modules_are_taken_once_and_relative_to_the_root(tree: Path) -> None:
    assert named(["bridge/two.py", "./bridge/one.py", str(tree / "bridge/two.py")], tree) == [
        "bridge/two.py",
        "bridge/one.py",
    ]


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("bridge/four.py", "does not exist"),
        ("bridge", "is not a module of the bridge"),
        ("tests/unit/test_two.py", "is not a module of the bridge"),
        ("bridge/../tests/unit/test_two.py", "is not a module of the bridge"),
    ],
)
def test_argument_that_is_no_module_is_refused_by_its_name(argument: str, problem: str, tree: Path) -> None:
    with pytest.raises(Usage, match=f"^{argument} {problem}: "):
        named(["bridge/one.py", argument], tree)


@with_git
def test_without_a_commit_to_compare_with_modules_must_be_named(tree: Path) -> None:
    git(tree, "init")
    with pytest.raises(Usage, match="name the modules in FLAGS"):
        changed(tree)


@with_git
def test_changed_modules_are_those_of_commits_of_the_working_tree_and_new_ones(tree: Path) -> None:
    git(tree, "init")
    git(tree, "add", ".")
    git(tree, "commit", "-m", "first")
    (tree / "bridge/one.py").write_text("ONE = 1")
    (tree / "bridge/page.js").write_text("")
    (tree / "tests/unit/test_two.py").write_text("")
    git(tree, "add", ".")
    git(tree, "commit", "-m", "second")
    (tree / "bridge/three.py").unlink()
    (tree / "bridge/two.py").write_text("")
    (tree / "bridge/four.py").write_text("")
    assert changed(tree) == ("HEAD~1", ["bridge/four.py", "bridge/one.py", "bridge/two.py"])
    git(tree, "update-ref", "refs/remotes/origin/main", "HEAD")
    assert changed(tree) == ("origin/main", ["bridge/four.py", "bridge/two.py"])


def test_tests_are_the_unit_tests_that_import_the_module_directly_or_indirectly(tree: Path) -> None:
    assert unit_tests_of(["bridge/one.py"], tree) == ["tests/unit/test_two.py"]
    assert unit_tests_of(["bridge/one.py", "bridge/three.py"], tree) == [
        "tests/unit/test_three.py",
        "tests/unit/test_two.py",
    ]
    assert unit_tests_of([], tree) == []


def test_change_of_a_default_is_at_the_function_and_has_its_name() -> None:
    before, after = ["def free(limit: int = 1) -> int:"], ["def free(limit: int = 2) -> int:"]
    assert change(ORIGINAL, MUTATED, "x_free__mutmut_1") == (4, before, after)


def test_change_in_a_method_is_at_its_line_in_the_original() -> None:
    before, after = ["        return one + limit"], ["        return one - limit"]
    assert change(ORIGINAL, MUTATED, "xǁHubǁfree__mutmut_1") == (15, before, after)


def test_summary_shows_survivors_then_functions_without_tests_then_counts() -> None:
    results = """
    bridge.hub.x_free__mutmut_1: killed
    bridge.hub.xǁHubǁfree__mutmut_1: survived
    bridge.hub.xǁHubǁjoin__mutmut_1: no tests
    bridge.hub.xǁHubǁjoin__mutmut_2: no tests
    bridge.x_main__mutmut_1: segfault
"""
    texts = {"bridge/__init__.py": ("", ""), "bridge/hub.py": (ORIGINAL, MUTATED)}
    assert summary(results, texts) == [
        "bridge/hub.py:15",
        "  - return one + limit",
        "  + return one - limit",
        "bridge/hub.py: no unit test calls Hub.join",
        "1 killed, 1 survived, 0 timeout, 2 no tests, 1 segfault",
    ]
