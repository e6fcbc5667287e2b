"""Tests that there are warnings for settings with no effect or a risky effect, and for no other settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.config.settings import load
from bridge.config.warnings import setting_warnings

NOWHERE = Path("/nonexistent/.env")
GIB = 2**30


def warned(flags: dict[str, str], memory_bytes: int = GIB) -> list[tuple[str, dict[str, object]]]:
    """Returns the name of each setting with a warning, and the warning's fields except the hint."""
    found = setting_warnings(load(flags, {}, NOWHERE), memory_bytes)
    assert all(warning.fields["hint"] for warning in found)
    return [
        (warning.phrase.split()[0], {name: value for name, value in warning.fields.items() if name != "hint"})
        for warning in found
    ]


@pytest.mark.parametrize(
    ("flags", "name", "fields"),
    [
        (
            {"allowed_networks": "10.0.0.0/7,10.0.0.0/8,::/0"},
            "BRIDGE_ALLOWED_NETWORKS",
            {"networks": "10.0.0.0/7, ::/0"},
        ),
        (
            {"allowed_networks": "::1,240.0.0.0/4,255.0.0.0/8"},
            "BRIDGE_ALLOWED_NETWORKS",
            {"networks": "240.0.0.0/4, 255.0.0.0/8"},
        ),
        ({"reuse_port": "true", "port": "0"}, "BRIDGE_REUSE_PORT", {}),
        ({"log_bytes": "1025 MiB"}, "BRIDGE_LOG_BYTES", {"log_bytes": GIB + 2**20, "memory_bytes": GIB}),
        (
            {"max_connections": "10", "max_connections_per_address": "11"},
            "BRIDGE_MAX_CONNECTIONS_PER_ADDRESS",
            {"max_connections": 10, "max_connections_per_address": 11},
        ),
    ],
)
def test_setting_without_effect_is_warned_of(flags: dict[str, str], name: str, fields: dict[str, object]) -> None:
    assert warned(flags) == [(name, fields)]


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"allowed_networks": "10.0.0.0/8,fe80::/10"},
        {"reuse_port": "true"},
        {"port": "0"},
        {"log_bytes": "1 GiB"},
        {"max_connections": "10", "max_connections_per_address": "10"},
        {"max_connections": "10"},
    ],
)
def test_setting_with_an_effect_is_not_warned_of(flags: dict[str, str]) -> None:
    assert warned(flags) == []
