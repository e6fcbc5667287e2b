"""The foreign forms of a killmail: what sources give their fetchers, told apart by shape, made into an update's data.

ESI gives the raw killmail; zKillboard's RedisQ and R2Z2 put it into a document of their own. Where a killmail is, there
it is taken from, whatever members stand beside it: a placeholder is only what has none, because nobody looks at those
again. Each form has a schema file; what is converted has passed it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bridge.contract.envelope import date_time

UPDATE_TYPE = "killmail"
"""The update type that all of these forms become."""

ESI, REDISQ, R2Z2 = "esi-killmail", "redisq-package", "r2z2-document"

_TITLES = {ESI: "a raw ESI killmail", REDISQ: "a RedisQ package", R2Z2: "an R2Z2 document"}

_MARKS = frozenset({"esi", "sequence_id", "killID", "killmail"})
"""Each says of a document that it is one of R2Z2 or RedisQ, though it has no killmail."""

_REFERENCE = frozenset({"killmail_hash", "hash", "zkb"})
"""What stands beside `killmail_id` in the lists of ESI and zKillboard, which refer to killmails and have none."""

_PARTS = frozenset({"victim", "attackers", "solar_system_id", "system_id", "ship_type_id", "attacker_count"})
"""With one of these, a document is a killmail, though an incomplete or misspelled one."""

_NOTHING: tuple[object, ...] = (None, [], {})

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

    @property
    def judged_as(self) -> str:
        """What the document is judged as and because of which members, for the end of a violation."""
        members = self.document if isinstance(self.document, dict) else {}
        if self.killmail is not None:
            because = f"'{self.killmail}'" if members else "'package'"
        elif "victim" in members and "attackers" in members:
            because = "'victim' and 'attackers'"
        elif "solar_system_id" in members:
            because = "'killmail_id'"
        else:
            because = "'killmail_id'; the bridge's own member is 'killmailId'"
        return f"judged as {_TITLES[self.form]} because of {because}"


@dataclass(frozen=True, slots=True)
class Placeholder:
    """What a source sends instead of a killmail: nothing is wrong with it, and there is nothing to send."""

    form: str
    pointer: str
    """JSON Pointer to where the killmail should be."""
    detail: str


def recognise(data: Mapping[str, Any]) -> Foreign | Placeholder | None:
    """The foreign form of a killmail's data; None where it is none, but the update's data itself."""
    if "killmailId" in data:
        return None
    # Before package: to a document that has its killmail, package is a member that its schema does not name.
    foreign = _foreign(data, "")
    if foreign is not None:
        return foreign
    if "package" in data:
        return _packaged(data["package"])
    if not _MARKS.isdisjoint(data):
        return _without_killmail(data, "")
    if "killmail_id" in data:
        if not _REFERENCE.isdisjoint(data) and _PARTS.isdisjoint(data):
            return Placeholder(
                ESI, "", "a reference to a killmail, without the killmail: fetch it from ESI, and publish that"
            )
        # Incomplete: its schema says what is missing.
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


def _foreign(document: Mapping[str, Any], pointer: str) -> Foreign | None:
    """The form of a document that has something where the killmail should be; None where it has not."""
    if "victim" in document and "attackers" in document:
        return Foreign(ESI, document, pointer, None)
    if not _empty(document.get("killmail")):
        return Foreign(REDISQ, document, pointer, "killmail")
    if not _empty(document.get("esi")):
        return Foreign(R2Z2, document, pointer, "esi")
    return None


def _packaged(package: object) -> Foreign | Placeholder:
    """What is in a package: RedisQ's own document, or what a fetcher put there in its stead."""
    if _empty(package):
        return Placeholder(REDISQ, "/package", "an empty RedisQ package: there was no new killmail")
    if not isinstance(package, dict):
        return Foreign(REDISQ, package, "/package", "killmail")
    return _foreign(package, "/package") or _without_killmail(package, "/package")


def _without_killmail(document: Mapping[str, Any], pointer: str) -> Placeholder:
    if "esi" in document or "sequence_id" in document:
        return Placeholder(R2Z2, f"{pointer}/esi", "an R2Z2 document without its killmail: esi is empty or missing")
    return Placeholder(
        REDISQ, f"{pointer}/killmail", "a RedisQ package without its killmail: fetch it from ESI, and publish that"
    )


def _empty(value: object) -> bool:
    """True for null, [] and {}, and for an object of nothing but these, as PHP fills its placeholders."""
    if value in _NOTHING:
        return True
    return isinstance(value, dict) and all(inner in _NOTHING for inner in value.values())
