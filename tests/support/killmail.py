"""Killmails as a fetcher publishes them, in the format of each source, and a corpus of real killmails."""

from pathlib import Path
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
"""The specification's example of the data of an update."""


def killmail(killmail_id: int, **members: Any) -> dict[str, Any]:
    """Returns the specification's example of a killmail, with the given id and other changed members."""
    return {**EXAMPLE, "killmailId": killmail_id, **members}


ESI: dict[str, Any] = {
    "attackers": [
        {"character_id": 95465499, "corporation_id": 98000001, "damage_done": 4321, "final_blow": True},
        {"corporation_id": 1000125, "damage_done": 120, "final_blow": False},
    ],
    "killmail_id": 123456789,
    "killmail_time": "2024-10-22T10:14:51Z",
    "solar_system_id": 30000142,
    "victim": {
        "alliance_id": 99999999,
        "character_id": 2112625428,
        "corporation_id": 98765432,
        "damage_taken": 4441,
        "items": [{"flag": 27, "item_type_id": 2873, "quantity_destroyed": 1, "singleton": 0}],
        "position": {"x": 1.5, "y": -2.5, "z": 3.5},
        "ship_type_id": 587,
    },
}
"""A raw killmail."""

ZKB: dict[str, Any] = {"locationID": 50000001, "hash": "0123456789abcdef0123456789abcdef01234567", "points": 1}


def redisq(killmail: object) -> dict[str, Any]:
    """Returns the content of a RedisQ package."""
    return {"killID": 123456789, "killmail": killmail, "zkb": ZKB}


def r2z2(killmail: object) -> dict[str, Any]:
    """A document of R2Z2."""
    return {"killmail_id": 123456789, "hash": ZKB["hash"], "esi": killmail, "zkb": ZKB, "sequence_id": 98765432}


def packaged(package: object) -> dict[str, Any]:
    """Returns a response of RedisQ."""
    return {"package": package}


def wrapped(data: object) -> dict[str, Any]:
    """Returns the event in which a fetcher publishes a killmail of any format."""
    return {"type": "killmail", "data": data}


CORPUS = Path(__file__).parents[2].parent / "shared/killmails"
"""A folder of real killmails, which only some machines have."""
CORPUS_INDEX = CORPUS / "INDEX.json"
"""The expected data of the corpus, as a list with one object for each file."""

INDEXED = {
    "killmailId": "killmail_id",
    "victimId": "victim_character_id",
    "victimCorporationId": "victim_corporation_id",
    "victimAllianceId": "victim_alliance_id",
    "systemId": "solar_system_id",
    "shipTypeId": "ship_type_id",
    "attackerCount": "attacker_count",
}
"""Members of an update's data, and the names of these members in the index of the killmail corpus.

If a killmail lacks a member, the index has null for this member.
"""
