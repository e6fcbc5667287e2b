"""Tests of `edk-bridge config`, which prints the settings in effect and their sources, without passwords."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import orjson
import pytest
from click.testing import CliRunner

from bridge import logs
from bridge.cli import cli
from bridge.config.settings import SETTINGS, Group
from bridge.errors import redact_url

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

SECRET = "correct%2Fhorse,battery"


@pytest.fixture(autouse=True)
def _nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # A real configuration of logging would last for the whole process and affect other tests.
    monkeypatch.setattr(logs, "configure", lambda level, style: None)
    for name in tuple(os.environ):
        if name.startswith("BRIDGE_"):
            monkeypatch.delenv(name)


def config(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["config", *arguments])


def test_json_has_each_setting_with_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "name").write_text("kills\n")
    (tmp_path / ".env").write_text("BRIDGE_PORT=1\nBRIDGE_PATH=/dotenv\n")
    monkeypatch.setenv("BRIDGE_QUEUE_FILE", "name")
    monkeypatch.setenv("BRIDGE_PORT", "2")
    monkeypatch.setenv("BRIDGE_PREFETCH", "7")
    result = config("--port", "3", "--json")
    assert result.exit_code == 0
    found = orjson.loads(result.stdout)
    assert list(found) == [f"BRIDGE_{name.upper()}" for name in SETTINGS]
    assert found["BRIDGE_PORT"] == {"value": "3", "source": "--port", "changed": True}
    assert found["BRIDGE_PREFETCH"] == {"value": "7", "source": "environment", "changed": True}
    assert found["BRIDGE_PATH"] == {"value": "/dotenv", "source": ".env", "changed": True}
    assert found["BRIDGE_QUEUE"] == {
        "value": "kills",
        "source": "BRIDGE_QUEUE_FILE in the environment",
        "changed": True,
    }
    assert found["BRIDGE_LOG_BYTES"] == {"value": "16 MiB", "source": "default", "changed": False}
    assert found["BRIDGE_SCHEMAS"] == {"value": None, "source": "default", "changed": False}


def test_text_has_a_line_for_each_setting_below_the_heading_of_its_group() -> None:
    lines = config("--port", "3").stdout.splitlines()
    assert [line for line in lines if line and "BRIDGE_" not in line] == [f"{group}:" for group in Group]
    settings = {line[2:].split()[0]: line[2:].split(maxsplit=2)[1:] for line in lines if "BRIDGE_" in line}
    assert len(settings) == len(SETTINGS)
    assert settings["BRIDGE_PORT"] == ["--port", "3"]
    assert settings["BRIDGE_QUEUE"] == ["default", "not set"]


def test_text_marks_the_values_that_are_not_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_IDLE_TIMEOUT", "120")
    lines = config("--port", "3").stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("*")] == ["BRIDGE_PORT"]


def test_changed_shows_only_the_values_that_are_not_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_IDLE_TIMEOUT", "2m")
    monkeypatch.setenv("BRIDGE_QUEUE", "kills")
    result = config("--changed", "--port", "3")
    assert result.stdout == (
        "Broker:\n* BRIDGE_QUEUE  environment  kills\n\nListening:\n* BRIDGE_PORT   --port       3\n"
    )
    assert list(orjson.loads(config("--changed", "--port", "3", "--json").stdout)) == ["BRIDGE_QUEUE", "BRIDGE_PORT"]


def test_changed_without_a_change_prints_no_setting() -> None:
    result = config("--changed")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "all settings have their defaults\n"
    assert config("--changed", "--json").stdout == "{}\n"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"amqp://user:{SECRET}@host/", "amqp://user:***@host/"),
        ("amqp://user@host:1/v", "amqp://user@host:1/v"),
        ("amqp://host", "amqp://host"),
        (f"amqp://user:a@b:{SECRET}@host", "amqp://user:***@host"),
        (
            f"amqp://user:{SECRET}@host/?heartbeat=3&cadata={SECRET}&timeout",
            "amqp://user:***@host/?heartbeat=3&cadata=***&timeout",
        ),
    ],
)
def test_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert redact_url(url) == shown


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--changed"]])
def test_passwords_are_masked_in_every_url(arguments: list[str]) -> None:
    url = f"amqp://one:{SECRET}@a/,amqps://two:{SECRET}@b/v?heartbeat=3"
    result = config("--amqp-url", url, *arguments)
    assert "amqp://one:***@a/,amqps://two:***@b/v?heartbeat=3" in result.output
    assert "horse" not in result.output
    assert "battery" not in result.output


def test_url_in_another_setting_is_masked() -> None:
    result = config("--queue", "amqp://user:horse@host")
    assert "***@host" in result.output
    assert "horse" not in result.output


def test_problems_are_those_of_serve(tmp_path: Path) -> None:
    for arguments, shows in (
        (["--port", "x", "--path", "y"], False),
        (["--schemas", "nowhere"], True),
        (["--exchanges", "a=nonsense"], True),
        (["--tls-certificate", str(tmp_path), "--tls-key", str(tmp_path)], True),
    ):
        result = config(*arguments)
        assert result.exit_code == 2
        assert ("BRIDGE_TLS_KEY" in result.stdout) is shows, "files that can't be used are reported after the settings"
        served = CliRunner().invoke(cli, ["serve", *arguments])
        assert result.stderr == served.stderr
        assert result.stderr.startswith("edk-bridge: BRIDGE_")
