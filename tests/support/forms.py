"""A killmail in each form that sources give it in, as plain data to take apart."""

from typing import Any

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
    """The content of a RedisQ package."""
    return {"killID": 123456789, "killmail": killmail, "zkb": ZKB}


def r2z2(killmail: object) -> dict[str, Any]:
    """A document of R2Z2."""
    return {"killmail_id": 123456789, "hash": ZKB["hash"], "esi": killmail, "zkb": ZKB, "sequence_id": 98765432}


def packaged(package: object) -> dict[str, Any]:
    """What RedisQ answers."""
    return {"package": package}


def wrapped(data: object) -> dict[str, Any]:
    """A killmail's data, in any form, as a fetcher wraps it."""
    return {"type": "killmail", "data": data}
