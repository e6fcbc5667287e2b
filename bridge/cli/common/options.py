"""What several commands have in common: a flag for each setting, the settings that are in effect, and how one fails."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from bridge.cli.common.streams import echo
from bridge.config import settings
from bridge.config.settings import PREFIX, SETTINGS, Settings
from bridge.config.sources import Found
from bridge.contract import catalog
from bridge.errors import BridgeError, ConfigurationError

INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it."""

METAVARS = {"amqp_url": "URL", "max_message_bytes": "SIZE", "schemas": "FOLDER"}

DOTENV = Path(".env")


def _one_file(_: click.Context, __: click.Parameter, names: tuple[str, ...]) -> str | None:
    """The file that the option names. A second one would hide the first."""
    if len(names) > 1:
        raise click.BadParameter("give one file")
    if names and not names[0]:
        raise click.BadParameter("it names no file")
    return names[0] if names else None


ENV_FILE: click.Parameter = click.Option(
    ["--env-file"],
    metavar="FILE",
    multiple=True,
    callback=_one_file,
    help="a file of settings, a line NAME=value for each, in place of .env in the working directory",
)
"""Of every command that takes settings; `setting_options` has it already."""

_NO = "no_"
"""What the parameter of a flag such as --no-wait begins with."""


def setting_options(*names: str) -> list[click.Parameter]:
    """A flag for each setting. All are text here: the settings read them, and say all that is wrong at once."""
    options: list[click.Parameter] = []
    for name in names:
        setting = SETTINGS[name]
        # A flag without a value, as in --wait, means true.
        is_switch = setting.is_switch
        # With these, click takes a flag without a value; no other setting may be given without one.
        switch: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if is_switch else {}
        options.append(
            click.Option(
                [f"--{name.replace('_', '-')}"],
                metavar="[true|false]" if is_switch else METAVARS.get(name, "TEXT"),
                # Without the space, a long list is one word, and broken wherever the line ends.
                help=f"{setting.meaning}  [{PREFIX}{name.upper()}; {settings.shown_default(name).replace(',', ', ')}]",
                **switch,
            )
        )
        if is_switch:
            options.append(
                click.Option(
                    [f"--no-{name.replace('_', '-')}", f"{_NO}{name}"],
                    is_flag=True,
                    flag_value="false",
                    type=str,
                    default=None,
                    help=f"the opposite of --{name.replace('_', '-')}",
                )
            )
    return [*options, ENV_FILE]


def effective_settings(flags: Mapping[str, str | None]) -> Settings:
    """The settings in effect; `flags` are the values of `setting_options`. Raises ConfigurationError."""
    return settings_and_sources(flags)[0]


def settings_and_sources(flags: Mapping[str, str | None]) -> tuple[Settings, Mapping[str, Found]]:
    """The same, and where each was found that is not a default."""
    file = flags.get("env_file")
    dotenv = DOTENV if file is None else Path(file)
    return settings.load_with_sources(_given(flags), os.environ, dotenv, must_exist=file is not None)


def _given(flags: Mapping[str, str | None]) -> dict[str, str]:
    """What was given, by the setting. Raises ConfigurationError for a switch that was given in both of its forms."""
    given = {name: text for name in SETTINGS if (text := flags.get(name)) is not None}
    opposites = {name: text for name in SETTINGS if (text := flags.get(_NO + name)) is not None}
    both = [name.replace("_", "-") for name in opposites if name in given]
    if both:
        raise ConfigurationError([f"--{each}, --no-{each}: can't be combined; give one of them" for each in both])
    return given | opposites


def complete_type(context: click.Context, option: click.Parameter, begun: str) -> list[CompletionItem]:
    """The update types that begin so, for a shell: those of the packaged schemas and of BRIDGE_SCHEMAS."""
    folders = [catalog.PACKAGED]
    if own := context.params.get("schemas") or os.environ.get("BRIDGE_SCHEMAS"):
        folders.append(Path(own))
    try:
        types = sorted(catalog.load(folders).types)
    except (catalog.SchemaError, OSError):
        # A shell that completes has nowhere to say it; the command does.
        return []
    return [CompletionItem(name) for name in types if name.startswith(begun)]


@contextmanager
def failing() -> Iterator[None]:
    """For what a command does at the broker: says what ends it, and ends it with its exit code."""
    try:
        yield
    except BridgeError as error:
        fail(error)
    except ConnectionError as error:
        fail(BridgeError(f"{error}; BRIDGE_AMQP_URL (--amqp-url) names the broker"))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def fail(error: BridgeError) -> NoReturn:
    """Says it, and ends with its exit code."""
    for line in str(error).splitlines():
        echo(f"edk-bridge: {line}", err=True)
    sys.exit(error.exit_code)


def warn_of_schemas(schemas: catalog.Catalog) -> None:
    """Prints what is probably a mistake in the schema files."""
    for warning in schemas.warnings:
        echo(f"edk-bridge: warning: {warning}", err=True)
