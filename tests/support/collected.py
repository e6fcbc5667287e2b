"""Killmails that players left behind, on machines that have a collection of them beside the checkout."""

from pathlib import Path

FOLDER = Path(__file__).parents[2].parent / "shared/killmails"
INDEX = FOLDER / "INDEX.json"
"""What each of them should become: a list of objects, one for each file."""

INDEXED = {
    "killmailId": "killmail_id",
    "victimId": "victim_character_id",
    "victimCorporationId": "victim_corporation_id",
    "victimAllianceId": "victim_alliance_id",
    "systemId": "solar_system_id",
    "shipTypeId": "ship_type_id",
    "attackerCount": "attacker_count",
}
"""Members of an update's data, and what the index calls them; null there where there is none."""
