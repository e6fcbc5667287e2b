"""The foreign forms of a killmail: what sources give their fetchers, told apart by shape, made into an update's data.

ESI gives the raw killmail; zKillboard's RedisQ and R2Z2 put it into a document of their own. All of them name a member
that no update has, so one look says which form it is. Each form has a schema file; what is converted has passed it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bridge.contract.envelope import date_time

UPDATE_TYPE = "killmail"
"""The update type that all of these forms become."""

ESI, REDISQ, R2Z2 = "esi-killmail", "redisq-package", "r2z2-document"

_VICTIM = {"victimId": "character_id", "victimCorporationId": "corporation_id", "victimAllianceId": "alliance_id"}


@dataclass(frozen=True, slots=True)
class Foreign:
    """A foreign form, recognised but not validated yet."""

    form: str
    """The name of its schema."""
    document: object
    """What the schema describes."""
    pointer: str
    """JSON Pointer to the document, in what was recognised."""
    killmail: str | None
    """The member of the document that holds the raw killmail; None where it is the document itself."""


@dataclass(frozen=True, slots=True)
class Placeholder:
    """What a source sends when it has no killmail to give: nothing is wrong with it, and there is nothing to send."""

    form: str
    pointer: str
    """JSON Pointer to where the killmail should be."""
    detail: str


def recognise(data: Mapping[str, Any]) -> Foreign | Placeholder | None:
    """The foreign form of a killmail's data; None where it is none, but the update's data itself."""
    if "killmailId" in data:
        return None
    if "package" in data:
        package = data["package"]
        if _empty(package):
            return Placeholder(REDISQ, "/package", "an empty RedisQ package: there was no new killmail")
        return _redisq(package, "/package")
    if "killID" in data or "killmail" in data:
        return _redisq(data, "")
    if "esi" in data or "sequence_id" in data:
        if _empty(data.get("esi")):
            return Placeholder(R2Z2, "/esi", "an R2Z2 document without its killmail: esi is empty")
        return Foreign(R2Z2, data, "", "esi")
    if "killmail_id" in data or ("victim" in data and "attackers" in data):
        return Foreign(ESI, data, "", None)
    return None


def convert(foreign: Foreign, timestamp_ms: int) -> dict[str, Any]:
    """The data of an update of the type `killmail`, from a form that its schema has found valid.

    Victim ids are there or not, null or 0, as the source has them. `timestamp_ms` is now, in Unix milliseconds.
    """
    document: Any = foreign.document
    killmail = document if foreign.killmail is None else document[foreign.killmail]
    victim = killmail["victim"]
    data = {"killmailId": killmail["killmail_id"], "timestamp": date_time(timestamp_ms)}
    data.update((ours, victim[theirs]) for ours, theirs in _VICTIM.items() if theirs in victim)
    data["systemId"] = killmail["solar_system_id"]
    data["shipTypeId"] = victim["ship_type_id"]
    data["attackerCount"] = len(killmail["attackers"])
    if "killmail_time" in killmail:
        data["killmailTime"] = killmail["killmail_time"]
    return data


def _redisq(package: object, pointer: str) -> Foreign | Placeholder:
    if isinstance(package, dict) and _empty(package.get("killmail")):
        return Placeholder(
            REDISQ, f"{pointer}/killmail", "a RedisQ package without its killmail: fetch it from ESI, and publish that"
        )
    return Foreign(REDISQ, package, pointer, "killmail")


def _empty(value: object) -> bool:
    """True for null, for nothing but nulls, and for the list that PHP makes of an empty object."""
    if isinstance(value, dict):
        return all(inner is None for inner in value.values())
    return value is None or value == []
