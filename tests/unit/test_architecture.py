"""Tests that each folder imports only from the folders that it is allowed to import from.

Also tests that imports have no cycles, and that each module has a docstring.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import bridge
from bridge.cli import COMMANDS as COMMAND_NAMES

ROOT = Path(bridge.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
AMQP = {"aio_pika", "aiormq", "pamqp"}
CLOCKS = {"now", "today", "utcnow"}
COMMANDS = tuple(f"bridge.cli.{name}" for name in COMMAND_NAMES)
CLIENT = "bridge.cli.follow.websocket"


class Import(NamedTuple):
    """A name that a module imports. `at_once` is true if the import runs when the module is loaded."""

    name: str
    at_once: bool

    def is_of(self, package: str) -> bool:
        return self.name == package or self.name.startswith(package + ".")


def name_of(path: Path) -> str:
    parts = ("bridge", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str, package: str) -> list[Import]:
    """Returns all imports in the source of a module in `package`, including imports inside functions."""
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
            # A name that is imported from a package may be a module.
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
    """Returns the modules of some packages.

    Fails if the packages have no modules, because a rule without modules would always be fulfilled.
    """
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
    """Returns the names in a source that read the clock.

    The name of the class `datetime` is not returned, because the class also formats times.
    """
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
        ("from bridge import amqp", "bridge", [Import("bridge.amqp", True)]),
        ("from . import nodes", "bridge.amqp", [Import("bridge.amqp.nodes", True)]),
        ("from .nodes import Node", "bridge.amqp", [Import("bridge.amqp.nodes.Node", True)]),
        ("from ..broadcast import hub", "bridge.amqp", [Import("bridge.broadcast.hub", True)]),
        ("if x:\n import a", "bridge", [Import("a", True)]),
        ("class C:\n import a", "bridge", [Import("a", True)]),
        ("async def f():\n if x:\n  import a", "bridge", [Import("a", False)]),
    ],
)
def test_imports_are_found_anywhere_in_a_module(source: str, package: str, names: list[Import]) -> None:
    assert imports_of(source, package) == names


def test_contract_imports_no_sockets_and_no_clock() -> None:
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
def test_clocks_are_found_anywhere_in_a_module(source: str, clocks: list[str]) -> None:
    assert clocks_of(source) == clocks


ANY = ("authority", "errors", "metrics", "logs", "backoff", "loop_turn", "timing")
"""The modules that every folder except `contract` is allowed to import."""

ALLOWED = {
    "contract": (),
    "contract.documents": ("contract",),
    "config": ("contract",),
    "broadcast": ("contract",),
    "server": (
        "broadcast",
        "config",
        "contract",
        "server.access",
        "server.connection",
        "server.http",
        "server.listeners",
        "server.transport",
        "server.websocket",
    ),
    "server.access": ("config", "contract"),
    "server.connection": ("broadcast", "contract", "server.access", "server.listeners", "server.transport"),
    "server.http": (
        "broadcast",
        "config",
        "contract",
        "contract.documents",
        "server.access",
        "server.connection",
        "server.transport",
    ),
    "server.listeners": ("config", "server.transport"),
    "server.transport": (),
    "server.websocket": (
        "broadcast",
        "contract",
        "server.access",
        "server.connection",
        "server.http",
        "server.listeners",
        "server.transport",
    ),
    "amqp.wire": (),
    "amqp": ("amqp.wire", "config", "contract"),
    "amqp.consume": ("amqp", "amqp.wire", "config", "contract"),
    "amqp.publish": ("amqp", "amqp.wire", "config", "contract"),
    "amqp.rejects": ("amqp", "amqp.consume", "amqp.publish", "amqp.wire", "config", "contract"),
}
"""For each folder, the folders from which its modules are allowed to import. `cli` is allowed to import from all
folders, and `demo` from all folders except `cli`."""


def folder_of(name: str) -> str:
    """Returns the folder of a module. For example, the folder of `bridge.amqp.wire.settlement` is `amqp.wire`."""
    return name.removeprefix("bridge").removeprefix(".").rpartition(".")[0]


NAMES = frozenset(map(name_of, MODULES))


@cache
def modules_imported(path: Path) -> frozenset[str]:
    """Returns the modules of the bridge that a module imports, including imports inside functions."""
    found = set()
    for imported in imports(path):
        name = imported.name
        while name and name not in NAMES:
            name = name.rpartition(".")[0]
        if name and name != "bridge":
            found.add(name)
    return frozenset(found)


@pytest.mark.parametrize("folder", ALLOWED)
def test_folder_imports_only_what_is_below_it(folder: str) -> None:
    allowed = {*ALLOWED[folder], folder, *(() if folder.partition(".")[0] == "contract" else ANY)}
    found = [
        f"{name_of(path)} imports {name}"
        for path in MODULES
        if path.name != "__init__.py" and folder_of(name_of(path)) == folder
        for name in sorted(modules_imported(path))
        if not {folder_of(name), name.removeprefix("bridge.")} & allowed
    ]
    assert found == []


def test_rules_name_every_folder_of_serving() -> None:
    folders = {folder_of(name_of(path)) for path in MODULES if path.name != "__init__.py"}
    apart = ("", "cli", "demo")
    assert {each for each in folders if each.partition(".")[0] not in apart} == set(ALLOWED)


def cycle_of(edges: Mapping[str, AbstractSet[str]]) -> list[str]:
    """Returns a cycle in a graph, from a node back to itself, or an empty list if the graph has no cycle."""
    try:
        list(TopologicalSorter(edges).static_order())
    except CycleError as error:
        cycle: list[str] = error.args[1]
        return cycle
    return []


def test_modules_have_no_cycle() -> None:
    assert cycle_of({name_of(path): modules_imported(path) - {name_of(path)} for path in MODULES}) == []


def test_folders_have_no_cycle() -> None:
    edges: dict[str, set[str]] = {}
    for path in MODULES:
        # Each module outside the folders (`app`, `errors` ...) is its own node, because some modules are above all
        # folders, and others below.
        node = folder_of(name_of(path)) or name_of(path)
        edges.setdefault(node, set()).update(folder_of(name) or name for name in modules_imported(path))
        edges[node].discard(node)
    assert cycle_of(edges) == []


def test_cycle_is_found() -> None:
    assert set(cycle_of({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}
    assert cycle_of({"a": {"b"}, "b": {"c"}}) == []


def test_demo_does_not_import_the_command_line() -> None:
    assert breaches(under("bridge.demo"), "bridge.cli") == []


def test_only_amqp_and_the_demo_import_an_amqp_library() -> None:
    assert breaches(without("bridge.amqp", "bridge.demo"), *AMQP) == []


def test_only_the_server_and_the_client_of_tail_import_websockets() -> None:
    [client] = [path for path in MODULES if name_of(path) == CLIENT]
    assert breaches([path for path in without("bridge.server") if path != client], "websockets") == []
    library = ("websockets.asyncio.client", "websockets.exceptions")
    assert breaches([client], "websockets", but=library) == []


def test_client_of_tail_imports_nothing_of_the_server() -> None:
    assert breaches([*under("bridge.cli.follow"), ROOT / "cli/tail.py"], "bridge.server", "bridge.broadcast") == []


def loaded_with(name: str) -> set[str]:
    """Returns all names that are imported when a module is loaded, also by modules of the bridge that it imports."""
    paths = {name_of(path): path for path in MODULES}
    found: set[str] = set()
    waiting = [name]
    while waiting:
        each = waiting.pop()
        if each in found:
            continue
        found.add(each)
        module = each
        while module and module not in paths:
            module = module.rpartition(".")[0]
        if module and module not in found:
            waiting.append(module)
        if each in paths:
            waiting += [imported.name for imported in imports(paths[each]) if imported.at_once]
    return found


def test_command_is_loaded_only_when_it_is_run() -> None:
    """The command `serve` must use no memory for modules that only another command needs."""
    assert breaches(MODULES, *COMMANDS) == []
    loaded = loaded_with("bridge.cli.serve")
    assert {"bridge.app", "bridge.amqp.consume.consumer", "websockets.frames"} & loaded
    only_others = ("websockets.asyncio", "testcontainers", "bridge.demo", *COMMANDS)
    found = {name for name in loaded for other in only_others if name == other or name.startswith(f"{other}.")}
    assert {name for name in found if not name.startswith("bridge.cli.serve")} == set()


def test_only_the_demo_imports_testcontainers() -> None:
    assert breaches(without("bridge.demo"), "testcontainers", "docker") == []


def test_only_the_demo_command_imports_the_demo_and_testcontainers_is_imported_on_demand() -> None:
    found = {
        name_of(path) for path in without("bridge.demo") for imported in imports(path) if imported.is_of("bridge.demo")
    }
    assert found == {"bridge.cli.demo"}
    assert {name for name in loaded_with("bridge.cli.demo") if name.startswith(("testcontainers", "docker"))} == set()


@pytest.mark.parametrize(
    "name", ["bridge.amqp.wire.settlement", "bridge.broadcast.update_log", "bridge.broadcast.frames"]
)
def test_pure_module_imports_no_impure_module(name: str) -> None:
    [path] = [path for path in MODULES if name_of(path) == name]
    assert breaches([path], "asyncio", "socket", "time", "structlog", "bridge", *AMQP) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_with_any_code_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree)
