"""Detects the source format of a killmail, and converts the killmail to an update's data.

ESI provides raw killmails. zKillboard's RedisQ and R2Z2 provide documents that contain a raw killmail. A document
counts as a placeholder only if it has no killmail at all, whatever its other members are. A killmail must not be
rejected as a placeholder, because people usually ignore rejected placeholders. Each source format has a schema file,
and a document is validated before it is converted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from bridge.contract.envelope import date_time

UPDATE_TYPE = "killmail"
"""The update type that killmails get when they are converted from any source format."""


class SourceFormat(StrEnum):
    """A format in which sources provide killmails.

    The value of each member of this enum is the name of the format's schema.
    """

    ESI = "esi-killmail"
    REDISQ = "redisq-package"
    R2Z2 = "r2z2-document"

    @property
    def words(self) -> str:
        """The name of the format, with its article, for use in a sentence."""
        return _TITLES[self]


_TITLES = {
    SourceFormat.ESI: "a raw ESI killmail",
    SourceFormat.REDISQ: "a RedisQ package",
    SourceFormat.R2Z2: "an R2Z2 document",
}

_R2Z2_OR_REDISQ_MEMBERS = frozenset({"esi", "sequence_id", "killID", "killmail"})
"""A document with one of these members is from R2Z2 or RedisQ, even if it has no killmail."""

_REFERENCE_MEMBERS = frozenset({"killmail_hash", "hash", "zkb"})
"""The members that a reference to a killmail has besides `killmail_id`, in the lists of ESI and zKillboard."""

_KILLMAIL_MEMBERS = frozenset({"victim", "attackers", "solar_system_id", "system_id", "ship_type_id", "attacker_count"})
"""A document with one of these members is a killmail, perhaps an incomplete or misspelled one."""

_EMPTY: tuple[object, ...] = (None, [], {})

_VICTIM = {"victimId": "character_id", "victimCorporationId": "corporation_id", "victimAllianceId": "alliance_id"}
"""The members of an update's data that are copied from members of `victim`."""


@dataclass(frozen=True, slots=True)
class SourceDocument:
    """A document in a source format, which is not validated yet."""

    format: SourceFormat
    document: object
    """The value that the format's schema describes."""
    pointer: str
    """The JSON Pointer from the event's data to the document."""
    killmail: str | None
    """The member of the document that contains the raw killmail, or None if the document is the raw killmail."""

    @property
    def validated_as(self) -> str:
        """The end of an error's text, which names the format and the members that identified it."""
        members = self.document if isinstance(self.document, dict) else {}
        if self.killmail is not None:
            because = f"'{self.killmail}'" if members else "'package'"
        elif "victim" in members and "attackers" in members:
            because = "'victim' and 'attackers'"
        elif "solar_system_id" in members:
            because = "'killmail_id'"
        else:
            because = "'killmail_id'; the bridge's own member is 'killmailId'"
        return f"validated as {self.format.words} because of {because}"


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A document without a killmail, which a source sends if, for example, it has no new killmail.

    A placeholder is not an error, but can't become an update.
    """

    format: SourceFormat
    pointer: str
    """The JSON Pointer from the event's data to the place where the killmail should be."""
    detail: str


def detect(data: Mapping[str, object]) -> SourceDocument | Placeholder | None:
    """Returns the document in a source format, which is the event's data or a part of it, or None if there is none."""
    if "killmailId" in data:
        return None
    # The document itself is checked before its member `package`, because the bridge ignores `package` in a document
    # that has a killmail.
    source = _with_killmail(data, "")
    if source is not None:
        return source
    if "package" in data:
        return _package(data["package"])
    if not _R2Z2_OR_REDISQ_MEMBERS.isdisjoint(data):
        return _without_killmail(data, "")
    if "killmail_id" in data:
        if not _REFERENCE_MEMBERS.isdisjoint(data) and _KILLMAIL_MEMBERS.isdisjoint(data):
            return Placeholder(
                SourceFormat.ESI,
                "",
                "only a reference to a killmail: fetch the killmail from ESI and publish it",
            )
        # The killmail may lack some members. The validation with the schema reports any missing members.
        return SourceDocument(SourceFormat.ESI, data, "", None)
    return None


def convert(source: SourceDocument, timestamp_ms: int) -> dict[str, object]:
    """Returns the data of an update of the type `killmail` from a document that matches the schema of its format.

    The ids of the victim are copied unchanged: they may be absent, null or 0. `timestamp_ms` is the current time, in
    Unix milliseconds.
    """
    document: Any = source.document
    killmail = document if source.killmail is None else document[source.killmail]
    victim = killmail["victim"]
    data: dict[str, object] = {"killmailId": killmail["killmail_id"], "timestamp": date_time(timestamp_ms)}
    data.update((ours, victim[theirs]) for ours, theirs in _VICTIM.items() if theirs in victim)
    data["systemId"] = killmail["solar_system_id"]
    data["shipTypeId"] = victim["ship_type_id"]
    data["attackerCount"] = len(killmail["attackers"])
    if "killmail_time" in killmail:
        data["killmailTime"] = killmail["killmail_time"]
    return data


def _with_killmail(document: Mapping[str, object], pointer: str) -> SourceDocument | None:
    """Returns a document in a source format, or None if there is nothing where its killmail should be."""
    if "victim" in document and "attackers" in document:
        return SourceDocument(SourceFormat.ESI, document, pointer, None)
    if not _is_empty(document.get("killmail")):
        return SourceDocument(SourceFormat.REDISQ, document, pointer, "killmail")
    if not _is_empty(document.get("esi")):
        return SourceDocument(SourceFormat.R2Z2, document, pointer, "esi")
    return None


def _package(package: object) -> SourceDocument | Placeholder:
    """Returns the content of `package`: a document from RedisQ, or another document if a fetcher put it there."""
    if _is_empty(package):
        return Placeholder(SourceFormat.REDISQ, "/package", "an empty RedisQ package: there was no new killmail")
    if not isinstance(package, dict):
        return SourceDocument(SourceFormat.REDISQ, package, "/package", "killmail")
    return _with_killmail(package, "/package") or _without_killmail(package, "/package")


def _without_killmail(document: Mapping[str, object], pointer: str) -> Placeholder:
    if "esi" in document or "sequence_id" in document:
        return Placeholder(
            SourceFormat.R2Z2, f"{pointer}/esi", "an R2Z2 document without its killmail: esi is empty or missing"
        )
    return Placeholder(
        SourceFormat.REDISQ,
        f"{pointer}/killmail",
        "a RedisQ package without its killmail: fetch the killmail from ESI and publish it",
    )


def _is_empty(value: object) -> bool:
    """Whether a value is empty (null, [] or {}), or an object with only empty members.

    PHP programs may write an empty value as null, as [] or as {}.
    """
    if value in _EMPTY:
        return True
    return isinstance(value, dict) and all(inner in _EMPTY for inner in value.values())
