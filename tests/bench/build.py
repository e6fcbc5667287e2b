"""Builds what the benchmark needs in addition to the tests' packages: two C programs and, if npm is installed, Bun.

The programs are in `.bench` at the top of the project.
"""

import os
import platform
import shutil
import subprocess
from pathlib import Path

from tests.bench.process import Failed
from tests.support.broker import apt
from tests.support.broker.session import say

HERE = Path(__file__).parent
BUILT = HERE.parents[1] / ".bench"
NODE = HERE / "node"
_MACHINES = {"x86_64": "x64", "aarch64": "aarch64"}


def build() -> None:
    """Compiles each C program that is missing or older than the sources."""
    BUILT.mkdir(exist_ok=True)
    newest = max(source.stat().st_mtime for source in HERE.glob("*.[ch]"))
    for name in ("load", "floor"):
        if not (BUILT / name).exists() or (BUILT / name).stat().st_mtime < newest:
            if shutil.which("gcc") is None:
                apt.install(["gcc", "libc6-dev"], say)
            _run("gcc", "-O2", "-Wall", "-Wextra", "-o", str(BUILT / name), str(HERE / f"{name}.c"))


def bun() -> Path:
    """Returns the path of Bun, after installing it if necessary. Raises Failed if Bun can't be installed."""
    program = NODE / f"node_modules/@oven/bun-linux-{_MACHINES.get(platform.machine(), '')}/bin/bun"
    installed, locked = NODE / "node_modules/.package-lock.json", NODE / "package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < locked.stat().st_mtime:
        if shutil.which("npm") is None:
            raise Failed("npm, which installs Bun, is missing")
        say("installing Bun with npm")
        _run("npm", "ci", cwd=NODE)
    if not program.exists():
        raise Failed(f"there is no Bun for {platform.machine()}")
    return program


def installed(program: str) -> str:
    """Returns the path of a program whose Debian package has the same name. Raises Failed if it is not installed."""
    path = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin")
    if path is None:
        raise Failed(f"{program} is missing; run: {apt.by_hand([program])}")
    return path


def _run(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, env=os.environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(command[:2])}: {' | '.join(done.stderr.splitlines()[-5:])}")
