"""Tests of the example of a `.env` file in the README."""

from pathlib import Path

import pytest

from bridge.config.settings import load
from tests.support.documentation import code_block


def test_env_file_of_the_readme_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text(code_block("bridge/config/README.md", ".env"))
    Path("amqp-url").write_text("amqp://user:secret@rabbitmq\n")
    settings = load({}, {}, Path(".env"))
    assert settings.amqp_url == ("amqp://user:secret@rabbitmq",)
    assert settings.queue == "kills"
    assert settings.idle_timeout_s == 120
    assert settings.allowed_hosts == {"bridge.internal"}
