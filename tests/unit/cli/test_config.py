"""`edk-bridge config`: what is in effect, from where, and never a password."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import orjson
import pytest
from click.testing import CliRunner

from bridge import logs
from bridge.cli import cli
from bridge.config.settings import SETTINGS
from bridge.errors import redact_url

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

SECRET = "correct%2Fhorse,battery"


@pytest.fixture(autouse=True)
def _nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # What this does to logging lasts, and is tested elsewhere.
    monkeypatch.setattr(logs, "configure", lambda level, style: None)
    for name in tuple(os.environ):
        if name.startswith("BRIDGE_"):
            monkeypatch.delenv(name)


def config(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["config", *arguments])


def test_every_setting_is_said_with_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "name").write_text("kills\n")
    (tmp_path / ".env").write_text("BRIDGE_PORT=1\nBRIDGE_PATH=/dotenv\n")
    monkeypatch.setenv("BRIDGE_QUEUE_FILE", "name")
    monkeypatch.setenv("BRIDGE_PORT", "2")
    monkeypatch.setenv("BRIDGE_PREFETCH", "7")
    result = config("--port", "3", "--json")
    assert result.exit_code == 0
    found = orjson.loads(result.stdout)
    assert list(found) == [f"BRIDGE_{name.upper()}" for name in SETTINGS]
    assert found["BRIDGE_PORT"] == {"value": "3", "source": "--port"}
    assert found["BRIDGE_PREFETCH"] == {"value": "7", "source": "environment"}
    assert found["BRIDGE_PATH"] == {"value": "/dotenv", "source": ".env"}
    assert found["BRIDGE_QUEUE"] == {"value": "kills", "source": "BRIDGE_QUEUE_FILE in the environment"}
    assert found["BRIDGE_LOG_BYTES"] == {"value": "16 MiB", "source": "default"}
    assert found["BRIDGE_SCHEMAS"] == {"value": None, "source": "default"}


def test_text_is_a_line_for_each() -> None:
    result = config("--port", "3")
    lines = {line.split()[0]: line.split(maxsplit=2)[1:] for line in result.stdout.splitlines()}
    assert len(lines) == len(SETTINGS)
    assert lines["BRIDGE_PORT"] == ["--port", "3"]
    assert lines["BRIDGE_QUEUE"] == ["default", "not set"]


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


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_passwords_are_masked_in_every_url(arguments: list[str]) -> None:
    url = f"amqp://one:{SECRET}@a/,amqps://two:{SECRET}@b/v?heartbeat=3"
    result = config("--amqp-url", url, *arguments)
    assert "amqp://one:***@a/,amqps://two:***@b/v?heartbeat=3" in result.output
    assert "horse" not in result.output
    assert "battery" not in result.output


def test_url_where_none_belongs_is_masked() -> None:
    result = config("--queue", "amqp://user:horse@host")
    assert "***@host" in result.output
    assert "horse" not in result.output


def test_problems_are_those_of_serve(tmp_path: Path) -> None:
    for arguments in (
        ["--port", "x", "--path", "y"],
        ["--schemas", "nowhere"],
        ["--exchanges", "a=nonsense"],
        ["--tls-certificate", str(tmp_path), "--tls-key", str(tmp_path)],
    ):
        result = config(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        served = CliRunner().invoke(cli, ["serve", *arguments])
        assert result.stderr == served.stderr
        assert result.stderr.startswith("edk-bridge: BRIDGE_")
