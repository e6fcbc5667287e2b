"""The effective settings of a command."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.cli.common.options import effective_settings
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
