"""Stream markers: small messages that bridges publish to the stream that they read, in addition to its events.

A marker shows where the stream ended when the marker was published. A marker may also report a gap: a time in which the
broker may have lost events on their way into the stream. All readers of the stream learn of the gap from the marker,
even if they read it much later. Other programs can publish to the stream too. When a marker is decoded, the decoder
therefore checks the values, limits their sizes, and makes texts printable.
"""

from dataclasses import dataclass

import orjson

from bridge.amqp.status import Gap, GapSlug
from bridge.contract.text import printable

MARKER_TYPE = "bridge.mark"
"""The AMQP `type` of a marker. Markers go to the default exchange, and events go to other exchanges."""

MAX_BYTES = 4096
"""The maximum size of a marker in bytes; markers are usually a few hundred bytes long."""

LATEST_S = 253_402_300_799.0
"""The end of the year 9999, the last year that RFC 3339 can express."""


@dataclass(frozen=True, slots=True)
class StreamMarker:
    """A decoded marker."""

    token: str
    """A value that identifies the marker. If the same marker is published twice, both copies have the same token."""
    gap: Gap | None


def encode(marker: StreamMarker) -> bytes:
    """Returns the body of a marker."""
    members: dict[str, object] = {"token": marker.token}
    if marker.gap is not None:
        gap = marker.gap
        members["gap"] = {"since": gap.since_s, "until": gap.until_s, "reason": printable(gap.reason), "slug": gap.slug}
    return orjson.dumps(members)


def decode(body: bytes) -> StreamMarker | None:
    """Returns the marker in `body`, or None if `body` is not a bridge's marker.

    If the marker contains an invalid gap, the result has no gap.
    """
    if len(body) > MAX_BYTES:
        return None
    try:
        members = orjson.loads(body)
    except ValueError:
        return None
    token = members.get("token") if isinstance(members, dict) else None
    return StreamMarker(token, _gap(members.get("gap"))) if isinstance(token, str) else None


def _gap(members: object) -> Gap | None:
    if not isinstance(members, dict):
        return None
    since_s, until_s, reason = _seconds(members.get("since")), _seconds(members.get("until")), members.get("reason")
    if since_s is None or until_s is None or since_s > until_s or not isinstance(reason, str):
        return None
    slug = members.get("slug")
    # An older bridge writes no gap slug. A newer bridge may write a gap slug that this version does not know.
    known = GapSlug(slug) if slug in list(GapSlug) else GapSlug.BROKER_AWAY
    return Gap(since_s, until_s, printable(reason), known)


def _seconds(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LATEST_S:
        return None
    return float(value)
