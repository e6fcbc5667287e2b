"""A killmail's data, as a fetcher publishes it."""

from typing import Any

EXAMPLE: dict[str, Any] = {
    "killmailId": 123456789,
    "timestamp": "2024-10-22T10:30:00.000Z",
    "victimId": 2112625428,
    "victimCorporationId": 98765432,
    "victimAllianceId": 99999999,
    "systemId": 30000142,
    "shipTypeId": 587,
    "attackerCount": 15,
}
"""The specification's example."""


def killmail(killmail_id: int, **members: Any) -> dict[str, Any]:
    """The example with another id, and other members."""
    return {**EXAMPLE, "killmailId": killmail_id, **members}
