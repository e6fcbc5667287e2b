"""`edk-bridge serve`, and `edk-bridge config`, which says what it would be served with."""

import os

import click
import structlog
import uvloop

from bridge import logs
from bridge.app import check as check_bridge
from bridge.app import serve as run_bridge
from bridge.cli.common.options import effective_settings, fail, setting_options, settings_and_sources, warn_of_schemas
from bridge.cli.common.streams import echo, echo_json
from bridge.cli.config import as_json, as_text, rows
from bridge.config.kubernetes import service_variables
from bridge.config.settings import PREFIX, SETTINGS
from bridge.errors import BridgeError
from bridge.timing import DEFAULT, Timing

_EXIT_CODES = (
    "Exit codes: 0 stopped as asked, 2 settings or schema files that can't be used, 3 the broker refuses (password, "
    "virtual host, permission, kind of exchange), 1 anything else."
)

_SETTINGS = (
    "Each setting may be given as a flag, as a variable of the environment, as a line of the file .env (or of the one "
    "that --env-file names), or, with _FILE behind the variable's name, in a file of its own. Brackets show the "
    "variable and the default."
)


def _serve(**flags: str | None) -> None:
    # A test passes its own through the context.
    timing = click.get_current_context().find_object(Timing) or DEFAULT
    logs.never_block()
    try:
        effective = effective_settings(flags)
        logs.configure(effective.log_level, effective.log_format)
        if (names := _skipped_variables()) is not None:
            structlog.get_logger("bridge").info(_SKIPPED, names=names)
        uvloop.run(run_bridge(effective, timing))
    except BridgeError as error:
        fail(error)


def _skipped_variables() -> str | None:
    """The names of the variables that Kubernetes injected and that are no settings, for one line; None without any."""
    names = service_variables(PREFIX, os.environ)
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more or None


_SKIPPED = "Kubernetes Service variables skipped"

_MOST_NAMES = 8
"""A namespace may have many Services, each with seven variables and more."""


SERVE = click.Command(
    "serve",
    callback=_serve,
    params=setting_options(*SETTINGS),
    help=f"Runs the bridge until SIGTERM or SIGINT.\n\n{_SETTINGS}",
    epilog=_EXIT_CODES,
)


def _config(in_json: bool, **flags: str | None) -> None:
    try:
        effective, found = settings_and_sources(flags)
        if (names := _skipped_variables()) is not None:
            echo(f"edk-bridge: {_SKIPPED}: {names}", err=True)
        schemas, _ = check_bridge(effective)
    except BridgeError as error:
        fail(error)
    warn_of_schemas(schemas)
    if in_json:
        echo_json(as_json(rows(found)))
    else:
        echo(as_text(rows(found)))


CONFIG = click.Command(
    "config",
    callback=_config,
    params=[
        click.Option(["--json", "in_json"], is_flag=True, help="as one JSON object, instead of lines"),
        *setting_options(*SETTINGS),
    ],
    short_help="Says which settings are in effect, and where from.",
    help="Says which settings `serve` would run with, and where each comes from; passwords are masked.\n\n"
    "A line for each: the variable, its value, and its source: a flag, the environment, .env, a file that a variable "
    f"with _FILE names, or the default.\n\n{_SETTINGS}",
    epilog="Exit codes: 0 the bridge could be started with them, 2 settings or schema files that can't be used, each "
    "problem a line, as with `serve`.",
)
