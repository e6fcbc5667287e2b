"""Tests of the checks of `make lint`.

The hooks of pre-commit run the same commands, and CI runs targets of the Makefile.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.support import releases

ROOT = Path(__file__).parents[2]
TYPOS = Path(sys.executable).with_name("typos")
MAKEFILE = (ROOT / "Makefile").read_text()
WORKFLOW = ROOT / ".github/workflows/ci.yml"
MISSPELLED = "rec" + "ieve"
"""A misspelled word. The word is written in two parts because `make lint` also checks the spelling of this file."""


def yaml(path: Path) -> Any:
    return YAML(typ="safe").load(path)


def recipe(target: str) -> list[list[str]]:
    """Returns the commands of a target, each as a list of words."""
    [lines] = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    commands = lines.replace("\\\n", " ").replace("$(BIN)", ".venv/bin").splitlines()
    return [command.split() for command in commands]


def lint_commands() -> list[list[str]]:
    [targets] = re.findall(r"^lint: (.+)$", MAKEFILE, re.MULTILINE)
    return [command for target in targets.split() for command in recipe(target)]


def misspelled(folder: Path) -> set[str]:
    """Returns the files of a folder in which the check finds a misspelled word."""
    command: list[str | Path] = [TYPOS, "--config", ROOT / "_typos.toml", "--format", "brief"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == (2 if done.stdout else 0), done.stderr
    return {line.split(":")[0].removeprefix("./") for line in done.stdout.splitlines()}


def test_hooks_of_pre_commit_are_the_commands_of_make_lint() -> None:
    [local] = yaml(ROOT / ".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    assert [hook["entry"].split() for hook in local["hooks"]] == lint_commands()
    # Without this setting, pre-commit would append the names of the changed files, and a command would check only these
    # files.
    assert all(hook["language"] == "system" and hook["pass_filenames"] is False for hook in local["hooks"])


def test_each_yaml_file_of_github_is_checked_against_its_schema() -> None:
    files = {str(path.relative_to(ROOT)) for path in (ROOT / ".github").rglob("*.yml")}
    checked = [word for command in lint_commands() if "check-jsonschema" in command[0] for word in command]
    assert {word for word in checked if word.startswith(".github/")} == files


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("README.md", f"Clients {MISSPELLED} updates.\n"),
        ("module.py", f'"""Clients {MISSPELLED} updates."""\n'),
        ("client.js", f"// Clients {MISSPELLED} updates.\n"),
        ("compose.yaml", f"# Clients {MISSPELLED} updates.\n"),
        (".github/workflows/ci.yml", f"name: {MISSPELLED}\n"),
        ("hint.md", "An unknown keyword is " + "requierd.\n"),
    ],
)
def test_misspelled_word_is_found(name: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    assert misspelled(tmp_path) == {name}


def test_hint_for_a_misspelled_name_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "hint.md").write_text("An unknown keyword (`requierd`), and `?sytemId=30000142`.\n")
    assert misspelled(tmp_path) == set()


def test_pyproject_is_spelled_correctly(tmp_path: Path) -> None:
    """The spelling check skips pyproject.toml itself, because this file can contain the check's configuration."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "project.toml")
    assert misspelled(tmp_path) == set()


def test_ci_runs_targets_of_the_makefile_only() -> None:
    [phony] = re.findall(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)
    steps = [step for job in yaml(WORKFLOW)["jobs"].values() for step in job["steps"]]
    for step in steps:
        if "run" in step:
            make, target = step["run"].split()[:2]
            assert (make, target in phony.split()) == ("make", True), step
        else:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])


def test_ci_runs_all_supported_versions_of_python_and_rabbitmq() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    jobs = yaml(WORKFLOW)["jobs"]
    versions = jobs["unit"]["strategy"]["matrix"]["python"]
    prefix = "Programming Language :: Python :: "
    assert [f"{prefix}{version}" for version in versions] == [
        each for each in project["classifiers"] if each.startswith(f"{prefix}3.")
    ]
    assert project["requires-python"] == f">={versions[0]}"
    assert jobs["rabbitmq"]["strategy"]["matrix"]["release"] == list(releases.DEBIAN)


def test_ci_fails_if_a_release_of_rabbitmq_is_not_available() -> None:
    [command] = [step["run"] for step in yaml(WORKFLOW)["jobs"]["rabbitmq"]["steps"] if "run" in step]
    assert "--required" in command
