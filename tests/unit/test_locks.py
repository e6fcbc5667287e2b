"""Tests that lock files pin each package by version and hashes, and that each package of the bridge is known."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.audit import AUDIT, BUILD, DEV, LOCKS, MUTANTS, PLOTS, ROOT
from tests.support.audit import SHIPPED as SHIPPED_LOCK
from tests.unit.test_architecture import MODULES, imports

PINNED = re.compile(
    r"[a-z0-9][a-z0-9._-]*==[0-9][\w.+!-]*(?: ; [\w .*'=!<>()]+)?(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n"
)

SHIPPED = {
    "aio-pika": "AMQP: the broker's side",
    "aiormq": "the library under aio-pika, which raises its errors",
    "click": "the command line",
    "httptools": "the headers of HTTP requests",
    "idna": "host names that are not ASCII, as browsers write them",
    "jsonschema-rs": "validation against the schema files",
    "multidict": "yarl's",
    "orjson": "JSON, strictly and fast",
    "pamqp": "AMQP's methods and tables",
    "prometheus-client": "/metrics",
    "propcache": "yarl's",
    "python-dotenv": "the file .env",
    "structlog": "the log",
    "uvloop": "the event loop",
    "websockets": "WebSocket: the handshake, and unmasking",
    "yarl": "the broker's URL, as aio-pika takes it",
}
"""All packages that are installed with the bridge, each with its purpose.

Because of this list, no new package can be added by accident.
"""

DEMO = {"testcontainers", "docker"}
"""The packages that only the demo imports, with their dependencies. The extra `demo` installs these packages."""


def entries(lock: Path) -> str:
    """Returns the entries of a lock file without its comments."""
    return "".join(line for line in lock.read_text().splitlines(keepends=True) if not line.startswith("#"))


def pins(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(), re.MULTILINE))


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_each_package_is_pinned_with_hashes_and_names_no_location(lock: Path) -> None:
    text = entries(lock)
    found = PINNED.findall(text)
    # The lock file contains nothing but its entries, so it contains no option of pip, no URL and no path.
    assert "".join(found) == text
    assert len(found) == len(pins(lock))


@pytest.mark.parametrize(
    "line",
    [
        "orjson @ https://example.org/orjson.whl \\\n    --hash=sha256:" + "0" * 64 + "\n",
        "--index-url https://example.org/simple\n",
    ],
)
def test_line_that_names_a_location_is_found(line: str) -> None:
    """pip refuses a line without a version or a hash, but it does not refuse a line that names a location."""
    assert not PINNED.fullmatch(line)


@pytest.mark.parametrize("lock", [SHIPPED_LOCK, BUILD], ids=lambda lock: lock.name)
def test_tests_use_the_same_versions_as_the_bridge(lock: Path) -> None:
    assert pins(lock).items() <= pins(DEV).items()


@pytest.mark.parametrize("lock", [BUILD, DEV, AUDIT, MUTANTS, PLOTS], ids=lambda lock: lock.name)
def test_no_package_is_locked_in_two_versions(lock: Path) -> None:
    """`make audit` looks up one version of each package."""
    assert all(pins(lock).get(name, version) == version for other in LOCKS for name, version in pins(other).items())


def test_packages_of_the_audit_are_not_installed_with_the_bridge() -> None:
    assert "pip-audit" in pins(AUDIT)
    # structlog loads `rich` if it is installed. The 5 MB of memory that `rich` needs would count as the bridge's memory
    # in the benchmark.
    assert "rich" not in pins(DEV)


def test_each_package_of_the_bridge_has_a_reason() -> None:
    assert set(pins(SHIPPED_LOCK)) == set(SHIPPED)


def test_declared_packages_are_the_imported_ones() -> None:
    sources = packages_distributions()
    imported = {
        canonicalize_name(source)
        for module in MODULES
        for found in imports(module)
        for source in sources.get(found.name.partition(".")[0], ())
        if found.name.partition(".")[0] not in sys.stdlib_module_names
    }
    assert imported - DEMO - {"edk-bridge"} == declared()
