"""`python -m tests.support.releases`: runs the tests on several releases of RabbitMQ and Python, and prints a table.

The runs:

    own          the tests that use a broker, on the RabbitMQ and the Python of this machine
    4.0, 4.3     the same, on these releases of RabbitMQ
    unit         the unit tests, on the Python of this machine
    unit-newest  the same, on the newest Python that is available here
    newest       the tests that use a broker, on the newest Python; if this is Debian's, on that release's RabbitMQ

A release of RabbitMQ comes from Debian if the script `../shared/bin/rabbitmq-release` exists, and otherwise from a
container image. The newest Python is $PYTHON_NEWEST, or a `python3.X` on the PATH that is newer than the running
Python, or else the Python of Debian's sid (`python_release.sh`). An unavailable release gets a line in the table, and
counts as a failure only with `--required`.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.broker.find import container_possible
from tests.support.broker.session import say

ROOT = Path(__file__).parents[2]
RABBITMQ_RELEASE = ROOT.parent / "shared/bin/rabbitmq-release"
PYTHON_RELEASE = Path(__file__).with_name("python_release.sh")
RABBITMQCTL = "/usr/lib/rabbitmq/bin/rabbitmqctl"

DEBIAN = {"4.0": "trixie", "4.3": "sid"}
"""For each release of RabbitMQ, the Debian release that contains it."""

OWN, UNIT, UNIT_NEWEST, NEWEST = "own", "unit", "unit-newest", "newest"
NAMES = (OWN, *DEBIAN, UNIT, UNIT_NEWEST, NEWEST)

NO_ENGINE = {"DOCKER_HOST": "unix:///nonexistent"}
"""With this value of DOCKER_HOST, the tests find no container engine.

Without an engine, the tests use a private node of the RabbitMQ release.
"""

BROKER_VARIABLES = ("TEST_AMQP_URL", "TEST_RABBITMQ_IMAGE")

FOLDERS = ("tests/integration", "tests/faults", "tests/browser", "tests/conformance")

OTHER_SUBJECTS = (
    "audit",
    "bench",
    "compose",
    "image",
    "libraries",
    "monitoring",
    "networks",
    "proxies",
    "systemd",
    "wheel",
)
"""Files of tests/integration for which the broker's release does not matter.

These files test a container engine, proxies or a package.
"""

WORKERS = (f"--numprocesses={1 if 'TEST_AMQP_URL' in os.environ else 3}", "--dist=loadfile")
"""The options that set the number of pytest workers.

There are three workers, each with its own broker, or only one worker if TEST_AMQP_URL names the broker.
"""

PART = (
    "tests/faults/test_cluster.py",
    "tests/integration/test_permissions.py",
    "tests/integration/test_stream.py",
    "tests/faults/test_held_rejects.py",
    "tests/faults/test_exchanges.py",
    "tests/faults/test_confirms.py",
    "tests/faults/test_queue_types.py",
)
"""The test files that `--part` runs, because releases of RabbitMQ differ most in what these files test.

The slowest test file comes first. If a worker began the slowest file last, the run would take longer.
"""

TOO_LONG = (
    "tests/faults/test_cluster.py::test_clients_that_resume_miss_nothing_while_the_leaders_of_the_stream_are_killed",
)
"""The test that `--part` leaves out, because this test takes as long as all other tests of `--part` together."""

IN_THIS_ORDER = "--no-loadscope-reorder"
"""The flag that makes pytest-xdist run the test files in the given order.

Without `--no-loadscope-reorder`, pytest-xdist begins with the files that have the most tests.
"""

MAKE_LIMIT_S = 900
"""The time limit for each command that prepares a release. The slowest command builds the root file system of a Debian
release from packages."""


class Unavailable(Exception):
    """A release is not available on this machine. The exception's message gives the reason in one line."""


class NotInstallable(Exception):
    """The packages of the lock file, or the project itself, can't be installed on a version of Python.

    A NotInstallable error makes the run fail.
    """


@dataclass(frozen=True, slots=True)
class Place:
    """The command and the environment in which a run starts pytest."""

    python: str
    """The version of the Python that runs pytest."""

    command: tuple[str, ...]
    """The command that runs pytest, without the arguments of pytest."""

    variables: Mapping[str, str] | None = None
    """The variables that replace BROKER_VARIABLES in the environment, or None for an unchanged environment."""

    def environment(self) -> dict[str, str]:
        """The environment of the run."""
        if self.variables is None:
            return dict(os.environ)
        return {**{name: text for name, text in os.environ.items() if name not in BROKER_VARIABLES}, **self.variables}


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts in a junit XML file."""

    passed: int = 0
    failed: int = 0
    expected_failures: int = 0
    skipped: int = 0
    seconds: float = 0.0
    rabbitmq: str = ""
    """The versions of the brokers that were used."""

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.passed + other.passed,
            self.failed + other.failed,
            self.expected_failures + other.expected_failures,
            self.skipped + other.skipped,
            self.seconds + other.seconds,
            ", ".join(sorted({*filter(None, (self.rabbitmq, other.rabbitmq))})),
        )


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table, with the counts of the tests, or the reason why the run has no counts."""

    name: str
    python: str
    counts: Counts | None
    reason: str = ""

    @property
    def is_bad(self) -> bool:
        """True if a test failed, or if pytest itself ended with an error."""
        return self.counts is not None and (self.counts.failed > 0 or bool(self.reason))


def main(arguments: Sequence[str]) -> int:
    """Executes the selected runs, prints the table, and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.releases",
        description="Other arguments are passed to pytest. Paths replace the tests of the run.",
        allow_abbrev=False,
    )
    parser.add_argument("--only", action="append", choices=NAMES, help="one of the runs; may be given several times")
    parser.add_argument("--part", action="store_true", help="run only the broker tests that differ most")
    parser.add_argument("--required", action="store_true", help="fail if a release is not available")
    options, rest = parser.parse_known_args(arguments)
    rows = [run(name, part=options.part, rest=rest) for name in options.only or NAMES]
    sys.stdout.write(f"\n{table(rows)}\n")
    return int(any(row.is_bad or (options.required and row.counts is None) for row in rows))


def run(name: str, *, part: bool, rest: Sequence[str]) -> Row:
    """Executes one of the runs. The output of pytest is not captured."""
    try:
        place = place_of(name)
    except Unavailable as reason:
        return Row(name, "", None, f"can't be made: {reason}")
    except NotInstallable as reason:
        return Row(name, "", Counts(), f"the locked packages can't be installed: {reason}")
    total, reasons = Counts(), []
    for arguments in selections(name, part=part, rest=rest):
        with tempfile.TemporaryDirectory(prefix="edk-bridge-releases-") as folder:
            report = Path(folder) / "junit.xml"
            command = [*place.command, "-m", "pytest", f"--junitxml={report}", *arguments]
            say(f"{name}: {' '.join(command)}")
            code = subprocess.run(command, cwd=ROOT, env=place.environment(), check=False).returncode
            counts = counted(report.read_text()) if report.exists() else Counts()
        total += counts
        # Any exit code except 0 and 1 is an error of pytest, such as an interrupt, an unknown argument, or a missing
        # pytest.
        if not ((code == 0 and counts.passed > 0) or (code == 1 and counts.failed > 0)):
            reasons.append(f"pytest ended with {code}")
    return Row(name, place.python, total, "; ".join(reasons))


def selections(name: str, *, part: bool, rest: Sequence[str]) -> list[list[str]]:
    """Returns the arguments of each pytest process of a run.

    A second process, without workers, runs the tests marked `alone`. `part` leaves out the tests marked `alone`. If
    `rest` contains paths, they replace the folders, and one process runs all tests.
    """
    paths = any((ROOT / argument.partition("::")[0]).exists() for argument in rest if not argument.startswith("-"))
    if name in {UNIT, UNIT_NEWEST}:
        return [[*([] if paths else ["tests/unit", "--numprocesses=auto", "--dist=worksteal"]), *rest]]
    if paths:
        return [["--uses-broker", *rest]]
    ignored = [f"--ignore=tests/integration/test_{what}.py" for what in OTHER_SUBJECTS]
    chosen = [*(PART if part else FOLDERS), *ignored, "--uses-broker"]
    shared = [*chosen, "-m", "not alone", *WORKERS, *rest]
    if part:
        return [[*shared, IN_THIS_ORDER, *(f"--deselect={test}" for test in TOO_LONG)]]
    return [shared, [*chosen, "-m", "alone", *rest]]


def place_of(name: str) -> Place:
    """Returns the place in which a run executes, and makes the place if it does not exist. Raises Unavailable."""
    if name in {OWN, UNIT}:
        return Place(version_of_python(), (sys.executable,))
    if name in {UNIT_NEWEST, NEWEST}:
        return newest_python()
    if os.access(RABBITMQ_RELEASE, os.X_OK):
        into = (str(RABBITMQ_RELEASE), DEBIAN[name], "--")
        found = output_of([*into, RABBITMQCTL, "version"])
        if not found.startswith(f"{name}."):
            raise Unavailable(f"Debian's {DEBIAN[name]} has RabbitMQ {found}")
        return Place(version_of_python(), (*into, sys.executable), NO_ENGINE)
    image = f"rabbitmq:{name}-management"
    if not container_possible(image, say):
        raise Unavailable(f"neither {RABBITMQ_RELEASE.name} nor a container of {image} is available")
    return Place(version_of_python(), (sys.executable,), {"TEST_RABBITMQ_IMAGE": image})


def newest_python() -> Place:
    """Returns the newest Python on this machine, in a separate environment with the locked packages.

    Raises Unavailable or NotInstallable.
    """
    own = os.environ.get("PYTHON_NEWEST") or newer_on_path(os.environ.get("PATH", ""), sys.version_info.minor)
    into = () if own else (str(PYTHON_RELEASE), "sid", "--")
    python = (*into, own or "python3")
    version = output_of([*python, "-c", "import ensurepip, platform, venv; print(platform.python_version())"])
    folder = ROOT / ".venv/newest"
    lock = ROOT / "requirements-dev.lock"
    made_from = f"{version} {hashlib.sha256(lock.read_bytes()).hexdigest()}\n"
    ready = folder / ".ready"
    inside = (*into, str(folder / "bin/python"))
    if not ready.exists() or ready.read_text() != made_from:
        say(f"making {folder.relative_to(ROOT)} with Python {version}")
        install = (*inside, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps")
        output_of([*python, "-m", "venv", "--clear", str(folder)])
        try:
            output_of([*install, "--require-hashes", "-r", str(lock)])
            output_of([*install, "--no-build-isolation", "--editable", str(ROOT)])
        except Unavailable as error:
            raise NotInstallable(str(error)) from error
        ready.write_text(made_from)
    # The root file system of a Debian release contains only this release's broker.
    return Place(version, inside, NO_ENGINE if into else None)


def newer_on_path(path: str, minor: int) -> str | None:
    """Returns the newest working `python3.X` on a PATH, or None. X must be greater than `minor`."""
    found: dict[int, str] = {}
    for folder in path.split(os.pathsep):
        for file in Path(folder or ".").glob("python3.*"):
            match = re.fullmatch(r"python3\.(\d+)", file.name)
            if match and int(match[1]) > minor and os.access(file, os.X_OK):
                found.setdefault(int(match[1]), str(file))
    # A version manager may put a command on the PATH for a version that is not installed.
    return next((found[each] for each in sorted(found, reverse=True) if works(found[each])), None)


def works(python: str) -> bool:
    """Returns whether a Python interpreter can make virtual environments."""
    return subprocess.run([python, "-c", "import ensurepip, venv"], capture_output=True, check=False).returncode == 0


def version_of_python() -> str:
    """Returns the version of the Python that runs this module."""
    return ".".join(str(part) for part in sys.version_info[:3])


def output_of(command: Sequence[str]) -> str:
    """Returns the output of a command.

    Raises Unavailable, with the last output line, if the command fails or takes too long.
    """
    limit = ("timeout", str(MAKE_LIMIT_S)) if shutil.which("timeout") else ()  # `timeout` also ends child processes
    try:
        done = subprocess.run([*limit, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Unavailable(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise Unavailable(words[-1] if words else f"{Path(command[0]).name} ended with {done.returncode}")
    return done.stdout.strip()


def counted(junit: str) -> Counts:
    """Returns the counts in a junit XML file. A test that fails in its call and in its teardown counts once."""
    suites = ET.fromstring(junit)
    outcomes = [outcome_of(case) for case in suites.iter("testcase")]
    versions = {each.get("value", "") for each in suites.iter("property") if each.get("name") == "rabbitmq"}
    return Counts(
        passed=outcomes.count("passed"),
        failed=outcomes.count("failed"),
        expected_failures=outcomes.count("expected failure"),
        skipped=outcomes.count("skipped"),
        seconds=sum(float(suite.get("time", "0")) for suite in suites.iter("testsuite")),
        rabbitmq=", ".join(sorted(versions)),
    )


def outcome_of(case: ET.Element) -> str:
    """Returns the outcome of a test as a word.

    As in pytest, a test fails if it is marked as a strict expected failure and passes.
    """
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    skipped = case.find("skipped")
    if skipped is None:
        return "passed"
    return "expected failure" if skipped.get("type") == "pytest.xfail" else "skipped"


def table(rows: Iterable[Row]) -> str:
    """Returns the table with aligned columns.

    If a row has a reason, the reason follows the row's counts. If the row has no counts, the reason takes their place.
    """
    head = ("run", "RabbitMQ", "Python", "passed", "failed", "expected failures", "skipped", "seconds")
    lines: list[tuple[str, ...]] = [head]
    reasons = [""]
    for row in rows:
        counts = row.counts
        cells = (row.name, counts.rabbitmq or "-", row.python) if counts else (row.name,)
        numbers = (counts.passed, counts.failed, counts.expected_failures, counts.skipped) if counts else ()
        lines.append((*cells, *map(str, numbers), *([f"{counts.seconds:.0f}"] if counts else [])))
        reasons.append(row.reason)
    widths = [max(len(line[index]) for line in lines if len(line) == len(head)) for index in range(len(head))]
    widths[0] = max(len(line[0]) for line in lines)
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), reason]).rstrip()
        for line, reason in zip(lines, reasons, strict=True)
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
