"""Each document has working links, and each of its examples is run by a test."""

import ast
import re
import struct
from functools import cache
from pathlib import Path

import orjson
import pytest

from tests.support.documentation import ROOT, blocks

FOLDERS = (".github", "bridge", "docker", "schemas", "tests")

DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]
    if "node_modules" not in path.parts
)

SHOWN = {"text", "mermaid", "json"}
"""The languages of code blocks that no test runs, because they show an output, a diagram or a message."""

NOT_RUN: dict[tuple[str, str, int], str] = {
    ("docker/README.md", "systemd", 0): "downloads from the package index; the build of the image runs the same steps",
    ("docker/README.md", "systemd", 2): "needs a running systemd and the root user",
    ("schemas/clients/README.md", "Command line", 1): "needs curl 8.11; the machines of the tests have an older one",
    ("README.md", "Tests", 0): "runs all tests, and so this one",
    ("tests/bench/README.md", "How it was measured", 0): "takes half an hour; test_bench.py runs a short benchmark",
}
"""The examples that no test can run, with the reason for each example."""


@cache
def prose(document: str) -> list[tuple[int, str]]:
    """Returns the numbered lines of a document that are not in a code block."""
    lines = list(enumerate((ROOT / document).read_text().splitlines(), 1))
    for block in blocks(document):
        end = block.line + block.text.count("\n") + 1
        lines = [each for each in lines if not block.line <= each[0] <= end]
    return lines


def anchors(document: Path) -> set[str]:
    """Returns the anchors of the headings, as GitHub makes them."""
    lines = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}


def links(document: str) -> list[tuple[int, str]]:
    """Returns the links and pictures of a document, each with its line."""
    found = []
    for number, line in prose(document):
        text = re.sub(r"`[^`]*`", "", line)
        found += [(number, target) for target in re.findall(r"\]\(([^)\s]+)\)", text)]
        found += [(number, target) for target in re.findall(r'\b(?:src|srcset|href)="([^"]+)"', text)]
    return found


@cache
def run_examples() -> set[tuple[str, str, int]]:
    """Returns the examples that tests name in a call `code_block(...)`."""
    found = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "code_block":
                document, heading, number = (*(ast.literal_eval(each) for each in node.args), 0)[:3]
                found.add((document, heading, number))
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_link_leads_somewhere(document: str) -> None:
    broken = []
    for line, target in links(document):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        if not file.exists() or (anchor and (file.is_dir() or anchor not in anchors(file))):
            broken.append(f"{document}:{line}: {target}")
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_path_that_is_named_exists(document: str) -> None:
    """The paths in documents begin at the top of the project."""
    named = re.compile(r"`((?:\.github|bridge|docker|schemas|tests)/[a-z0-9_./-]+)`")
    found = [(line, path) for line, text in prose(document) for path in named.findall(text)]
    assert not [f"{document}:{line}: {path}" for line, path in found if not (ROOT / path).exists()]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_example_is_run(document: str) -> None:
    named = run_examples() | NOT_RUN.keys()
    missing = [
        f"{document}:{block.line}: {block.heading!r}, number {block.number}"
        for block in blocks(document)
        if block.language not in SHOWN and (document, block.heading, block.number) not in named
    ]
    assert not missing, "no test calls code_block() for these blocks"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_message_that_is_shown_is_json(document: str) -> None:
    for block in blocks(document):
        if block.language == "json":
            orjson.loads(block.text)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_code_is_fenced_and_has_a_language(document: str) -> None:
    """The tests that run the examples of the documentation find only fenced code blocks."""
    indented = [f"{document}:{number}" for number, line in prose(document) if line.startswith("    ")]
    assert not indented, "an indented code block is not run by any test"
    assert not [f"{document}:{block.line}" for block in blocks(document) if not block.language]


def test_examples_that_are_not_run_exist() -> None:
    found = {(block.document, block.heading, block.number) for name in DOCUMENTS for block in blocks(name)}
    assert not NOT_RUN.keys() - found


def test_each_document_can_be_reached_from_the_readme() -> None:
    reached: set[str] = set()
    waiting = ["README.md"]
    while waiting:
        document = waiting.pop()
        reached.add(document)
        for _, target in links(document):
            path = target.partition("#")[0]
            if path and "://" not in path:
                file = ((ROOT / document).parent / path).resolve()
                name = str((file / "README.md" if file.is_dir() else file).relative_to(ROOT.resolve()))
                if name in DOCUMENTS and name not in reached:
                    waiting.append(name)
    assert not set(DOCUMENTS) - reached - {".github/pull_request_template.md"}


def test_readme_is_short() -> None:
    assert (ROOT / "README.md").stat().st_size < 8000


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_pictures_of_the_live_page_are_small(scheme: str) -> None:
    picture = (ROOT / f".github/live-page-{scheme}.png").read_bytes()
    # The header of the first chunk, IHDR, has the width and the height (PNG specification, section 11.2.1).
    assert picture.startswith(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR")
    assert struct.unpack(">II", picture[16:24]) == (1280, 640)
    assert len(picture) < 150_000
