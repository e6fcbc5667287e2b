"""`python -m tests.support.mutants`: runs mutmut over modules of the bridge, and lists the mutants that survive.

mutmut changes one expression of a function at a time and runs the unit tests that call this function, in a copy of the
tree. mutmut does not change module constants, class bodies or decorated functions, except static methods and class
methods.
"""

import ast
import difflib
import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.support.audit import ROOT

TOOL = ROOT / ".venv/mutants"
"""The folder with mutmut and its dependencies, which `make mutants` installs."""
RAN, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit codes. A surviving mutant does not change the exit code."""
ADDRESS_SPACE_BYTES = 4 << 30
"""The memory limit of each process. Some mutants append to a list in an endless loop until mutmut stops them."""
LEFT_OUT = {"test_architecture.py", "test_readme.py", "test_locks.py", "test_bench.py", "test_soak.py"}
"""Unit tests that are left out, because they fail for any mutated file or test other programs."""
CONFIGURATION = "[mutmut]\nsource_paths = bridge\nuse_git_change_detection = false\n"


class Usage(Exception):
    """The arguments of the command can't be used. The exception's message gives the reason in one sentence."""


def named(arguments: Iterable[str], root: Path) -> list[str]:
    """Returns the paths, relative to the root, of the modules that the arguments name, without duplicates."""
    for argument in arguments:
        path = (root / argument).resolve()
        problem = "does not exist" if not path.exists() else "is not a module of the bridge"
        if not path.is_file() or path.suffix != ".py" or not path.is_relative_to(root / "bridge"):
            raise Usage(f"{argument} {problem}: FLAGS takes paths such as bridge/broadcast/resume.py")
    return list(dict.fromkeys(str((root / argument).resolve().relative_to(root)) for argument in arguments))


def git(root: Path, *arguments: str) -> list[str] | None:
    """Returns the lines that git prints, or None if git fails."""
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else None


def changed(root: Path) -> tuple[str, list[str]]:
    """Returns a base commit, and the modules of the bridge that changed since this commit."""
    modules = ("--", ":(glob)bridge/**/*.py")
    for base in ("origin/main", "HEAD~1"):
        differing = git(root, "diff", "--name-only", "--diff-filter=d", "--merge-base", base, *modules)
        if differing is not None:
            untracked = git(root, "ls-files", "--others", "--exclude-standard", *modules) or []
            return base, sorted([*differing, *untracked])
    raise Usage("git knows neither origin/main nor HEAD~1 here: name the modules in FLAGS")


def imports(path: Path) -> set[str]:
    """Returns all names that a file imports anywhere, also inside functions. Some of these names are modules."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    from_imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return plain | {
        f"{node.module}{name}" for node in from_imports for name in ("", *(f".{alias.name}" for alias in node.names))
    }


def unit_tests_of(modules: Iterable[str], root: Path) -> list[str]:
    """Returns the files of unit tests that import one of the modules, directly or through other modules."""
    paths = [path.relative_to(root) for folder in ("bridge", "tests") for path in (root / folder).rglob("*.py")]
    names = {path: ".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths}
    imported = {path: imports(root / path) for path in paths}
    reached = {Path(module) for module in modules}
    while more := {path for path in paths if imported[path] & {names[found] for found in reached}} - reached:
        reached |= more
    return sorted(str(path) for path in reached if path.match("tests/unit/test_*.py") and path.name not in LEFT_OUT)


def functions(text: str) -> dict[str, tuple[int, list[str]]]:
    """Returns the lines of each function, with the number of the function's first line.

    The result has two keys for each function: the function's own name, and its name in mutmut.
    """
    body = ast.parse(text).body
    scopes = [("x_", body), *((f"xǁ{node.name}ǁ", node.body) for node in body if isinstance(node, ast.ClassDef))]
    return {
        key: (node.lineno, text.splitlines()[node.lineno - 1 : node.end_lineno])
        for prefix, nodes in scopes
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for key in (node.name, prefix + node.name)
    }


def change(original: str, mutated: str, name: str) -> tuple[int, list[str], list[str]]:
    """Returns the number of the first line that a mutant changes, the original lines, and the changed lines."""
    function = name.rpartition("__mutmut_")[0]
    first, before = functions(original)[function]
    _, after = functions(mutated)[name]
    after[0] = after[0].replace(name, function.removeprefix("x_").rpartition("ǁ")[2], 1)
    blocks = difflib.SequenceMatcher(None, before, after).get_opcodes()
    _, start, end, new_start, new_end = next(block for block in blocks if block[0] != "equal")
    return first + start, before[start:end], after[new_start:new_end]


def summary(results: str, texts: Mapping[str, tuple[str, str]]) -> list[str]:
    """Returns lines about the surviving mutants, the functions that no unit test calls, and the number of mutants.

    `results` is mutmut's list of all mutants. For each module, `texts` contains the original source, and the source
    with the mutants.
    """
    told: list[str] = []
    counts = Counter({"killed": 0, "survived": 0, "timeout": 0})
    idle: dict[str, None] = {}
    modules = {module.removesuffix(".py").removesuffix("/__init__").replace("/", "."): module for module in texts}
    for line in filter(str.strip, results.splitlines()):
        mutant, _, status = line.strip().rpartition(": ")
        dotted, _, name = mutant.rpartition(".")
        counts[status] += 1
        if status == "survived":
            number, before, after = change(*texts[modules[dotted]], name)
            told += [f"{modules[dotted]}:{number}"]
            told += [f"  - {text.strip()}" for text in before] + [f"  + {text.strip()}" for text in after]
        elif status == "no tests":
            function = name.rpartition("__mutmut_")[0].removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
            idle[f"{modules[dotted]}: no unit test calls {function}"] = None
    return [*told, *idle, ", ".join(f"{count} {status}" for status, count in counts.items())]


def mutmut(tree: Path, *arguments: str) -> subprocess.Popen[str]:
    """Starts mutmut in a copy of the tree, as a process group.

    The mutated modules are also imported by the programs that the tests start.
    """
    path = f"{tree / 'mutants'}{os.pathsep}{TOOL}"
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(TOOL / "bin/mutmut"), *arguments]
    return subprocess.Popen(
        command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True, bufsize=1, start_new_session=True
    )


def run(modules: Sequence[str], tests: Sequence[str], tree: Path) -> int:
    """Copies the working tree, and runs mutmut in the copy."""
    for file in git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard") or ():
        if (ROOT / file).is_file():
            (tree / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, tree / file)
    lists = {
        "also_copy": [path.name for path in tree.iterdir()],
        "only_mutate": modules,
        "pytest_add_cli_args_test_selection": tests,
    }
    options = "".join("\n  ".join([f"{key} =", *values]) + "\n" for key, values in lists.items())
    (tree / "setup.cfg").write_text(CONFIGURATION + options)
    # If a folder in Python's path does not exist when Python starts, Python ignores this folder.
    (tree / "mutants").mkdir()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    with mutmut(tree, "run", "--max-children=2", "*") as running:
        assert running.stdout is not None
        try:
            # With "*", mutmut first runs only the tests that call the mutated functions, and lists all mutants at the
            # end.
            for line in itertools.takewhile(lambda line: line != "Mutant results\n", running.stdout):
                sys.stdout.write(line)
                sys.stdout.flush()
            running.stdout.read()
        except BaseException:
            # SIGTERM is not enough, because mutmut catches this signal, and a mutant in an endless loop does not react
            # to it.
            os.killpg(running.pid, signal.SIGKILL)
            raise
    if running.returncode != 0:
        return FAILED
    listing = mutmut(tree, "results", "--all=true")
    results, _ = listing.communicate()
    if listing.returncode != 0:
        return FAILED
    texts = {module: ((tree / module).read_text(), (tree / "mutants" / module).read_text()) for module in modules}
    sys.stdout.write("\n".join(["", *summary(results, texts), ""]))
    return RAN


def main(arguments: Sequence[str]) -> int:
    """Mutates the modules that the arguments name, or the changed modules if there are no arguments.

    Returns the exit code.
    """
    try:
        if arguments:
            modules = named(arguments, ROOT)
        else:
            base, modules = changed(ROOT)
            sys.stdout.write(f"modules changed since {base}: {', '.join(modules) or 'none; name others in FLAGS'}\n")
    except Usage as error:
        sys.stderr.write(f"{error}\n")
        return USAGE
    if not (tests := unit_tests_of(modules, ROOT)):
        sys.stdout.write("no unit test imports any of them\n" if modules else "")
        return RAN
    sys.stdout.flush()
    # SIGTERM raises an exception, so that the copy of the tree is removed and mutmut's processes are ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        return run(modules, tests, Path(folder))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
