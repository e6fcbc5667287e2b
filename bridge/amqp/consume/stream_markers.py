"""Marks: what bridges publish to the stream that they read, beside the fetchers' events.

A mark shows where the stream's end was, and tells everybody who reads it, be it much later, of a time in which the
broker may have lost events on their way into the stream. Anybody may publish there: what is read is checked, bounded
and made printable. This file must never know of connections or clocks.
"""

from dataclasses import dataclass

import orjson

from bridge.amqp.status import Gap, GapSlug
from bridge.contract.text import printable

MARK = "bridge.mark"
"""The `type` of a mark, which no event has: it comes through the default exchange, past those of the fetchers."""

MAX_BYTES = 4096
"""A mark is a few hundred bytes."""

LATEST_S = 253_402_300_799.0
"""The end of the year 9999, the last that RFC 3339 can write."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What a mark says."""

    token: str
    """Tells it from all others; the same again where it was published twice."""
    gap: Gap | None


def write(mark: Mark) -> bytes:
    """The body of a mark."""
    said: dict[str, object] = {"token": mark.token}
    if mark.gap is not None:
        gap = mark.gap
        said["gap"] = {"since": gap.since_s, "until": gap.until_s, "reason": printable(gap.reason), "slug": gap.slug}
    return orjson.dumps(said)


def read(body: bytes) -> Mark | None:
    """What a body says; None where it is no mark of a bridge's. A gap that makes no sense is none."""
    if len(body) > MAX_BYTES:
        return None
    try:
        said = orjson.loads(body)
    except ValueError:
        return None
    token = said.get("token") if isinstance(said, dict) else None
    return Mark(token, _gap(said.get("gap"))) if isinstance(token, str) else None


def _gap(said: object) -> Gap | None:
    if not isinstance(said, dict):
        return None
    since_s, until_s, reason = _seconds(said.get("since")), _seconds(said.get("until")), said.get("reason")
    if since_s is None or until_s is None or since_s > until_s or not isinstance(reason, str):
        return None
    slug = said.get("slug")
    # An older bridge writes none, and a newer one may write another.
    known = GapSlug(slug) if slug in list(GapSlug) else GapSlug.BROKER_AWAY
    return Gap(since_s, until_s, printable(reason), known)


def _seconds(said: object) -> float | None:
    if isinstance(said, bool) or not isinstance(said, int | float) or not 0 <= said <= LATEST_S:
        return None
    return float(said)
