"""Loads the example publisher in Python, and prepares a folder for programs that use the example in Node."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

from bridge.contract.catalog import PACKAGED
from tests.bench import build
from tests.bench.process import Failed
from tests.support.broker.session import unavailable

PUBLISHERS = PACKAGED / "publishers"


def python_publisher() -> ModuleType:
    """Returns the example in Python as a new module."""
    spec = importlib.util.spec_from_file_location("publisher", PUBLISHERS / "publisher.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def node_program(folder: Path, text: str) -> None:
    """Writes a program to `main.mjs`, and puts the example in Node and the Node packages into the same folder.

    Without Node, the test is skipped on a developer's machine, and fails in CI.
    """
    if shutil.which("node") is None:
        unavailable("node is not installed; `make prepare` installs it")
    try:
        build.bun()
    except Failed as error:
        unavailable(str(error))
    shutil.copy(PUBLISHERS / "publisher.mjs", folder)
    (folder / "node_modules").symlink_to(build.NODE / "node_modules")
    (folder / "main.mjs").write_text(text)
