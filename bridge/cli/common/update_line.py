"""Formats an update as one line for a person: `08:51:41 killmail ship 587 system 30000142 15 att. 123456789`."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime

import orjson

from bridge.cli.common.colors import ID, NAME, TIME, TYPE, Style
from bridge.cli.common.columns import ELLIPSIS, columns, start

NO_TIME = "--:--:--"

SEPARATOR = "  "

Part = tuple[str, Style | None]
"""A text, and the style in which the text is printed."""


def as_line(message: Mapping[str, object], width: int | None, *, in_color: bool, text: str) -> str:
    """Returns a printable line of at most `width` columns, or of any length if `width` is None.

    For a killmail, the line shows the ids of the ship, the system and the killmail, and the number of attackers. For
    any other update, the line shows the data as JSON. The time is the envelope's `timestamp` in UTC. `text` is the
    update as JSON. The line shows `text` itself if the data can't be formatted.
    """
    kind = str(message.get("type"))
    parts: list[Part] = [(_time(message.get("timestamp")), TIME), (_escaped(kind), TYPE)]
    data = message.get("data")
    parts += (_killmail(data) if kind == "killmail" else None) or [(_escaped(_json(data) or text), None)]
    pieces = [piece for part in parts for piece in ((SEPARATOR, None), part)][1:]
    shown = pieces if width is None else _truncated(pieces, width)
    return "".join(style(text) if in_color and style is not None else text for text, style in shown)


def _time(timestamp: object) -> str:
    if not isinstance(timestamp, int | float):
        return NO_TIME
    try:
        return f"{datetime.fromtimestamp(timestamp / 1000, UTC):%H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return NO_TIME


def _json(data: object) -> str:
    """Returns the data as JSON, or an empty text if the data has too many levels for orjson (over 254)."""
    try:
        return orjson.dumps(data).decode()
    except orjson.JSONEncodeError:
        return ""


def _killmail(data: object) -> list[Part] | None:
    """Returns the parts of a killmail, padded to columns, or None if members of the contract are missing."""
    match data:
        case {
            "killmailId": int(killmail),
            "shipTypeId": int(ship),
            "systemId": int(system),
            "attackerCount": int(attackers),
        }:
            return [
                (f"{f'ship {ship}':10}", None),
                (f"{f'system {system}':15}", None),
                (f"{attackers:>4} att.", NAME),
                (str(killmail), ID),
            ]
    return None


def _escaped(text: str) -> str:
    """Escapes characters that are not printable, because a terminal could interpret such characters as commands."""
    return text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def _truncated(pieces: list[Part], width: int) -> list[Part]:
    """Returns the pieces that fit into the width. An ellipsis replaces all pieces that do not fit."""
    if columns("".join(text for text, _ in pieces)) <= width:
        return pieces
    found: list[Part] = []
    free = width - len(ELLIPSIS)
    for text, style in pieces:
        shown = start(text, free)
        found.append((shown, style))
        free -= columns(shown)
        if shown != text:
            break
    return [*found, (ELLIPSIS[:width], None)]
