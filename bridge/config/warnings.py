"""Warnings about settings that are valid, but have no effect or are risky.

The bridge logs these warnings when it starts.

For invalid settings, `bridge.config.settings` reports errors.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bridge.config.settings import Settings

_RESERVED = ipaddress.IPv4Network("240.0.0.0/4")
"""The reserved addresses of class E.

A network of these addresses is not an error, because some clouds use them as internal addresses.
"""


@dataclass(frozen=True, slots=True)
class SettingWarning:
    """The content of a log line: a phrase that names the setting, and the fields of the log line."""

    phrase: str
    fields: Mapping[str, object]


def setting_warnings(settings: Settings, memory_bytes: int) -> Sequence[SettingWarning]:
    """All warnings. `memory_bytes` is the memory that this process may use."""
    found = []
    networks = settings.allowed_networks
    if public := ", ".join(str(network) for network in networks if network.is_global):
        found.append(
            SettingWarning(
                "BRIDGE_ALLOWED_NETWORKS allows public addresses",
                {"networks": public, "hint": "remove these networks unless public clients must connect"},
            )
        )
    reserved = [each for each in networks if isinstance(each, ipaddress.IPv4Network) and each.subnet_of(_RESERVED)]
    if reserved:
        found.append(
            SettingWarning(
                "BRIDGE_ALLOWED_NETWORKS has reserved addresses",
                {
                    "networks": ", ".join(map(str, reserved)),
                    "hint": f"check the numbers: {_RESERVED} is rarely used",
                },
            )
        )
    if settings.reuse_port and settings.port == 0:
        found.append(
            SettingWarning(
                "BRIDGE_REUSE_PORT has no effect with BRIDGE_PORT=0", {"hint": "give all bridges the same port"}
            )
        )
    if settings.log_bytes > memory_bytes:
        found.append(
            SettingWarning(
                "BRIDGE_LOG_BYTES exceeds the memory of this process",
                {
                    "log_bytes": settings.log_bytes,
                    "memory_bytes": memory_bytes,
                    "hint": "lower it, or raise the memory limit",
                },
            )
        )
    per_address = settings.max_connections_per_address
    if per_address is not None and per_address > settings.max_connections:
        found.append(
            SettingWarning(
                "BRIDGE_MAX_CONNECTIONS_PER_ADDRESS has no effect above BRIDGE_MAX_CONNECTIONS",
                {
                    "max_connections": settings.max_connections,
                    "max_connections_per_address": per_address,
                    "hint": "lower it, or set it to off",
                },
            )
        )
    return found
