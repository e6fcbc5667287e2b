"""Who may import whom, how long a module may be, and that each says what it is for: read from the source."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import bridge

ROOT = Path(bridge.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
AMQP = {"aio_pika", "aiormq", "pamqp"}
CLOCKS = {"now", "today", "utcnow"}
TAIL = "bridge.commands.tail"


class Import(NamedTuple):
    """A name that a module imports, and whether that happens as soon as the module is loaded."""

    name: str
    at_once: bool

    def is_of(self, package: str) -> bool:
        return self.name == package or self.name.startswith(package + ".")


def name_of(path: Path) -> str:
    parts = ("bridge", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str, package: str) -> list[Import]:
    """Everything that the source of a module in `package` imports, wherever it stands in it."""
    tree = ast.parse(source)
    later = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # What is imported from a package may be a module of it.
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [Import(name, at_once=node not in later) for name in names]
    return found


@cache
def imports(path: Path) -> list[Import]:
    name = name_of(path)
    return imports_of(path.read_text(), name if path.name == "__init__.py" else name.rpartition(".")[0])


def under(*packages: str) -> list[Path]:
    """The modules of some packages; each has some, lest a rule hold because nothing is looked at."""
    found = [path for path in MODULES if any(name_of(path) == p or name_of(path).startswith(p + ".") for p in packages)]
    assert len(found) > 1
    return found


def breaches(paths: list[Path], *forbidden: str, but: tuple[str, ...] = ()) -> list[str]:
    return [
        f"{name_of(path)} imports {imported.name}"
        for path in paths
        for imported in imports(path)
        if any(imported.is_of(package) for package in forbidden) and not any(imported.is_of(package) for package in but)
    ]


def clocks_of(source: str) -> list[str]:
    """The names in a source by which it would read the clock; `datetime` itself may be imported, to format."""
    names = [
        node.attr if isinstance(node, ast.Attribute) else node.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute | ast.Name)
    ]
    return [name for name in names if name in CLOCKS]


def without(*packages: str) -> list[Path]:
    inside = set(under(*packages))
    return [path for path in MODULES if path not in inside]


@pytest.mark.parametrize(
    ("source", "package", "names"),
    [
        ("import os.path, a", "bridge", [Import("os.path", True), Import("a", True)]),
        ("from bridge import broker", "bridge", [Import("bridge.broker", True)]),
        ("from . import link", "bridge.broker", [Import("bridge.amqp.connection", True)]),
        ("from .link import Node", "bridge.broker", [Import("bridge.amqp.connection.Node", True)]),
        ("from ..fanout import hub", "bridge.broker", [Import("bridge.broadcast.hub", True)]),
        ("if x:\n import a", "bridge", [Import("a", True)]),
        ("class C:\n import a", "bridge", [Import("a", True)]),
        ("async def f():\n if x:\n  import a", "bridge", [Import("a", False)]),
    ],
)
def test_imports_are_found_wherever_they_stand(source: str, package: str, names: list[Import]) -> None:
    assert imports_of(source, package) == names


def test_contract_imports_nothing_else_of_the_bridge() -> None:
    assert breaches(under("bridge.contract"), "bridge", but=("bridge.contract",)) == []


def test_contract_knows_no_sockets_and_no_clock() -> None:
    contract = under("bridge.contract")
    assert breaches(contract, "asyncio", "socket", "time", "structlog", "logging") == []
    assert [f"{name_of(path)} {clock}" for path in contract for clock in clocks_of(path.read_text())] == []


@pytest.mark.parametrize(
    ("source", "clocks"),
    [
        ("datetime.now(UTC)", ["now"]),
        ("x = datetime.datetime.utcnow", ["utcnow"]),
        ("def f():\n return date.today()", ["today"]),
        ("now()", ["now"]),
        ("datetime.fromtimestamp(now_ms, UTC)", []),
    ],
)
def test_clocks_are_found_wherever_they_stand(source: str, clocks: list[str]) -> None:
    assert clocks_of(source) == clocks


def test_broker_and_fanout_do_not_import_each_other() -> None:
    assert breaches(under("bridge.broker"), "bridge.fanout") == []
    assert breaches(under("bridge.fanout"), "bridge.broker") == []


def test_broker_and_fanout_import_nothing_that_joins_them() -> None:
    joining = ("bridge.app", "bridge.relay", "bridge.cli", "bridge.config.settings")
    assert breaches(under("bridge.broker", "bridge.fanout"), *joining) == []


def test_only_the_broker_and_the_demo_import_an_amqp_library() -> None:
    assert breaches(without("bridge.broker", "bridge.demo"), *AMQP) == []


def test_only_fanout_imports_websockets_and_tail_which_is_a_client() -> None:
    [tail] = [path for path in MODULES if name_of(path) == TAIL]
    assert breaches([path for path in without("bridge.fanout") if path != tail], "websockets") == []
    client = ("websockets.asyncio.client", "websockets.exceptions")
    assert breaches([tail], "websockets", "bridge.fanout", but=client) == []


def test_tail_is_loaded_only_when_it_is_asked_for() -> None:
    found = [(name_of(path), i.at_once) for path in MODULES for i in imports(path) if i.is_of(TAIL)]
    assert found == [("bridge.cli.tail", False)]


def test_only_the_demo_imports_testcontainers() -> None:
    assert breaches(without("bridge.demo"), "testcontainers", "docker") == []


def test_demo_is_imported_by_the_command_alone_and_only_when_it_is_asked_for() -> None:
    found = [
        (name_of(path), imported.at_once)
        for path in without("bridge.demo")
        for imported in imports(path)
        if imported.is_of("bridge.demo")
    ]
    assert set(found) == {("bridge.cli", False)}


@pytest.mark.parametrize(
    "name", ["bridge.amqp.wire.settlement", "bridge.broadcast.update_log", "bridge.broadcast.frames"]
)
def test_pure_module_imports_nothing_that_is_not(name: str) -> None:
    [path] = [path for path in MODULES if name_of(path) == name]
    assert breaches([path], "asyncio", "socket", "time", "structlog", "bridge", *AMQP) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_that_holds_anything_says_what_it_is_for(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree)
