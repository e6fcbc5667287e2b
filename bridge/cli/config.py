"""`edk-bridge config`: prints the settings in effect, each with its source, and no password."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import click
import orjson

from bridge.app import check as check_bridge
from bridge.cli.common.errors import exit_on_error
from bridge.cli.common.options import (
    KUBERNETES_SKIPPED,
    setting_options,
    settings_and_sources,
    skipped_variables,
    warn_of_schemas,
)
from bridge.cli.common.output import echo, echo_json
from bridge.config.amqp_urls import amqp_urls
from bridge.config.settings import PREFIX, SETTINGS
from bridge.config.sources import Found
from bridge.contract.text import from_system, printable
from bridge.errors import redact, redact_url

DEFAULT = "default"


@click.command(
    short_help="Says which settings are in effect, and where from.",
    epilog="Exit codes: 0 the bridge could be started with them, 2 settings or schema files that can't be used, each "
    "problem a line, as with `serve`.",
)
@click.option("--json", "in_json", is_flag=True, help="as one JSON object, instead of lines")
@setting_options(*SETTINGS)
def config(in_json: bool, **flags: str | None) -> None:
    """Says which settings `serve` would run with, and where each comes from; passwords are masked.

    A line for each: the variable, its value, and its source: a flag, the environment, .env, a file that a variable
    with _FILE names, or the default.

    Each setting may be given as a flag, as a variable of the environment, as a line of the file .env (or of the one
    that --env-file names), or, with _FILE behind the variable's name, in a file of its own. Brackets show the
    variable and the default.
    """
    with exit_on_error():
        settings, found = settings_and_sources(flags)
        if (names := skipped_variables()) is not None:
            echo(f"edk-bridge: {KUBERNETES_SKIPPED}: {names}", err=True)
        schemas, _ = check_bridge(settings)
    warn_of_schemas(schemas)
    if in_json:
        echo_json(as_json(rows(found)))
    else:
        echo(as_text(rows(found)))


@dataclass(frozen=True, slots=True)
class Row:
    """A setting, as it is printed."""

    variable: str
    value: str | None
    """As it was written, with passwords masked; None: not set."""
    source: str


def rows(found: Mapping[str, Found]) -> list[Row]:
    """Returns all settings in the order of `serve --help`. `found` has those that are set."""
    return [_row(name, found.get(name)) for name in SETTINGS]


def _row(name: str, found: Found | None) -> Row:
    setting = SETTINGS[name]
    text = (setting.default if found is None else found.text.strip()) or None
    if text is not None:
        text = ",".join(map(redact_url, amqp_urls(text))) if setting.secret else redact(text)
    return Row(PREFIX + name.upper(), text, DEFAULT if found is None else found.source)


def as_text(rows: Sequence[Row]) -> str:
    """Returns a line for each setting, in columns. The values, which may be long, are last."""
    names = max(len(row.variable) for row in rows)
    sources = max(len(row.source) for row in rows)
    return "\n".join(
        f"{row.variable:{names}}  {printable(row.source):{sources}}  "
        f"{'not set' if row.value is None else printable(row.value, 2000)}"
        for row in rows
    )


def as_json(rows: Sequence[Row]) -> str:
    """Returns an object with a member for each variable: `{"value": ..., "source": ...}`. Not set is null."""
    document = {
        row.variable: {
            "value": None if row.value is None else from_system(row.value),
            "source": from_system(row.source),
        }
        for row in rows
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2).decode()
