"""Tests of the files in the built packages, and of README.md as the package index shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.documentation import ROOT, blocks

PICTURE, OTHER = "raw/HEAD/", "blob/HEAD/"

CASES = {
    "[x](docker/README.md)": "[x]({}/blob/HEAD/docker/README.md)",
    "[x](docker/README.md#compose)": "[x]({}/blob/HEAD/docker/README.md#compose)",
    "[x](#run)": "[x]({}#run)",
    "![x](.github/page.png)": "![x]({}/raw/HEAD/.github/page.png)",
    "[![x](page.png)](LICENSE)": "[![x]({}/raw/HEAD/page.png)]({}/blob/HEAD/LICENSE)",
    '<a href="SECURITY.md">': '<a href="{}/blob/HEAD/SECURITY.md">',
    '<a href="#run">': '<a href="{}#run">',
    '<img alt="x" src=".github/light.png">': '<img alt="x" src="{}/raw/HEAD/.github/light.png">',
    '<source media="(x)" srcset=".github/dark.png">': '<source media="(x)" srcset="{}/raw/HEAD/.github/dark.png">',
    "<http://localhost:3000/>": "<http://localhost:3000/>",
    "[x](https://example.org/a)": "[x](https://example.org/a)",
    "![x](https://example.org/a.png)": "![x](https://example.org/a.png)",
    "[x](mailto:a@example.org)": "[x](mailto:a@example.org)",
}
"""Texts that README.md can contain, with the texts that replace them in the package. Braces stand for the URL of the
repository."""


def metadata(folder: Path) -> dict[str, Any]:
    """Returns the metadata that hatchling writes into a package of the project in the folder."""
    command = [sys.executable, "-m", "hatchling", "metadata"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def targets(text: str) -> list[str]:
    """Returns the targets of links and pictures, including reference links and HTML."""
    found = re.findall(r'\]\(([^)]+)\)|^\[[^]]+\]: *(\S+)|\b(?:href|src|srcset)="([^"]+)"', text, re.MULTILINE)
    return ["".join(each) for each in found]


@pytest.fixture(scope="module")
def package() -> dict[str, Any]:
    return metadata(ROOT)


def test_readme_of_the_package_has_no_relative_link(package: dict[str, Any]) -> None:
    text = package["readme"]["text"]
    assert package["readme"]["content-type"] == "text/markdown"
    assert [each for each in targets(text) if not re.match("(https?|mailto|wss?):", each)] == []
    # The number of links is the same in the package's text and in README.md, so no link was removed.
    assert len(targets(text)) == len(targets((ROOT / "README.md").read_text()))


def test_links_of_the_package_lead_to_the_repository_of_the_project(package: dict[str, Any]) -> None:
    address = package["urls"]["Repository"]
    assert all(url.startswith(address) for url in package["urls"].values())
    relative = [each for each in targets((ROOT / "README.md").read_text()) if "://" not in each]
    absolute = [each for each in targets(package["readme"]["text"]) if each.startswith(address)]
    prefixes = (f"{address}#", f"{address}/{PICTURE}", f"{address}/{OTHER}")
    assert [each for each in absolute if not each.startswith(prefixes)] == []
    assert [each.removeprefix(f"{address}/{PICTURE}").removeprefix(f"{address}/{OTHER}") for each in absolute] == [
        f"{address}{each}" if each.startswith("#") else each for each in relative
    ]


def test_code_blocks_of_the_readme_are_not_changed(package: dict[str, Any]) -> None:
    assert [block.text for block in blocks("README.md") if block.text not in package["readme"]["text"]] == []


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """For each text in CASES, the text that takes its place in the package."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("LICENSE", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / "README.md").write_text("\n".join(CASES))
    return dict(zip(CASES, metadata(folder)["readme"]["text"].splitlines(), strict=True))


@pytest.mark.parametrize("text", CASES)
def test_links_become_absolute(text: str, converted: dict[str, str], package: dict[str, Any]) -> None:
    assert converted[text] == CASES[text].replace("{}", package["urls"]["Repository"])


STRAY = (
    ".env",
    "secrets/amqp-url",
    "bridge/secrets/amqp-url",
    "bridge/key.pem",
    "bridge/cli/notes.txt",
    "bridge/page/secrets/amqp-url",
    "schemas/.env",
    "schemas/draft.txt",
    "schemas/clients/key.pem",
)
"""Files that a clone of the repository may have, but a package must not."""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files from which packages are built, with stray files."""
    folder = tmp_path_factory.mktemp("clone")
    for name in (".gitignore", "LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for name in ("bridge", "docker", "schemas"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in STRAY:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("amqp://user:password@localhost/")
    return folder


def built(clone: Path, target: str) -> Path:
    """Builds a package of the clone, and returns its path."""
    folder = clone / "dist"
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [package] = folder.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return package


def needed_files() -> set[str]:
    """Returns the files that the bridge and its users need, by their paths in the project."""
    page = "filter.js", "health.js", "icon.svg", "index.html", "list.js", "page.css", "page.js", "rate.js", "row.js"
    found = [*(ROOT / "bridge").rglob("*.py"), *(ROOT / "schemas").glob("*.json")]
    return {
        *(str(path.relative_to(ROOT)) for path in found),
        *(f"bridge/page/{name}" for name in page),
        "bridge/py.typed",
        "schemas/clients/browser.js",
        "schemas/generated/source-formats.d.ts",
        "schemas/generated/updates.d.ts",
    }


def assert_wheel_has_only_needed_files(project: Path) -> None:
    with zipfile.ZipFile(built(project, "wheel")) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}
    assert names == {re.sub("^schemas/", "bridge/schemas/", name) for name in needed_files()}


def test_wheel_has_only_needed_files(clone: Path) -> None:
    assert_wheel_has_only_needed_files(clone)


def test_source_distribution_has_only_what_builds_the_wheel(clone: Path, tmp_path: Path) -> None:
    with tarfile.open(built(clone, "sdist")) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
        opened.extractall(tmp_path, filter="data")
    about = {".gitignore", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
    assert names == needed_files() | about
    [project] = tmp_path.iterdir()
    assert_wheel_has_only_needed_files(project)


def test_secrets_of_the_documented_commands_are_ignored() -> None:
    command = next(block.text for block in blocks("docker/README.md") if "secrets" in block.text)
    assert "mkdir -m 700 secrets" in command
    assert "secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    assert "**/secrets" in (ROOT / ".dockerignore").read_text().splitlines()
