"""Tests how the options of a command become settings, and how the help of the command groups these options."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from bridge.cli.common.options import GroupedCommand, SettingOption, effective_settings
from bridge.config.settings import Group
from bridge.errors import ConfigurationError


def test_only_files_of_settings_that_the_command_uses_must_be_readable(tmp_path: Path) -> None:
    file = tmp_path / "environment"
    lines = ["BRIDGE_TLS_CERTIFICATE=/nowhere/certificate", "BRIDGE_TLS_KEY=/nowhere/key", "BRIDGE_SCHEMAS=/nowhere"]
    file.write_text("\n".join(lines))
    settings = effective_settings({"amqp_url": None, "env_file": str(file)})
    assert (settings.tls_key, settings.schemas) == (Path("/nowhere/key"), Path("/nowhere"))
    with pytest.raises(ConfigurationError, match=r"BRIDGE_SCHEMAS .*: expected a folder") as raised:
        effective_settings({"schemas": None, "env_file": str(file)})
    assert "BRIDGE_TLS" not in str(raised.value)


def test_help_has_headings_only_for_groups_with_options() -> None:
    port = SettingOption(["--port"], group=Group.LISTENING, bracket="[BRIDGE_PORT; 3000]", help="The port.")
    hidden = click.Option(["--internal"], hidden=True)
    command = GroupedCommand("serve", params=[hidden, port], callback=lambda **_: None)
    output = CliRunner().invoke(command, ["--help"]).output
    assert [line for line in output.splitlines() if line.endswith(":")] == ["Options:", "Listening:"]
    assert "[BRIDGE_PORT; 3000]" in output
    assert "--internal" not in output
