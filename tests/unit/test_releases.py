"""Tests of runs on several releases: which tests are selected, the counts, the table, and unavailable releases."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support import releases
from tests.support.releases import Counts, Place, Row, Unavailable, counted, newer_on_path, selections, table

if TYPE_CHECKING:
    from pathlib import Path

JUNIT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="pytest" time="61.5">
<properties><property name="rabbitmq" value="4.3.6" /><property name="other" value="1" /></properties>
<testcase name="passes" />
<testcase name="passes as well"><properties /></testcase>
<testcase name="fails"><failure message="assert 1 == 2">...</failure></testcase>
<testcase name="fails, and its end too"><failure message="a" /><error message="b" /></testcase>
<testcase name="can't begin"><error message="failed on setup" /></testcase>
<testcase name="passes unexpectedly"><failure message="[XPASS(strict)] why" /></testcase>
<testcase name="fails as expected"><skipped type="pytest.xfail" message="why" /></testcase>
<testcase name="is skipped"><skipped type="pytest.skip" message="why" /></testcase>
</testsuite></testsuites>
"""


A_TEST = "tests/faults/test_connection.py::test_x"
BROKER = ["--uses-broker"]
SHARED = [*BROKER, "-m", "not alone", *releases.WORKERS]
TOO_LONG = [f"--deselect={test}" for test in releases.TOO_LONG]
ALONE = [*BROKER, "-m", "alone"]


def executable(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_each_test_of_a_report_counts_once_by_its_outcome() -> None:
    assert counted(JUNIT) == Counts(passed=2, failed=4, expected_failures=1, skipped=1, seconds=61.5, rabbitmq="4.3.6")


def test_table_has_a_line_for_each_run_and_the_reason_of_one_that_cannot_be_made() -> None:
    rows = [
        Row("own", "3.11.7", Counts(800, 0, 2, 10, 900.4, "3.10.8")),
        Row("4.3", "", None, "can't be made: debootstrap failed"),
        Row("unit", "3.11.7", Counts(5066, 1, 0, 0, 150.0), "pytest ended with 2"),
    ]
    assert table(rows).splitlines() == [
        "run   RabbitMQ  Python  passed  failed  expected failures  skipped  seconds",
        "own   3.10.8    3.11.7  800     0       2                  10       900",
        "4.3   can't be made: debootstrap failed",
        "unit  -         3.11.7  5066    1       0                  0        150      pytest ended with 2",
    ]


@pytest.mark.parametrize(
    ("row", "is_bad"),
    [
        (Row("own", "3.11.7", Counts(passed=1)), False),
        (Row("own", "3.11.7", Counts(failed=1)), True),
        (Row("own", "3.11.7", Counts(), "pytest ended with 4"), True),
        (Row("4.3", "", None, "can't be made: no"), False),
    ],
)
def test_row_is_bad_if_a_test_or_pytest_failed_and_not_if_the_release_does_not_exist(row: Row, is_bad: bool) -> None:
    assert row.is_bad is is_bad


@pytest.mark.parametrize(
    ("name", "part", "rest", "tests"),
    [
        ("own", False, [], [[*releases.FOLDERS, *SHARED], [*releases.FOLDERS, *ALONE]]),
        ("own", True, [], [[*releases.PART, *SHARED, releases.IN_THIS_ORDER, *TOO_LONG]]),
        ("own", True, [A_TEST, "-x"], [[*BROKER, A_TEST, "-x"]]),
        (
            "own",
            False,
            ["-k", "stream"],
            [[*releases.FOLDERS, *SHARED, "-k", "stream"], [*releases.FOLDERS, *ALONE, "-k", "stream"]],
        ),
        ("unit", True, [], [["tests/unit", "--numprocesses=auto", "--dist=worksteal"]]),
        (
            "unit-newest",
            False,
            ["tests/unit/broadcast/test_update_log.py"],
            [["tests/unit/broadcast/test_update_log.py"]],
        ),
    ],
)
def test_paths_replace_the_tests_of_a_run(name: str, part: bool, rest: list[str], tests: list[list[str]]) -> None:
    found = [
        [argument for argument in arguments if not argument.startswith("--ignore=")]
        for arguments in selections(name, part=part, rest=rest)
    ]
    assert found == tests


def test_paths_that_are_ignored_or_part_of_a_run_exist() -> None:
    ignored = [text.removeprefix("--ignore=") for text in selections("own", part=False, rest=[])[0] if "ignore" in text]
    assert len(ignored) == len(releases.OTHER_SUBJECTS)
    assert [path for path in (*ignored, *releases.PART, *releases.FOLDERS) if not (releases.ROOT / path).exists()] == []


def test_tests_that_are_left_to_the_whole_run_exist() -> None:
    for test in releases.TOO_LONG:
        path, _, name = test.partition("::")
        assert f"def {name}(" in (releases.ROOT / path).read_text()


def test_release_that_debian_has_runs_under_the_script_without_an_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = executable(tmp_path / "rabbitmq-release", "echo 4.3.6")
    monkeypatch.setattr(releases, "RABBITMQ_RELEASE", script)
    monkeypatch.setenv("TEST_AMQP_URL", "amqp://localhost/")
    monkeypatch.setenv("TEST_RABBITMQ_IMAGE", "rabbitmq:local")
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/docker.sock")
    place = releases.place_of("4.3")
    assert place.command == (str(script), "sid", "--", sys.executable)
    environment = place.environment()
    assert environment["DOCKER_HOST"] == "unix:///nonexistent"
    assert environment.keys().isdisjoint({"TEST_AMQP_URL", "TEST_RABBITMQ_IMAGE"})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("echo one >&2; echo debootstrap failed >&2; exit 2", "debootstrap failed"),
        ("exit 7", "ended with 7"),
        ("echo 4.4.0", "Debian's sid has RabbitMQ 4.4.0"),
    ],
)
def test_release_that_the_script_cannot_make_is_a_row_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    monkeypatch.setattr(releases, "RABBITMQ_RELEASE", executable(tmp_path / "rabbitmq-release", text))
    row = releases.run("4.3", part=False, rest=[])
    assert row.counts is None
    assert row.reason.startswith("can't be made: ")
    assert row.reason.endswith(reason)


def test_release_is_a_container_if_there_is_no_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "RABBITMQ_RELEASE", tmp_path / "none")
    monkeypatch.setattr(releases, "container_possible", lambda _image, _say: True)
    monkeypatch.setenv("TEST_AMQP_URL", "amqp://localhost/")
    environment = releases.place_of("4.0").environment()
    assert environment["TEST_RABBITMQ_IMAGE"] == "rabbitmq:4.0-management"
    assert "TEST_AMQP_URL" not in environment
    monkeypatch.setattr(releases, "container_possible", lambda _image, _say: False)
    with pytest.raises(Unavailable, match=r"a container of rabbitmq:4\.0-management"):
        releases.place_of("4.0")


def test_own_release_keeps_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_AMQP_URL", "amqp://localhost/")
    place = releases.place_of("own")
    assert place.command == (sys.executable,)
    assert place.environment()["TEST_AMQP_URL"] == "amqp://localhost/"


def test_newest_python_on_the_path_that_works_is_found(tmp_path: Path) -> None:
    for version, text in {"3.9": "exit 0", "3.12": "exit 0", "3.13": "exit 0", "3.14": "exit 127"}.items():
        executable(tmp_path / f"python{version}", text)
    executable(tmp_path / "python3.13-config", "exit 0")
    (tmp_path / "python3.15").touch()
    path = f"{tmp_path}/none:{tmp_path}"
    assert newer_on_path(path, 11) == str(tmp_path / "python3.13")
    assert newer_on_path(path, 13) is None


def test_newest_python_that_cannot_be_made_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON_NEWEST", str(tmp_path / "none"))
    with pytest.raises(Unavailable, match="none"):
        releases.newest_python()
    monkeypatch.delenv("PYTHON_NEWEST")
    monkeypatch.setattr(releases, "newer_on_path", lambda _path, _minor: None)
    script = executable(tmp_path / "python_release.sh", "echo needs root >&2; exit 2")
    monkeypatch.setattr(releases, "PYTHON_RELEASE", script)
    with pytest.raises(Unavailable, match="needs root"):
        releases.newest_python()


@pytest.mark.parametrize(
    ("code", "reports", "row"),
    [
        (1, True, Row("own", "3.11.7", counted(JUNIT))),
        (2, True, Row("own", "3.11.7", counted(JUNIT), "pytest ended with 2")),
        (4, False, Row("own", "3.11.7", Counts(), "pytest ended with 4")),
    ],
)
def test_run_is_a_row_with_what_pytest_reports_and_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, reports: bool, row: Row
) -> None:
    report = tmp_path / "report.xml"
    report.write_text(JUNIT)
    copy = f'cp "{report}" "${{3#--junitxml=}}"' if reports else ""
    python = executable(tmp_path / "python", f"{copy}\nexit {code}")
    monkeypatch.setattr(releases, "place_of", lambda _name: Place("3.11.7", (str(python),)))
    assert releases.run("own", part=True, rest=[]) == row


def test_row_of_a_run_with_several_processes_is_their_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "report.xml"
    report.write_text(JUNIT)
    python = executable(tmp_path / "python", f'cp "{report}" "${{3#--junitxml=}}"\nexit 1')
    monkeypatch.setattr(releases, "place_of", lambda _name: Place("3.11.7", (str(python),)))
    assert releases.run("own", part=False, rest=[]).counts == Counts(4, 8, 2, 2, 123.0, "4.3.6")


def test_exit_status_and_table_are_of_the_selected_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def run(name: str, *, part: bool, rest: list[str]) -> Row:
        asked.append((name, part, rest))
        return Row(name, "3.11.7", Counts(passed=1, failed=int(name == "4.3")))

    monkeypatch.setattr(releases, "run", run)
    assert releases.main(["--only", "4.0", "--only", "unit", "--part", "-x"]) == 0
    assert asked == [("4.0", True, ["-x"]), ("unit", True, ["-x"])]
    assert releases.main([]) == 1
    assert [name for name, _, _ in asked[2:]] == list(releases.NAMES)
    lines = capsys.readouterr().out.splitlines()
    assert ["4.3", "-", "3.11.7", "1", "1", "0", "0", "0"] in [line.split() for line in lines]


def test_missing_release_fails_only_if_it_is_required(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(releases, "RABBITMQ_RELEASE", executable(tmp_path / "rabbitmq-release", "exit 2"))
    assert releases.main(["--only", "4.3"]) == 0
    assert releases.main(["--required", "--only", "4.3"]) == 1


def test_table_of_the_runs_names_each_run() -> None:
    assert releases.__doc__ is not None
    named = re.findall(r"^    (\S+(?:, \S+)*)  +\w", releases.__doc__, re.MULTILINE)
    assert ", ".join(named) == ", ".join(releases.NAMES)
