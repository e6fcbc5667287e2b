"""`python -m tests.support.prepare`: gets what the tests need from outside, before pytest starts.

A broker, the openssl command, what the bridge is put beside (HAProxy, nginx and others), a browser, WebSocket libraries
of several languages, pip-audit, the benchmark's C programs, and Node's packages. What can't be had is said here, in a
line, and is no error yet: the tests that need it skip, or fail where they must not.
"""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench.build import build
from tests.bench.process import Failed
from tests.support.broker import apt
from tests.support.broker.find import NoBroker, find_server
from tests.support.broker.session import say, unavailable

ROOT = Path(__file__).parents[2]
NODE = ROOT / "tests/node"
CHROMIUM = "chromium-headless-shell"
"""The command and its Debian package. The headless shell draws no windows; drawing them takes as much processor time as
the pages."""

WHOLE_CHROMIUM = "chromium"
"""Chromium with windows, used if the headless shell is not installed."""

HAPROXY = "haproxy"
"""The same."""

PROGRAMS = {
    HAPROXY: HAPROXY,
    "nginx": "nginx-light",
    "caddy": "caddy",
    "promtool": "prometheus",
    "systemd-analyze": "systemd",
    "docker-compose": "docker-compose",
}
"""Those that what is in `docker/` is tried with: each command, and Debian's package that it is in."""

LIBRARIES = (
    "gir1.2-soup-3.0",
    "libanyevent-websocket-client-perl",
    "libmojolicious-perl",
    "python3-gi",
    "ruby-faye-websocket",
    "tcl",
    "tcllib",
)
"""Debian's packages with WebSocket libraries, and what runs them."""

DEBIAN_PYTHON = "/usr/bin/python3"
"""The Python that Debian's packages are for."""

_NODE_PACKAGES = {"node": "nodejs", "npm": "npm"}


def prepare_broker() -> None:
    """Make sure that rabbitmq-server is there, installing it where that is allowed: tests of private nodes need it."""
    try:
        find_server(say)
    except NoBroker as error:
        say(f"tests that need a broker can't run: {error}")


def prepare_openssl() -> None:
    """Make sure that the command is there which makes the certificates for tests of TLS."""
    if shutil.which("openssl") is not None:
        return
    try:
        apt.install(["openssl"], say)
    except RuntimeError as error:
        say(f"tests of TLS can't run: {error}")


def found(command: str) -> str | None:
    """Where a command is; Debian puts some where a person's PATH may not lead. None where it is not installed."""
    return shutil.which(command) or shutil.which(command, path="/usr/sbin:/usr/local/sbin")


def program(command: str) -> str:
    """Where one of PROGRAMS is; the test skips where it is not, or fails where it must not."""
    path = found(command)
    if path is None:
        unavailable(f"{command} is not installed; `make prepare` installs it")
    return path


def prepare_programs() -> None:
    """Make sure that there is what the bridge is put beside: load balancers, proxies, monitoring, service manager."""
    missing = [package for command, package in PROGRAMS.items() if found(command) is None]
    if not missing:
        return
    try:
        apt.install(missing, say)
    except RuntimeError as error:
        say(f"tests of what the bridge runs beside can't run: {error}")


def prepare_browser() -> None:
    """Make sure that there is a browser, which Playwright only drives."""
    if shutil.which(CHROMIUM) or shutil.which(WHOLE_CHROMIUM):
        return
    try:
        apt.install([CHROMIUM], say)
    except RuntimeError as error:
        say(f"tests in a browser can't run: {error}")


def prepare_proton() -> None:
    """Make sure that Debian's Python has proton, a client for AMQP 1.0."""
    asked = [DEBIAN_PYTHON, "-c", "import proton"]
    try:
        if subprocess.run(asked, capture_output=True, check=False).returncode:
            apt.install(["python3-qpid-proton"], say)
    except (OSError, RuntimeError) as error:
        say(f"tests of AMQP 1.0 with proton can't run: {error}")


def prepare_environments() -> None:
    """Make sure that there is what has an environment of its own: pip-audit, and libraries that clients are made of."""
    for name, what in (("audit", "of the audit"), ("libraries", "with WebSocket libraries")):
        done = subprocess.run(["make", f".venv/{name}/.ready"], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            say(f"tests {what} can't run: {' | '.join(done.stderr.splitlines()[-5:])}")


def prepare_libraries() -> None:
    """Make sure that there are the WebSocket libraries of other languages that Debian has."""
    listed = subprocess.run(["dpkg-query", "-W", "-f", "${Package} "], capture_output=True, text=True, check=False)
    missing = [package for package in LIBRARIES if package not in listed.stdout.split()]
    if not missing:
        return
    try:
        apt.install(missing, say)
    except RuntimeError as error:
        say(f"tests with WebSocket libraries can't run: {error}")


def prepare_bench() -> None:
    """Make sure that the benchmark can be run."""
    try:
        build()
    except (RuntimeError, Failed) as error:
        say(f"the test of the benchmark can't run: {error}")


def prepare_node() -> None:
    """Make sure that Node's packages are there, in the locked versions."""
    try:
        missing = [package for command, package in _NODE_PACKAGES.items() if shutil.which(command) is None]
        if missing:
            apt.install(missing, say)
        _npm_ci()
    except RuntimeError as error:
        say(f"tests that need Node can't run: {error}")


def _npm_ci() -> None:
    installed, locked = NODE / "node_modules/.package-lock.json", NODE / "package-lock.json"
    if installed.exists() and installed.stat().st_mtime >= locked.stat().st_mtime:
        return
    say("installing the tests' Node packages with npm")
    done = subprocess.run(["npm", "ci"], cwd=NODE, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"npm ci: {' | '.join(done.stderr.splitlines()[-5:])}")


def main() -> None:
    """All of it. Only apt-get must not run twice at the same time."""
    with ThreadPoolExecutor() as pool:
        environments = pool.submit(prepare_environments)
        prepare_broker()
        prepare_openssl()
        prepare_proton()
        prepare_programs()
        prepare_browser()
        prepare_libraries()
        prepare_bench()
        prepare_node()
        environments.result()


if __name__ == "__main__":
    main()
