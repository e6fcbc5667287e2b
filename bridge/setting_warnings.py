"""Settings that can be used, and that do nothing or too much: what the log warns of at the start.

Pure. Settings that can't be used are errors, in `bridge.settings`.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bridge.settings import Settings

_RESERVED = ipaddress.IPv4Network("240.0.0.0/4")
"""Class E. Some clouds use it inside, so that it is no error."""


@dataclass(frozen=True, slots=True)
class SettingWarning:
    """A line for the log: a phrase, which names the setting, and its fields."""

    phrase: str
    fields: Mapping[str, object]


def setting_warnings(settings: Settings, memory_bytes: int) -> Sequence[SettingWarning]:
    """What to warn of; `memory_bytes` is the memory that this process may use."""
    found = []
    networks = settings.allowed_networks
    if public := ", ".join(str(network) for network in networks if network.is_global):
        found.append(SettingWarning("public addresses may connect (BRIDGE_ALLOWED_NETWORKS)", {"networks": public}))
    reserved = [each for each in networks if isinstance(each, ipaddress.IPv4Network) and each.subnet_of(_RESERVED)]
    if reserved:
        found.append(
            SettingWarning(
                "few networks use reserved addresses, as these are (BRIDGE_ALLOWED_NETWORKS)",
                {"networks": ", ".join(map(str, reserved))},
            )
        )
    if settings.reuse_port and settings.port == 0:
        found.append(
            SettingWarning(
                "each bridge picks a port of its own, so that none is shared (BRIDGE_REUSE_PORT)", {"port": 0}
            )
        )
    if settings.log_bytes > memory_bytes:
        found.append(
            SettingWarning(
                "the update log may need more memory than there is (BRIDGE_LOG_BYTES)",
                {"log_bytes": settings.log_bytes, "memory_bytes": memory_bytes},
            )
        )
    per_address = settings.max_connections_per_address
    if per_address is not None and per_address > settings.max_connections:
        found.append(
            SettingWarning(
                "above BRIDGE_MAX_CONNECTIONS, this limit is never reached (BRIDGE_MAX_CONNECTIONS_PER_ADDRESS)",
                {"max_connections": settings.max_connections, "max_connections_per_address": per_address},
            )
        )
    return found
