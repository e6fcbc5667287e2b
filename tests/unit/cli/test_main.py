"""Tests of the `edk-bridge` command, with its help, its exit codes and its standard error."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import runpy
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog
from click.testing import CliRunner
from pamqp import commands

import bridge
from bridge import __version__, cli, logs
from bridge.amqp.publish.publisher import NotConfirmed, Publisher
from bridge.amqp.rejects import queue
from bridge.cli import check, publish, serve
from bridge.config.settings import SETTINGS, Group
from bridge.demo.broker import start_container
from bridge.demo.demo import Demo
from bridge.errors import BrokerRefusal, ConfigurationError
from bridge.timing import DEFAULT, Timing
from tests.support.fake_amqp import FakeAmqp, FakeBroker
from tests.support.killmail import ESI, EXAMPLE, killmail, packaged, redisq

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager
    from typing import NoReturn, Self

    from click.testing import Result

    from bridge.amqp.connection import Connection
    from bridge.amqp.nodes import Node
    from bridge.config.settings import Settings


ROOT = Path(bridge.__file__).parents[1]


@pytest.fixture(autouse=True)
def logging_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Runs the test in an empty folder without settings, and returns how logging was configured."""
    monkeypatch.chdir(tmp_path)
    for name in tuple(os.environ):
        if name.startswith("BRIDGE_"):
            monkeypatch.delenv(name)
    # A real configuration of logging would last for the whole process and affect other tests.
    configured: list[tuple[str, str]] = []
    monkeypatch.setattr(logs, "configure", lambda level, style: configured.append((level, style)))
    return configured


class Runs:
    """A fake of the bridge, which records its settings, and raises `error` if `error` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings: list[Settings] = []
        self.timings: list[Timing] = []
        self.error: Exception | None = None
        monkeypatch.setattr(serve, "run_bridge", self.run)

    async def run(self, settings: Settings, timing: Timing) -> None:
        assert type(asyncio.get_running_loop()).__module__.startswith("uvloop")
        self.settings.append(settings)
        self.timings.append(timing)
        if self.error is not None:
            raise self.error


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(monkeypatch)


def invoke(*arguments: str, stdin: str | bytes = "") -> Result:
    return CliRunner().invoke(cli.cli, arguments, input=stdin)


VERSION = (
    f"edk-bridge, version {__version__} (Python {platform.python_version()}, aio-pika {metadata.version('aio-pika')}, "
    f"websockets {metadata.version('websockets')})\n"
)


def test_version_has_those_of_python_and_of_the_libraries() -> None:
    result = invoke("--version")
    assert (result.exit_code, result.output) == (0, VERSION)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_the_commands(flag: str) -> None:
    result = invoke(flag)
    assert result.exit_code == 0
    for command in ("serve", "check", "publish", "tail", "demo"):
        assert command in result.output


@pytest.mark.parametrize("name", SETTINGS)
def test_help_shows_each_setting_with_its_meaning_variable_and_default(name: str) -> None:
    # The help can break its lines at any space.
    text = "".join(invoke("serve", "--help").output.split())
    setting = SETTINGS[name]
    shown = "not set" if not setting.default else "the host name" if name == "instance" else setting.default
    entry = f"--{name.replace('_', '-')} {setting.metavar} {setting.meaning} [BRIDGE_{name.upper()}; {shown}]"
    assert "".join(entry.split()) in text


@pytest.mark.parametrize("command", ["serve", "config"])
def test_help_has_the_settings_below_the_heading_of_their_group(command: str) -> None:
    found: dict[str, list[str]] = {}
    for line in invoke(command, "--help").output.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            found[line.removesuffix(":")] = []
        elif found and (flag := re.match(r"  --(?!no-)([a-z-]+)", line)):
            found[[*found][-1]].append(flag[1].replace("-", "_"))
    assert [*found] == ["Options", *Group]
    for group in Group:
        assert found[group] == [name for name, setting in SETTINGS.items() if setting.group is group]


def test_help_lists_the_exit_codes() -> None:
    text = " ".join(invoke("serve", "--help").output.split())
    assert "Exit codes: 0 A signal stopped the bridge. 1 Another error. 2 Settings, " in text


def test_serve_runs_with_the_defaults(runs: Runs) -> None:
    assert invoke("serve").exit_code == 0
    assert [settings.port for settings in runs.settings] == [3000]
    assert runs.timings == [DEFAULT]


def test_serve_runs_with_the_time_constants_of_its_context(runs: Runs) -> None:
    timing = Timing(heartbeat_s=1)
    assert CliRunner().invoke(cli.cli, ["serve"], obj=timing).exit_code == 0
    assert runs.timings == [timing]


def test_serve_takes_flags_over_the_environment_over_dotenv(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("BRIDGE_PORT=1\nBRIDGE_PATH=/dotenv\nBRIDGE_QUEUE=dotenv\n")
    monkeypatch.setenv("BRIDGE_PORT", "2")
    monkeypatch.setenv("BRIDGE_PATH", "/environment")
    assert invoke("serve", "--port", "3").exit_code == 0
    [settings] = runs.settings
    assert (settings.port, settings.path, settings.queue) == (3, "/environment", "dotenv")


def test_env_file_is_read_instead_of_dotenv(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("BRIDGE_PORT=1\nBRIDGE_QUEUE=dotenv\n")
    (tmp_path / "other").write_text("BRIDGE_PORT=2\n")
    assert invoke("serve", "--env-file", "other").exit_code == 0
    [settings] = runs.settings
    assert (settings.port, settings.queue) == (2, None)


@pytest.mark.parametrize(
    ("names", "words"), [(["a", "b"], "give only one file"), ([""], "the name of the file is empty")]
)
def test_env_file_is_one_file(names: list[str], words: str) -> None:
    result = invoke("config", *(f"--env-file={name}" for name in names))
    assert (result.exit_code, words in result.stderr) == (2, True)


SETTING_COMMANDS = (
    ["serve"],
    ["config"],
    ["check"],
    ["publish"],
    ["rejects", "list"],
    ["rejects", "requeue", "--all"],
    ["rejects", "purge", "--all", "--yes"],
)


@pytest.mark.parametrize("command", SETTING_COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("missing", "missing: can't be read: No such file or directory"),
        (".", ".: can't be read: Is a directory"),
        (
            "other",
            "BRIDGE_PORTS (other): there is no such setting; did you mean BRIDGE_PORT?",
        ),
    ],
)
def test_env_file_is_read_by_every_command_with_settings_and_must_be_there(
    command: list[str], name: str, problem: str, tmp_path: Path
) -> None:
    (tmp_path / "other").write_text("BRIDGE_PORTS=1\n")
    (tmp_path / ".env").write_text("BRIDGE_PORT=1\n")
    result = invoke(*command, "--env-file", name)
    assert (result.exit_code, result.stderr) == (2, f"edk-bridge: {problem}\n")


@pytest.mark.parametrize("option", [[], ["--publish-only"], ["--without-broker"]], ids="".join)
def test_env_file_of_the_demo_must_be_there(option: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the mocks, the changed signal handlers and streams would remain for the whole test process.
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("bridge.queued_output.install", lambda *_: None)
    result = invoke("demo", *option, "--env-file", "missing")
    problem = "edk-bridge: missing: can't be read: No such file or directory\n"
    assert (result.exit_code, result.stderr) == (2, problem)


class Log:
    """A fake of the bridge's logger."""

    def __init__(self) -> None:
        self.lines: list[dict[str, object]] = []

    def info(self, event: str, **fields: object) -> None:
        self.lines.append({"event": event, **fields})


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    log = Log()
    monkeypatch.setattr(structlog, "get_logger", lambda *_: log)
    return log


def inject(monkeypatch: pytest.MonkeyPatch, services: int) -> None:
    """Sets the variables that Kubernetes injects for some Services. The first Service is named `bridge`."""
    for number in range(services):
        name = "BRIDGE" if number == 0 else f"BRIDGE_N{number}"
        monkeypatch.setenv(f"{name}_SERVICE_HOST", "10.0.0.1")
        monkeypatch.setenv(f"{name}_PORT", "tcp://10.0.0.1:3000")


def test_variables_of_kubernetes_are_skipped_with_one_line_of_serve(
    runs: Runs, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, 1)
    assert invoke("serve").exit_code == 0
    assert [settings.port for settings in runs.settings] == [3000]
    assert log.lines == [
        {
            "event": "Kubernetes Service variables skipped",
            "names": "BRIDGE_PORT, BRIDGE_SERVICE_HOST",
        }
    ]


def test_variables_of_kubernetes_are_skipped_with_one_line_of_config_on_standard_error(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, 6)
    result = invoke("config", "--json")
    assert result.exit_code == 0
    assert log.lines == []
    assert result.stderr == (
        "edk-bridge: Kubernetes Service variables skipped: BRIDGE_N1_PORT, BRIDGE_N1_SERVICE_HOST, BRIDGE_N2_PORT, "
        "BRIDGE_N2_SERVICE_HOST, BRIDGE_N3_PORT, BRIDGE_N3_SERVICE_HOST, BRIDGE_N4_PORT, BRIDGE_N4_SERVICE_HOST and 4 "
        "more\n"
    )
    assert json.loads(result.stdout)["BRIDGE_PORT"]["source"] == "default"


def test_names_of_skipped_variables_are_bounded(runs: Runs, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, 100)
    assert invoke("serve").exit_code == 0
    [line] = log.lines
    assert str(line["names"]).count("BRIDGE_") == 8
    assert str(line["names"]).endswith(" and 192 more")
    assert len(runs.settings) == 1


@pytest.mark.usefixtures("runs")
def test_log_does_not_mention_kubernetes_without_its_variables(log: Log) -> None:
    assert invoke("serve").exit_code == 0
    assert log.lines == []
    assert invoke("config").stderr == ""


def test_logging_is_configured_as_set(runs: Runs, logging_as: list[tuple[str, str]]) -> None:
    assert invoke("serve", "--log-level", "debug", "--log-format", "json").exit_code == 0
    assert logging_as == [("debug", "json")]


@pytest.mark.parametrize(
    ("arguments", "wait"),
    [
        ([], False),
        (["--wait"], True),
        (["--wait", "true"], True),
        (["--wait=false"], False),
        (["--no-wait"], False),
        (["--no-reuse-port", "--wait"], True),
    ],
)
def test_switch_may_have_a_value_or_an_opposite(runs: Runs, arguments: list[str], *, wait: bool) -> None:
    assert invoke("serve", *arguments).exit_code == 0
    assert [settings.wait for settings in runs.settings] == [wait]


SWITCHES = [name.replace("_", "-") for name, setting in SETTINGS.items() if setting.is_switch]


@pytest.mark.parametrize("switch", SWITCHES)
def test_opposite_of_a_switch_wins_over_the_environment(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, switch: str
) -> None:
    name = switch.replace("-", "_")
    monkeypatch.setenv(f"BRIDGE_{name.upper()}", "true")
    assert invoke("serve", f"--no-{switch}").exit_code == 0
    assert [getattr(settings, name) for settings in runs.settings] == [False]


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("value", ["", "=true", "=false"])
@pytest.mark.parametrize("command", ["serve", "config"])
def test_switch_with_its_opposite_is_an_error(runs: Runs, command: str, switch: str, value: str) -> None:
    result = invoke(command, f"--no-{switch}", f"--{switch}{value}")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (f"edk-bridge: --{switch}, --no-{switch}: can't be combined; give one of them\n")
    assert runs.settings == []


def test_opposite_of_a_switch_takes_no_value(runs: Runs) -> None:
    result = invoke("serve", "--no-wait=false")
    assert result.exit_code == 2
    assert "does not take a value" in result.stderr
    assert runs.settings == []


@pytest.mark.parametrize("command", ["serve", "config"])
def test_help_shows_the_opposite_of_each_switch(command: str) -> None:
    text = invoke(command, "--help").output
    assert [switch for switch in SWITCHES if f"--no-{switch} " not in text] == []


def test_invalid_settings_exit_with_2_and_a_line_each(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_programming_error_is_not_hidden(runs: Runs) -> None:
    runs.error = ZeroDivisionError()
    assert isinstance(invoke("serve").exception, ZeroDivisionError)


def test_unknown_flag_exits_with_2() -> None:
    result = invoke("serve", "--prot", "1")
    assert result.exit_code == 2
    assert "--prot" in result.stderr


@pytest.mark.parametrize("arguments", [["--port", "0"], ["--rate", "0"], ["--rate", "x"]])
def test_demo_checks_its_options(arguments: list[str]) -> None:
    assert invoke("demo", *arguments).exit_code == 2


def test_help_of_the_demo_shows_what_happens_without_a_broker() -> None:
    text = " ".join(invoke("demo", "--help").output.split())
    assert "[BRIDGE_AMQP_URL; not set: start a container]" in text
    assert "guest" not in text


def test_demo_runs_with_its_options_and_ends_with_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[Demo, object]] = []

    def run(started: Demo, start_broker: object) -> int:
        ran.append((started, start_broker))
        return 7

    monkeypatch.setattr("bridge.demo.demo.run", run)
    assert invoke("demo", "--rate", "2").exit_code == 7
    flags = {"port": "3000", "amqp_url": None, "schemas": None, "env_file": None}
    assert ran == [(Demo(2.0, flags), start_container)]


@pytest.mark.parametrize(
    ("arguments", "other"),
    [(["--publish-only"], "--publish-only"), (["--amqp-url", "amqp://host"], "--amqp-url")],
    ids=["publish only", "broker"],
)
def test_demo_without_a_broker_takes_no_option_that_needs_one(arguments: list[str], other: str) -> None:
    result = invoke("demo", "--without-broker", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"edk-bridge: --without-broker, {other}: can't be combined; give one of them\n"


@pytest.mark.parametrize(
    ("option", "function"), [("--without-broker", "run_without_broker"), ("--publish-only", "publish_only")]
)
def test_demo_runs_in_the_chosen_way(monkeypatch: pytest.MonkeyPatch, option: str, function: str) -> None:
    ran: list[Demo] = []

    def run(demo: Demo) -> int:
        ran.append(demo)
        return 7

    monkeypatch.setattr(f"bridge.demo.demo.{function}", run)
    assert invoke("demo", option, "--port", "3001").exit_code == 7
    assert [demo.flags["port"] for demo in ran] == ["3001"]


def test_package_runs_as_a_module(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bridge", "--version"])
    monkeypatch.setattr("bridge.interrupts.signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("bridge", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out == VERSION


@pytest.mark.parametrize("arguments", [["--queue"], ["--queue", "--log-level", "debug"], ["--log-bytes"]], ids=" ".join)
def test_flag_without_its_value_is_an_error(runs: Runs, arguments: list[str]) -> None:
    result = invoke("serve", *arguments)
    assert result.exit_code == 2
    assert runs.settings == []


def test_value_that_begins_with_a_dash_reaches_the_settings(runs: Runs) -> None:
    result = invoke("serve", "--prefetch=-5")
    assert result.exit_code == 2
    assert "BRIDGE_PREFETCH (--prefetch): '-5' is not valid" in result.output


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("check", ["without a broker", "[FILE|-]...", "--type", "BRIDGE_SCHEMAS", "0 All events are valid. 1 Some"]),
        (
            "tail",
            [
                "[URL]",
                "--type",
                "--where",
                "--after",
                "--last",
                "--sse",
                "--format",
                "--cafile",
                "Can be repeated",
                "2 Options can't be used",
            ],
        ),
        ("publish", ["to RabbitMQ", "[FILE|-]...", "--type", "--exchange", "BRIDGE_AMQP_URL", "3 The broker refuses"]),
    ],
)
def test_help_of_a_command_has_its_arguments_and_exit_codes(command: str, words: list[str]) -> None:
    text = " ".join(invoke(command, "--help").output.split())
    assert [word for word in words if word not in text] == []


def ndjson(*events: object) -> str:
    return "".join(json.dumps(event) + "\n" for event in events)


WRONG = {"killmailId": "x", "timestamp": "noon"}
"""An event with five violations."""


@pytest.mark.parametrize("arguments", [[], ["-"]], ids=["nothing", "dash"])
def test_check_reads_standard_input(arguments: list[str]) -> None:
    result = invoke("check", *arguments, stdin=ndjson(EXAMPLE, ESI, packaged(redisq(ESI))))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "3 events, 0 invalid\n")


def test_check_of_one_event_counts_it_in_the_singular() -> None:
    assert invoke("check", stdin=ndjson(EXAMPLE)).stderr == "1 event, 0 invalid\n"
    assert invoke("check", stdin=ndjson(WRONG)).stderr == "1 event, 1 invalid\n"


def test_check_of_no_events_finds_none_invalid() -> None:
    result = invoke("check")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "0 events, 0 invalid\n")


def test_check_prints_each_violation_on_a_line_and_exits_with_1() -> None:
    result = invoke("check", stdin=ndjson(EXAMPLE, WRONG))
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert sorted(line.split(": ")[1] for line in lines) == [
        "/attackerCount",
        "/killmailId",
        "/shipTypeId",
        "/systemId",
        "/timestamp",
    ]
    assert all(line.startswith("-:2: ") and line.endswith(" [schema-violation]") for line in lines)
    assert result.stderr == "2 events, 1 invalid\n"


def test_check_takes_several_files_and_counts_over_all(tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text(json.dumps(EXAMPLE, indent=2))
    (tmp_path / "bad.ndjson").write_text(ndjson(EXAMPLE, {**EXAMPLE, "systemId": "Jita"}))
    result = invoke("check", "good.json", "bad.ndjson", "-", stdin='{"package": null}')
    assert result.exit_code == 1
    assert [line.split(": ")[:2] for line in result.stdout.splitlines()] == [
        ["bad.ndjson:2", "/systemId"],
        ["-:1", "/package"],
    ]
    assert result.stderr == "4 events, 2 invalid\n"


@pytest.mark.parametrize("command", ["check", "publish"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["good.json", "missing.json"], "'missing.json' does not exist"),
        (["."], "'.' is a directory"),
        (
            ["--type", "nonsense"],
            "--type nonsense: there is no schema for this type; known: entity-activity, ",
        ),
        (["--type", "esi-killmail"], "--type esi-killmail: there is no schema for this type"),
        (["--schemas", "nowhere"], "BRIDGE_SCHEMAS (--schemas): 'nowhere' is not valid"),
        (["--max-message-bytes", "lots"], "BRIDGE_MAX_MESSAGE_BYTES (--max-message-bytes): 'lots' is not valid"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_unusable_arguments_exit_with_2_before_any_input_is_read(
    command: str, arguments: list[str], words: str, tmp_path: Path
) -> None:
    (tmp_path / "good.json").write_text(ndjson(WRONG))
    result = invoke(command, *arguments, stdin=ndjson(WRONG))
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr


def test_invalid_schema_file_exits_with_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "broken.json").write_text("{")
    monkeypatch.setenv("BRIDGE_SCHEMAS", "own")
    result = invoke("check", stdin=ndjson(EXAMPLE))
    assert result.exit_code == 2
    assert result.stderr.startswith("edk-bridge: own/broken.json: can't be read as JSON")


def test_schema_folder_adds_a_type_that_check_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "duel.json").write_text('{"type": "object", "required": ["winner"]}')
    assert invoke("check", "--type", "duel", stdin="{}").exit_code == 2
    monkeypatch.setenv("BRIDGE_SCHEMAS", "own")
    assert invoke("check", "--type", "duel", stdin='{"winner": 1}').exit_code == 0
    assert invoke("check", stdin=ndjson({"type": "duel", "data": {"winner": 1}}, EXAMPLE)).exit_code == 0
    result = invoke("check", "--type", "duel", stdin="{}")
    assert result.exit_code == 1
    assert result.stdout == "-:1: /winner: the member 'winner' is missing [schema-violation]\n"


@pytest.fixture
def mistaken_schemas(tmp_path: Path) -> str:
    """A folder of schema files with two probable mistakes."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "duel.json").write_text('{"requierd": ["winner"]}')
    (folder / "sighting.JSON").write_text("{}")
    return "own"


WARNINGS = [
    "edk-bridge: warning: own/sighting.JSON: not read: a schema file contains JSON, and its name ends with .json",
    "edk-bridge: warning: own/duel.json: /requierd: the keyword 'requierd' is unknown and has no effect; did you mean "
    "required?",
]


@pytest.mark.parametrize("command", ["check", "publish", "config"])
def test_probable_mistake_in_a_schema_file_causes_a_warning(
    published: Published, command: str, mistaken_schemas: str
) -> None:
    result = invoke(command, "--schemas", mistaken_schemas)
    assert result.exit_code == 0
    assert result.stderr.splitlines()[:2] == WARNINGS
    assert "warning" not in result.stdout


@pytest.mark.parametrize("command", ["check", "publish"])
@pytest.mark.parametrize("name", ["resume", "bridge.x"])
def test_reserved_type_is_an_error(published: Published, command: str, name: str) -> None:
    result = invoke(command, "--type", name, stdin=ndjson({}))
    assert result.exit_code == 2
    assert result.stderr == f"edk-bridge: --type {name}: this type is reserved for the bridge's own messages\n"


def test_check_prints_json_lines_on_request_and_the_summary_on_standard_error() -> None:
    result = invoke("check", "--json", stdin=ndjson(EXAMPLE, WRONG) + "x\n")
    assert result.exit_code == 1
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(found) == 6
    assert {tuple(problem) for problem in found} == {
        ("file", "line", "column", "pointer", "reason", "detail", "schema")
    }
    assert {problem["line"] for problem in found} == {2, 3}
    assert result.stderr == "3 events, 2 invalid\n"


def test_type_option_applies_to_all_events() -> None:
    statistics = {"type": "statistics", "data": {}}
    result = invoke("check", "--type", "killmail", stdin=ndjson(EXAMPLE, {"type": "killmail", "data": ESI}, statistics))
    assert result.exit_code == 1
    assert result.stdout.startswith("-:3: /type: the envelope's type is 'statistics'")


def test_message_larger_than_the_setting_is_rejected() -> None:
    result = invoke("check", "--max-message-bytes", "1024", stdin=ndjson(killmail(1, note="x" * 2000)))
    assert result.exit_code == 1
    assert "[too-large]" in result.stdout


def test_named_pipe_is_opened_once(tmp_path: Path) -> None:
    """If the command opened the pipe a second time, the text that the writer has written would be lost."""
    os.mkfifo(tmp_path / "pipe")
    writing = threading.Thread(target=(tmp_path / "pipe").write_text, args=[ndjson(EXAMPLE, EXAMPLE)])
    writing.start()
    result = invoke("check", "pipe")
    writing.join()
    assert (result.exit_code, result.stderr) == (0, "2 events, 0 invalid\n")


def test_interrupted_check_prints_no_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "check_events", interrupted)
    result = invoke("check")
    assert (result.exit_code, result.output) == (130, "")


class Published:
    """A fake of the publisher, which records its arguments and events, and returns `routed` or raises `error`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[str, str]] = []
        self.declares: list[object] = []
        self.bodies: list[bytes] = []
        self.error: BaseException | None = None
        self.routed = True
        monkeypatch.setattr(publish, "Publisher", self.make)
        self.looked_for: list[str | None] = []
        monkeypatch.setattr(publish, "check_broker", self.check_broker)

    async def check_broker(self, nodes: object, exchange: str | None) -> None:
        self.looked_for.append(exchange)

    def make(self, amqp_url: str, exchange: str, **options: object) -> Self:
        self.made.append((amqp_url, exchange))
        self.declares.append(options["declare"])
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *ended: object) -> None:
        pass

    async def publish_valid(self, body: bytes, update_type: str) -> bool:
        if self.error is not None:
            raise self.error
        self.bodies.append(body)
        return self.routed


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Published:
    return Published(monkeypatch)


def test_publish_publishes_all_events_and_counts_them(published: Published, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(EXAMPLE, indent=2))
    result = invoke("publish", "one.json", "-", stdin=ndjson(*map(killmail, range(1200))))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "1,201 events published, 0 invalid\n")
    assert [json.loads(body) for body in published.bodies] == [EXAMPLE, *map(killmail, range(1200))]


def test_publish_counts_events_with_the_identity_of_an_earlier_one(published: Published) -> None:
    result = invoke("publish", stdin=ndjson(killmail(1), killmail(2), killmail(1), ESI, ESI))
    assert result.exit_code == 0
    assert result.stderr == (
        "5 events published, 0 invalid; 2 have the identity of an earlier event, so a bridge does not send them\n"
    )


def test_publish_counts_one_repeated_event_in_the_singular(published: Published) -> None:
    assert invoke("publish", stdin=ndjson(killmail(1), killmail(1))).stderr == (
        "2 events published, 0 invalid; 1 has the identity of an earlier event, so a bridge does not send it\n"
    )


def test_publish_prints_each_violation(published: Published) -> None:
    result = invoke("publish", stdin=ndjson(EXAMPLE, WRONG))
    *lines, summary = result.stderr.splitlines()
    assert sorted(line.split(": ")[1] for line in lines) == [
        "/attackerCount",
        "/killmailId",
        "/shipTypeId",
        "/systemId",
        "/timestamp",
    ]
    assert (result.exit_code, summary) == (1, "1 event published, 1 invalid")


@pytest.mark.parametrize("command", ["requeue", "purge"])
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "no events are selected; give ids from `edk-bridge rejects list`, --reason or --all"),
        (["--all", "id-1"], "ids and --all can't be combined; give one of them"),
        ([""], "an id is empty; give ids from `edk-bridge rejects list`"),
        (["id-1", "", "--reason", "not-json"], "an id is empty; give ids from `edk-bridge rejects list`"),
    ],
    ids=["nothing", "both", "empty", "empty and another"],
)
def test_command_that_changes_rejects_needs_a_clear_selection(command: str, arguments: list[str], line: str) -> None:
    for sure in [[], ["--yes"]] if command == "purge" else [[]]:
        result = invoke("rejects", command, *sure, *arguments, "--amqp-url", "amqp://127.0.0.1:1")
        assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"edk-bridge: {line}\n")


@pytest.fixture
def empty_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty queue of rejected events."""

    def open_connection(nodes: Sequence[Node], name: str) -> AbstractAsyncContextManager[Connection]:
        amqp = FakeAmqp().on("queue bridge.rejected passive", commands.Queue.DeclareOk("", 0, 0))
        return FakeBroker(amqp).open_connection(nodes, name)

    monkeypatch.setattr(queue, "open_connection", open_connection)


@pytest.mark.usefixtures("empty_queue")
@pytest.mark.parametrize("command", [["requeue"], ["purge", "--yes"]], ids=lambda words: str(words[0]))
def test_number_of_the_list_is_not_accepted_as_an_id(command: list[str]) -> None:
    result = invoke("rejects", *command, "3", "98ca9b46", "128473623")
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if "removed" not in line and "requeued" not in line]
    assert lines == [
        "3 is not an id: see the last field of each event in `edk-bridge rejects list`",
        "not in the queue: 98ca9b46",
        "not in the queue: 128473623",
    ]


@pytest.mark.parametrize("command", [["requeue"], ["purge", "--yes"]], ids=lambda words: str(words[0]))
@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (ConfigurationError(["there is no queue"]), 2),
        (BrokerRefusal("wrong password"), 3),
        (ConnectionError("away"), 1),
    ],
    ids=["queue", "refusal", "connection"],
)
def test_no_summary_is_printed_if_the_queue_was_not_reached(
    monkeypatch: pytest.MonkeyPatch, command: list[str], error: Exception, exit_code: int
) -> None:
    def fail(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr("bridge.cli.rejects.open_reject_queue", fail)
    result = invoke("rejects", *command, "--all")
    [line] = result.stderr.splitlines()
    assert (result.exit_code, line.startswith(f"edk-bridge: {error}")) == (exit_code, True)


def test_publish_counts_events_that_reached_no_queue(published: Published) -> None:
    published.routed = False
    result = invoke("publish", stdin=ndjson(EXAMPLE))
    assert result.exit_code == 1
    assert result.stderr == (
        "1 event published, 0 invalid; 1 reached no queue: no bridge consumes from the exchange killmails\n"
    )


@pytest.mark.parametrize(
    ("arguments", "exchange", "must_be_there"),
    [
        ([], "first", False),
        (["--type", "statistics"], "second", False),
        (["--type", "price-update"], "first", False),
        (["--type", "statistics", "--exchange", "mine"], "mine", True),
        (["--exchange", "second"], "second", False),
    ],
)
def test_publish_chooses_the_exchange_by_the_type(
    published: Published, monkeypatch: pytest.MonkeyPatch, arguments: list[str], exchange: str, must_be_there: bool
) -> None:
    monkeypatch.setenv("BRIDGE_EXCHANGES", "first=killmail,second=statistics")
    monkeypatch.setenv("BRIDGE_AMQP_URL", "amqp://one,amqp://two")
    assert invoke("publish", *arguments).exit_code == 0
    assert published.made == [("amqp://one,amqp://two", exchange)]
    assert published.looked_for == [exchange if must_be_there else None]
    assert published.declares == [not must_be_there]


def test_publish_does_not_declare_an_exchange_with_a_reserved_name(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIDGE_EXCHANGES", "amq.fanout=killmail")
    assert invoke("publish").exit_code == 0
    assert published.looked_for == ["amq.fanout"]
    assert published.declares == [False]


@pytest.mark.parametrize("name", ["", "x" * 200, "a\tb", "\N{SNOWMAN}"])
def test_publish_to_an_invalid_exchange_name_exits_with_2(name: str) -> None:
    result = invoke("publish", "--exchange", name, stdin=ndjson(EXAMPLE))
    assert result.exit_code == 2
    assert "expected a name of 1 to 127" in result.stderr


@pytest.mark.parametrize(
    ("error", "exit_code"), [(NotConfirmed("no broker"), 1), (BrokerRefusal("wrong password"), 3), (OSError("disk"), 1)]
)
def test_publish_that_fails_names_the_first_line_that_is_not_confirmed(
    published: Published, logging_as: list[tuple[str, str]], error: Exception, exit_code: int
) -> None:
    published.error = error
    result = invoke("publish", stdin="\n" + ndjson(EXAMPLE, EXAMPLE))
    assert logging_as == [("info", "text")]
    assert result.exit_code == exit_code
    assert result.stderr.splitlines() == [
        "0 events published, 0 invalid",
        f"edk-bridge: {error}",
        "edk-bridge: -:2: not confirmed; later events may not be published either",
    ]


def test_interrupted_publish_prints_its_summary(published: Published) -> None:
    published.error = KeyboardInterrupt()
    result = invoke("publish", stdin=ndjson(EXAMPLE))
    assert result.exit_code == 130
    assert result.stderr == "interrupted: 0 events published, 0 invalid\n"


def test_package_exports_the_names_for_publishers() -> None:
    assert bridge.Publisher is Publisher
    assert all(hasattr(bridge, name) for name in bridge.__all__)
    assert {*bridge.__all__} <= {*dir(bridge)}
    with pytest.raises(AttributeError, match="'bridge' has no attribute 'nonsense'"):
        vars(bridge)["__getattr__"]("nonsense")


@pytest.mark.parametrize(
    ("module", "loaded"),
    [("bridge", ["bridge"]), ("bridge.__main__", ["bridge", "bridge.__main__", "bridge.interrupts"])],
)
def test_package_and_handler_of_ctrl_c_load_no_other_module(module: str, loaded: list[str]) -> None:
    """If more modules were loaded, such as `typing`, the handler would be installed later.

    Until the handler is installed, Ctrl-C prints a traceback.
    """
    script = (
        f"import os, signal, sys; sys.path.insert(0, {str(ROOT)!r}); before = {{*sys.modules}}; import {module}; "
        "print(sorted({*sys.modules} - before))"
    )
    # With the flags -I and -S, neither environment variables nor site-packages can make Python load other modules
    # first.
    done = subprocess.run([sys.executable, "-ISc", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{loaded}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        *([command, "--type"] for command in ("check", "publish")),
        *([*command, "--env-file"] for command in SETTING_COMMANDS),
        *([command] for command in ("check", "publish", "serve", "config", "tail", "demo", "completion", "rejects")),
        *(["tail", option] for option in ("--where", "--format", "--color")),
        ["tail", "wss://localhost/", "--cafile"],
        *(["rejects", "list", option] for option in ("--reason", "--limit")),
        ["demo", "--port"],
        [],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("url", ["amqp://user:S3CRET@host:1/", "ws://user:S3CRET@host:0/"])
def test_url_in_a_wrong_place_shows_no_password(arguments: list[str], url: str) -> None:
    result = invoke(*arguments, url)
    assert result.exit_code == 2
    assert "edk-bridge: " in result.stderr
    assert "S3CRET" not in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--last", "0"], "0 is not in the range 1<=x<=1000"),
        (["--last", "1001"], "1001 is not in the range 1<=x<=1000"),
        (["--last", "x"], "'x' is not a valid integer range"),
        (["--last", "5", "--after", "earliest"], "can't be combined with --after earliest; give one of them"),
        (["--sse", "ftp://localhost/"], "this is not a URL such as http://localhost:3000/updates or ws://"),
    ],
)
def test_tail_reports_options_that_can_not_be_used(arguments: list[str], words: str) -> None:
    result = invoke("tail", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_tail_reports_all_problems_of_its_options() -> None:
    result = invoke("tail", "http://localhost:3000", "--where", "systemId")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "edk-bridge: http://localhost:3000: this is not a WebSocket URL such as ws://localhost:3000/updates",
        "edk-bridge: --where systemId: write MEMBER=VALUE, such as systemId=30000142",
    ]


ODD = "Jita \N{BULLET} \N{LATIN SMALL LETTER E WITH ACUTE} \N{ROCKET}"
AS_JSON = "Jita \\u2022 \\u00e9 \\ud83d\\ude80"
INVALID = json.dumps({**EXAMPLE, "systemId": ODD}, ensure_ascii=False)


def invoke_in(encoding: str, *arguments: str, stdin: str = "") -> Result:
    """Runs the command with standard streams in the given encoding."""
    return CliRunner(charset=encoding).invoke(cli.cli, arguments, input=stdin.encode())


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", AS_JSON.encode()),
        ("latin-1", AS_JSON.replace("\\u00e9", "\xe9").encode("latin-1")),
        ("cp437", AS_JSON.replace("\\u00e9", "\xe9").encode("cp437")),
        ("utf-8", ODD.encode()),
    ],
)
def test_character_that_the_encoding_does_not_have_is_escaped(encoding: str, shown: bytes) -> None:
    result = invoke_in(encoding, "check", stdin=INVALID)
    assert result.stdout_bytes == b'-:1: /systemId: "' + shown + b'" is not of type "integer" [schema-violation]\n'
    assert (result.stderr_bytes, result.exit_code) == (b"1 event, 1 invalid\n", 1)


def test_character_is_escaped_in_the_locale_of_a_minimal_system() -> None:
    """The command runs in its own process, because Python chooses the encoding of the streams when it starts."""
    names = {
        name: text for name, text in os.environ.items() if not name.startswith(("BRIDGE_", "PYTHON", "LC_", "LANG"))
    }
    root = str(Path(bridge.__file__).parents[1])
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "bridge", "check", ODD],
        capture_output=True,
        env={**names, "PYTHONPATH": root, **locale},
        check=False,
    )
    assert done.stderr.isascii()
    assert b"\\u2022" in done.stderr or b"\\udce2" in done.stderr
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_is_the_same_json_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    [problem] = map(json.loads, invoke_in(encoding, "check", "--json", stdin=INVALID).stdout_bytes.splitlines())
    assert problem["detail"] == f'"{ODD}" is not of type "integer"'
    Path(ODD).mkdir()
    Path(ODD, "duel.json").write_text("{}")
    monkeypatch.setenv("BRIDGE_SCHEMAS", ODD)
    settings = json.loads(invoke_in(encoding, "config", "--json").stdout_bytes)
    assert settings["BRIDGE_SCHEMAS"]["value"] == ODD


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "\N{BULLET}.json"],
        ["publish", "--type", "\N{BULLET}"],
        ["serve", "--queue", "\N{BULLET}"],
        ["tail", "http://\N{BULLET}/"],
        ["rejects", "list", "--reason", "\N{BULLET}"],
        ["config", "--schemas", "\N{BULLET}"],
        ["completion", "\N{BULLET}"],
        ["demo", "--port", "\N{BULLET}"],
        ["\N{BULLET}"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_error_with_characters_that_the_encoding_does_not_have_is_one_line(arguments: list[str]) -> None:
    result = invoke_in("latin-1", *arguments)
    assert result.exit_code == 2
    assert result.stderr_bytes.isascii()
    assert b"\\u2022" in result.stderr_bytes
    assert all(line.startswith(b"edk-bridge: ") for line in result.stderr_bytes.splitlines())
