"""`edk-bridge config`: prints the settings in effect with their sources, but without passwords."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import click
import orjson

from bridge.app import check as check_bridge
from bridge.cli.common.errors import exit_on_error
from bridge.cli.common.options import (
    KUBERNETES_SKIPPED,
    GroupedCommand,
    effective_settings,
    exit_codes,
    setting_options,
    settings_and_sources,
    skipped_variables,
    warn_of_schemas,
)
from bridge.cli.common.output import echo, echo_json
from bridge.config.amqp_urls import amqp_urls
from bridge.config.settings import PREFIX, SETTINGS, Group, Settings, value_of
from bridge.config.sources import Found
from bridge.contract.text import from_system, printable
from bridge.errors import redact, redact_url

DEFAULT = "default"

CHANGED = "*"
"""Marks a setting whose value is not the default."""


@click.command(
    cls=GroupedCommand,
    short_help="Prints the settings in effect, and their sources.",
    epilog=exit_codes(
        _0="The bridge can be started with these settings.",
        _2="Settings, schema files or the certificate can't be used.",
        _130="Ctrl-C.",
    ),
)
@click.option("--changed", is_flag=True, help="Print only the settings whose values are not the defaults.")
@click.option("--json", "in_json", is_flag=True, help="Print one JSON object.")
@setting_options(*SETTINGS)
def config(changed: bool, in_json: bool, **flags: str | None) -> None:
    """Prints the settings with which `serve` would run, and the source of each setting. Passwords are masked.

    Each line shows the variable, the source and the value of a setting. A * marks a setting whose value is not the
    default. The source of a setting is a flag, the environment, .env, a file that a variable with _FILE names, or the
    default. After that, the command checks the files that the settings name.

    The command has the same flags as `serve`. In this help, brackets show the variable and the default of each flag.
    """
    with exit_on_error():
        settings, found = settings_and_sources(flags)
        if (names := skipped_variables()) is not None:
            echo(f"edk-bridge: {KUBERNETES_SKIPPED}: {names}", err=True)
    shown = [row for row in rows(settings, found) if row.changed or not changed]
    if in_json:
        echo_json(as_json(shown))
    elif shown:
        echo(as_text(shown))
    else:
        echo("all settings have their defaults", err=True)
    with exit_on_error():
        schemas, _ = check_bridge(effective_settings(flags))
    warn_of_schemas(schemas)


@dataclass(frozen=True, slots=True)
class Row:
    """A setting in the form in which it is printed."""

    group: Group
    variable: str
    value: str | None
    """The value as the operator wrote it, with passwords masked, or None if the setting is not set."""
    source: str
    changed: bool
    """Whether the value is not the default. For example, `120` and `120s` are the same value."""


def rows(settings: Settings, found: Mapping[str, Found]) -> list[Row]:
    """Returns all settings in the order of `serve --help`. `found` has the settings that the operator has set."""
    defaults = Settings()
    return [
        _row(name, found.get(name), changed=value_of(settings, name) != value_of(defaults, name)) for name in SETTINGS
    ]


def _row(name: str, found: Found | None, *, changed: bool) -> Row:
    setting = SETTINGS[name]
    text = (setting.default if found is None else found.text.strip()) or None
    if text is not None:
        text = ",".join(map(redact_url, amqp_urls(text))) if setting.secret else redact(text)
    return Row(setting.group, PREFIX + name.upper(), text, DEFAULT if found is None else found.source, changed)


def as_text(rows: Sequence[Row]) -> str:
    """Returns a line for each setting, in columns below the group's heading. Values may be long, so they come last."""
    names = max(len(row.variable) for row in rows)
    sources = max(len(row.source) for row in rows)
    lines = []
    group = None
    for row in rows:
        if row.group is not group:
            group = row.group
            lines += ["", f"{group}:"]
        value = "not set" if row.value is None else printable(row.value, 2000)
        mark = CHANGED if row.changed else ""
        lines.append(f"{mark:1} {row.variable:{names}}  {printable(row.source):{sources}}  {value}")
    return "\n".join(lines[1:])


def as_json(rows: Sequence[Row]) -> str:
    """Returns an object: `{"BRIDGE_PORT": {"value": ..., "source": ..., "changed": ...}}`.

    The value of a setting that is not set is null.
    """
    document = {
        row.variable: {
            "value": None if row.value is None else from_system(row.value),
            "source": from_system(row.source),
            "changed": row.changed,
        }
        for row in rows
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2).decode()
