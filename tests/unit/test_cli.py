"""The command: its help, its exit codes, what it says on standard error."""

from __future__ import annotations

import asyncio
import os
import runpy
import sys
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from bridge import __version__, cli, logs
from bridge.errors import BrokerRefusal, ConfigurationError
from bridge.settings import FIELDS

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

    from bridge.settings import Settings


@pytest.fixture(autouse=True)
def logging_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """How logging was configured, in an empty folder and an environment without settings."""
    monkeypatch.chdir(tmp_path)
    for name in tuple(os.environ):
        if name.startswith("BRIDGE_"):
            monkeypatch.delenv(name)
    # What this does to logging is tested elsewhere, and lasts.
    configured: list[tuple[str, str]] = []
    monkeypatch.setattr(logs, "configure", lambda level, style: configured.append((level, style)))
    return configured


class Runs:
    """Stands in for the bridge: notes the settings that it is run with, and ends as told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings: list[Settings] = []
        self.error: Exception | None = None
        monkeypatch.setattr(cli, "run_bridge", self.run)

    async def run(self, settings: Settings) -> None:
        assert type(asyncio.get_running_loop()).__module__.startswith("uvloop")
        self.settings.append(settings)
        if self.error is not None:
            raise self.error


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(monkeypatch)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.cli, arguments)


def test_version_is_the_packages() -> None:
    result = invoke("--version")
    assert (result.exit_code, result.output) == (0, f"edk-bridge, version {__version__}\n")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_the_commands(flag: str) -> None:
    result = invoke(flag)
    assert result.exit_code == 0
    assert "serve" in result.output
    assert "demo" in result.output


@pytest.mark.parametrize("name", FIELDS)
def test_help_shows_each_setting_with_its_meaning_variable_and_default(name: str) -> None:
    # Lines are broken where they have to be.
    text = "".join(invoke("serve", "--help").output.split())
    default = FIELDS[name].metadata["default"]
    shown = "not set" if not default else "the host name" if name == "instance" else default
    entry = f"{FIELDS[name].metadata['meaning']} [BRIDGE_{name.upper()}; {shown}]"
    assert f"--{name.replace('_', '-')}" in text
    assert "".join(entry.split()) in text


def test_help_lists_the_exit_codes() -> None:
    assert "Exit codes: 0 stopped as asked, 2 settings" in invoke("serve", "--help").output


def test_serve_runs_with_the_defaults(runs: Runs) -> None:
    assert invoke("serve").exit_code == 0
    assert [settings.port for settings in runs.settings] == [3000]


def test_serve_takes_flags_over_the_environment_over_dotenv(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("BRIDGE_PORT=1\nBRIDGE_PATH=/dotenv\nBRIDGE_QUEUE=dotenv\n")
    monkeypatch.setenv("BRIDGE_PORT", "2")
    monkeypatch.setenv("BRIDGE_PATH", "/environment")
    assert invoke("serve", "--port", "3").exit_code == 0
    [settings] = runs.settings
    assert (settings.port, settings.path, settings.queue) == (3, "/environment", "dotenv")


def test_logging_is_configured_as_set(runs: Runs, logging_as: list[tuple[str, str]]) -> None:
    assert invoke("serve", "--log-level", "debug", "--log-format", "json").exit_code == 0
    assert logging_as == [("debug", "json")]


@pytest.mark.parametrize(
    ("arguments", "wait"),
    [([], False), (["--wait"], True), (["--wait", "true"], True), (["--wait=false"], False)],
)
def test_switch_may_have_a_value(runs: Runs, arguments: list[str], *, wait: bool) -> None:
    assert invoke("serve", *arguments).exit_code == 0
    assert [settings.wait for settings in runs.settings] == [wait]


def test_settings_that_will_not_do_exit_with_2_and_a_line_each(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_PROT", "1")
    result = invoke("serve", "--port", "x", "--path", "y")
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("edk-bridge: BRIDGE_") for line in lines)
    assert {line.split()[1] for line in lines} == {"BRIDGE_PORT", "BRIDGE_PATH", "BRIDGE_PROT"}
    assert result.stdout == ""
    assert runs.settings == []


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [(ConfigurationError(["event.json: no JSON", "another"]), 2), (BrokerRefusal("wrong password"), 3)],
)
def test_error_that_ends_the_bridge_has_its_exit_code_and_no_traceback(
    runs: Runs, error: Exception, exit_code: int
) -> None:
    runs.error = error
    result = invoke("serve")
    assert result.exit_code == exit_code
    assert result.stderr.splitlines() == [f"edk-bridge: {line}" for line in str(error).splitlines()]


def test_fault_of_ours_is_not_hidden(runs: Runs) -> None:
    runs.error = ZeroDivisionError()
    assert isinstance(invoke("serve").exception, ZeroDivisionError)


def test_unknown_flag_exits_with_2() -> None:
    result = invoke("serve", "--prot", "1")
    assert result.exit_code == 2
    assert "--prot" in result.stderr


@pytest.mark.parametrize("arguments", [["--port", "0"], ["--rate", "0"], ["--rate", "x"]])
def test_demo_checks_its_options(arguments: list[str]) -> None:
    assert invoke("demo", *arguments).exit_code == 2


def test_demo_runs_with_its_options_and_ends_with_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    demo = ModuleType("bridge.demo.demo")
    ran: list[dict[str, float]] = []

    def run(**options: float) -> int:
        ran.append(options)
        return 7

    demo.run = run  # type: ignore[attr-defined]  # modules have whatever they are given
    monkeypatch.setitem(sys.modules, "bridge.demo.demo", demo)
    assert invoke("demo", "--rate", "2").exit_code == 7
    assert ran == [{"port": 3000, "rate": 2.0}]


def test_package_runs_as_a_module(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bridge", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("bridge", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"edk-bridge, version {__version__}\n"


@pytest.mark.parametrize("arguments", [["--queue"], ["--queue", "--log-level", "debug"], ["--log-bytes"]], ids=" ".join)
def test_flag_without_its_value_is_an_error(runs: Runs, arguments: list[str]) -> None:
    result = invoke("serve", *arguments)
    assert result.exit_code == 2
    assert runs.settings == []


def test_value_that_begins_with_a_dash_reaches_the_settings(runs: Runs) -> None:
    result = invoke("serve", "--prefetch=-5")
    assert result.exit_code == 2
    assert "BRIDGE_PREFETCH (--prefetch): '-5' won't do" in result.output
