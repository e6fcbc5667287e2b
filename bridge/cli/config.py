"""`edk-bridge config`: the settings in effect, each with its source, for a person or a program. No password is shown.

What a setting is, and whether its value will do, is for `bridge.config.settings` to say.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import orjson

from bridge.config.amqp_urls import amqp_urls
from bridge.config.settings import PREFIX, SETTINGS
from bridge.config.sources import Found
from bridge.contract.text import from_system, printable
from bridge.errors import redact, redact_url

DEFAULT = "default"


class Row(NamedTuple):
    """One setting."""

    variable: str
    value: str | None
    """As it is written, with passwords masked; None: not set."""
    source: str


def rows(found: Mapping[str, Found]) -> list[Row]:
    """Every setting, in the order of `serve --help`; `found` are those that are set."""
    return [_row(name, found.get(name)) for name in SETTINGS]


def _row(name: str, found: Found | None) -> Row:
    setting = SETTINGS[name]
    text = (setting.default if found is None else found.text.strip()) or None
    if text is not None:
        text = ",".join(map(redact_url, amqp_urls(text))) if setting.secret else redact(text)
    return Row(PREFIX + name.upper(), text, DEFAULT if found is None else found.source)


def as_text(rows: Sequence[Row]) -> str:
    """A line for each, in columns that are as wide as what is in them: all but the values, which may be long."""
    names = max(len(row.variable) for row in rows)
    sources = max(len(row.source) for row in rows)
    return "\n".join(
        f"{row.variable:{names}}  {printable(row.source):{sources}}  "
        f"{'not set' if row.value is None else printable(row.value, 2000)}"
        for row in rows
    )


def as_json(rows: Sequence[Row]) -> str:
    """An object with a member for each variable: `{"value": ..., "source": ...}`; a value that is not set is null."""
    document = {
        row.variable: {
            "value": None if row.value is None else from_system(row.value),
            "source": from_system(row.source),
        }
        for row in rows
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2).decode()
