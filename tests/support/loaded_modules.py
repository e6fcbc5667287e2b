"""The modules that a bridge has loaded when it ends, in an environment with only the packages that users install."""

import json
import re
import sys
from functools import cache
from importlib.metadata import packages_distributions

from tests.support.commands import ROOT

LOCK = ROOT / "requirements.lock"

LOADED = "loaded modules"
"""The event of the JSON line that the command prints at its end. Its field `modules` lists the modules."""

SCRIPT = f"""
import atexit, json, sys
sys.modules.update(dict.fromkeys(json.loads(sys.argv.pop(1))))

def print_modules():
    loaded = [name for name, module in sys.modules.items() if module]
    # By now, the thread that writes the log has ended.
    print(json.dumps({{"event": {LOADED!r}, "modules": loaded}}), file=sys.__stderr__, flush=True)

atexit.register(print_modules)
from bridge.__main__ import main
main()
"""
"""Runs `edk-bridge`. The modules in its first argument can't be imported."""


def canonical(distribution: str) -> str:
    """Returns the name of a distribution as lock files contain it (PEP 503)."""
    return re.sub("[-_.]+", "-", distribution).lower()


@cache
def packages() -> tuple[frozenset[str], frozenset[str]]:
    """Returns the top-level modules of the bridge's dependencies, and those of all other installed distributions."""
    locked = {line.partition("==")[0] for line in LOCK.read_text().splitlines() if "==" in line} | {"edk-bridge"}
    owners = {name: set(map(canonical, found)) for name, found in packages_distributions().items()}
    needed = frozenset(name for name, found in owners.items() if found & locked)
    return needed, frozenset(owners) - needed - {"bridge"}


def recording_command() -> tuple[str, ...]:
    """Returns the command that runs the bridge from this checkout, and prints its modules to standard error.

    Packages of the tests can't be imported, because structlog would import rich and greenlet, for example.
    """
    return sys.executable, "-c", SCRIPT, json.dumps(sorted(packages()[1]))
