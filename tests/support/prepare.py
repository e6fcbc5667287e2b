"""`python -m tests.support.prepare`: installs the programs that the tests need, before pytest starts.

The programs are a broker, the openssl command, the programs that run next to the bridge (HAProxy, nginx and others), a
browser, WebSocket libraries of several languages, pip-audit, the C programs of the benchmark, and Node packages. For
each program that can't be installed, one line is printed. It is not an error if a program can't be installed. Tests
that need a missing program are skipped on a developer's machine, and fail in CI.
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
"""The command of Chromium's headless shell, which is also the name of its Debian package.

The tests prefer the headless shell because it draws no windows: drawing windows takes as much processor time as the
pages themselves.
"""

WHOLE_CHROMIUM = "chromium"
"""Chromium with windows, used if the headless shell is not installed."""

HAPROXY = "haproxy"
"""The command of HAProxy, which is also the name of its Debian package."""

STRACE = "strace"
"""The command that shows the system calls of a process, which is also the name of its Debian package."""

PROGRAMS = {
    HAPROXY: HAPROXY,
    STRACE: STRACE,
    "nginx": "nginx-light",
    "caddy": "caddy",
    "promtool": "prometheus",
    "systemd-analyze": "systemd",
    "docker-compose": "docker-compose",
    "jq": "jq",
    "php": "php-cli",
}
"""The programs for the tests of the folder `docker` and of the examples over plain HTTP: each command, and the Debian
package that contains it."""

LIBRARIES = (
    "amqp-tools",
    "gir1.2-soup-3.0",
    "libanyevent-websocket-client-perl",
    "libmojolicious-perl",
    "python3-celery",
    "python3-gi",
    "python3-kombu",
    "ruby-faye-websocket",
    "tcl",
    "tcllib",
)
"""The Debian packages with the libraries, programs and interpreters of the clients and publishers in other
languages."""

DEBIAN_PYTHON = "/usr/bin/python3"
"""The Python interpreter for which Debian's Python packages are made."""

_NODE_PACKAGES = {"node": "nodejs", "npm": "npm"}


def prepare_broker() -> None:
    """Installs rabbitmq-server if it is missing and this process is allowed to install it.

    Tests that start their own broker nodes need rabbitmq-server.
    """
    try:
        find_server(say)
    except NoBroker as error:
        say(f"tests that need a broker can't run: {error}")


def prepare_openssl() -> None:
    """Installs the command that makes the certificates for tests of TLS."""
    if shutil.which("openssl") is not None:
        return
    try:
        apt.install(["openssl"], say)
    except RuntimeError as error:
        say(f"tests of TLS can't run: {error}")


def found(command: str) -> str | None:
    """Returns the path of a command, or None if it is not installed.

    Some of Debian's program folders may not be in the PATH.
    """
    return shutil.which(command) or shutil.which(command, path="/usr/sbin:/usr/local/sbin")


def program(command: str) -> str:
    """Returns the path of one of PROGRAMS.

    If the program is missing, the test is skipped on a developer's machine, and fails in CI.
    """
    path = found(command)
    if path is None:
        unavailable(f"{command} is not installed; `make prepare` installs it")
    return path


def prepare_programs() -> None:
    """Installs load balancers, proxies, monitoring, and the other programs that run next to the bridge, jq and PHP."""
    missing = [package for command, package in PROGRAMS.items() if found(command) is None]
    if not missing:
        return
    try:
        apt.install(missing, say)
    except RuntimeError as error:
        say(f"tests with proxies, monitoring, systemd, jq or PHP can't run: {error}")


def prepare_browser() -> None:
    """Installs a browser. Playwright itself contains no browser."""
    if shutil.which(CHROMIUM) or shutil.which(WHOLE_CHROMIUM):
        return
    try:
        apt.install([CHROMIUM], say)
    except RuntimeError as error:
        say(f"tests in a browser can't run: {error}")


def prepare_proton() -> None:
    """Installs proton, a client for AMQP 1.0, for Debian's Python."""
    asked = [DEBIAN_PYTHON, "-c", "import proton"]
    try:
        if subprocess.run(asked, capture_output=True, check=False).returncode:
            apt.install(["python3-qpid-proton"], say)
    except (OSError, RuntimeError) as error:
        say(f"tests of AMQP 1.0 with proton can't run: {error}")


def prepare_environments() -> None:
    """Makes two separate Python environments, for pip-audit and for the libraries of clients."""
    for name, what in (("audit", "of the audit"), ("libraries", "with client libraries")):
        done = subprocess.run(["make", f".venv/{name}/.ready"], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            say(f"tests {what} can't run: {' | '.join(done.stderr.splitlines()[-5:])}")


def prepare_libraries() -> None:
    """Installs Debian's WebSocket libraries for other languages."""
    listed = subprocess.run(["dpkg-query", "-W", "-f", "${Package} "], capture_output=True, text=True, check=False)
    missing = [package for package in LIBRARIES if package not in listed.stdout.split()]
    if not missing:
        return
    try:
        apt.install(missing, say)
    except RuntimeError as error:
        say(f"tests with WebSocket libraries can't run: {error}")


def prepare_bench() -> None:
    """Builds the C programs of the benchmark."""
    try:
        build()
    except (RuntimeError, Failed) as error:
        say(f"the test of the benchmark can't run: {error}")


def prepare_node() -> None:
    """Installs the Node packages in the locked versions."""
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
    """Runs all steps of the preparation.

    The steps with apt-get run one after another, because apt-get must not run twice at the same time.
    """
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
