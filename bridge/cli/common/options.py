"""The command-line flags for the settings, and the settings in effect."""

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import click

from bridge.cli.common.output import echo
from bridge.config import settings
from bridge.config.kubernetes import service_variables
from bridge.config.settings import DOTENV, PREFIX, SETTINGS, Group, Settings
from bridge.config.sources import Found
from bridge.contract import catalog
from bridge.errors import ConfigurationError

Callback = TypeVar("Callback", bound=Callable[..., object])


def _one_file(_: click.Context, __: click.Parameter, names: tuple[str, ...]) -> str | None:
    """Returns the file that the option names.

    Raises an error if the option names two files, because the second file would silently replace the first file.
    """
    if len(names) > 1:
        raise click.BadParameter("give only one file")
    if names and not names[0]:
        raise click.BadParameter("the name of the file is empty")
    return names[0] if names else None


_env_file = click.option(
    "--env-file",
    metavar="FILE",
    multiple=True,
    callback=_one_file,
    help="Read this file of settings instead of .env in the working directory.",
)

_NO = "no_"
"""The prefix of the parameter name for a flag such as --no-wait."""


class SettingOption(click.Option):
    """The flag of a setting."""

    def __init__(self, *args: Any, group: Group, bracket: str, **options: Any) -> None:
        """`bracket` has the name of the variable and the default value, which the help shows in brackets."""
        super().__init__(*args, **options)
        self.group = group
        self._bracket = bracket

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Returns the flag and its help text, which ends with the variable's name and the default value."""
        return self.flag_record(ctx)[0], f"{self.help}  {self._bracket}".strip()

    def help_rows(self, ctx: click.Context) -> list[tuple[str, str]]:
        """Returns two rows: first the flag and its help text, then the variable's name and the default value."""
        return [self.flag_record(ctx), *([("", self._bracket)] if self._bracket else [])]

    def flag_record(self, ctx: click.Context) -> tuple[str, str]:
        """Returns the flag and its help text, without the variable's name and the default value."""
        record = super().get_help_record(ctx)
        assert record is not None
        return record


class GroupedCommand(click.Command):
    """A command whose help has a heading for each group of settings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the command's own options and then the settings by group, all in the same two columns."""
        sections: dict[str, list[tuple[str, str]]] = {name: [] for name in ("Options", *Group)}
        for param in self.get_params(ctx):
            if isinstance(param, SettingOption):
                sections[param.group] += param.help_rows(ctx)
            elif (record := param.get_help_record(ctx)) is not None:
                sections["Options"].append(record)
        for name, rows in sections.items():
            if rows:
                with formatter.section(name):
                    formatter.write_dl([(f"{first:{FLAG_WIDTH}}", second) for first, second in rows], FLAG_WIDTH)


def exit_codes(**meanings: str) -> str:
    """Returns the epilog of a command, with the meanings of its exit codes.

    The argument `_2="..."` is the meaning of the exit code 2. Lines of more than 71 characters do not fit into the
    help.
    """
    rows = [f"  {name.removeprefix('_'):3}  {meaning}" for name, meaning in meanings.items()]
    # click keeps the line breaks of a paragraph that begins with \b.
    return "\n".join(["\b", "Exit codes:", *(row.replace("\n", f"\n{'':7}") for row in rows)])


FLAG_WIDTH = 29
"""The width of the column for flags in the help of a grouped command.

If a flag is longer than this, its help text begins on the next line.
"""


_NO_DEFAULTS: Mapping[str, str] = MappingProxyType({})


def setting_options(*names: str, defaults: Mapping[str, str] = _NO_DEFAULTS) -> Callable[[Callback], Callback]:
    """Adds `--env-file` and a flag for each setting to a command.

    The value of a flag is a text, or None if the flag is not given. `effective_settings` parses the values. The help
    shows the values in `defaults` instead of the settings' own defaults.
    """
    options = [option for name in names for option in _options(name, defaults.get(name))]

    def decorate(command: Callback) -> Callback:
        for option in reversed([*options, _env_file]):
            command = option(command)
        return command

    return decorate


def _options(name: str, default: str | None) -> list[Callable[[Callback], Callback]]:
    """Returns the flag of a setting, and for a switch also the opposite flag. The help shows the default value."""
    setting = SETTINGS[name]
    flag = name.replace("_", "-")
    # Without spaces after commas, a long list would be one word, and click would break this word at the end of the
    # line.
    default = settings.shown_default(name).replace(",", ", ") if default is None else default
    group = setting.group
    bracket = f"[{PREFIX}{name.upper()}; {default}]"
    if not setting.is_switch:
        return [
            click.option(
                f"--{flag}",
                metavar=setting.metavar,
                help=setting.meaning,
                cls=SettingOption,
                group=group,
                bracket=bracket,
            ),
        ]
    return [
        click.option(
            f"--{flag}",
            is_flag=False,
            # A switch's flag without a value, such as --wait, means true.
            flag_value="true",
            metavar=setting.metavar,
            help=setting.meaning,
            bracket=bracket,
            cls=SettingOption,
            group=group,
        ),
        click.option(
            f"--no-{flag}",
            f"{_NO}{name}",
            is_flag=True,
            flag_value="false",
            type=str,
            default=None,
            help=f"The opposite of --{flag}.",
            bracket="",
            cls=SettingOption,
            group=group,
        ),
    ]


def effective_settings(flags: Mapping[str, str | None]) -> Settings:
    """Returns the settings in effect.

    `flags` has the values of the flags that `setting_options` adds. Raises ConfigurationError. A command has flags only
    for the settings that it uses. A file may be missing if it is named only by settings that the command does not use.
    """
    return settings_and_sources(flags, flags.keys())[0]


def settings_and_sources(
    flags: Mapping[str, str | None], opens: Collection[str] = ()
) -> tuple[Settings, Mapping[str, Found]]:
    """Returns the settings in effect, and the source of each setting that is not left at its default.

    `opens` has the names of the settings whose files and folders must be readable.
    """
    file = flags.get("env_file")
    dotenv = DOTENV if file is None else Path(file)
    return settings.load_with_sources(_given(flags), os.environ, dotenv, must_exist=file is not None, opens=opens)


def _given(flags: Mapping[str, str | None]) -> dict[str, str]:
    """Returns the given flags by setting. Raises ConfigurationError if a switch and its opposite are both given."""
    given = {name: text for name in SETTINGS if (text := flags.get(name)) is not None}
    opposites = {name: text for name in SETTINGS if (text := flags.get(_NO + name)) is not None}
    both = [name.replace("_", "-") for name in opposites if name in given]
    if both:
        raise ConfigurationError([f"--{each}, --no-{each}: can't be combined; give one of them" for each in both])
    return given | opposites


def complete_type(context: click.Context, option: click.Parameter, begun: str) -> list[str]:
    """Returns the update types (from the packaged schemas and BRIDGE_SCHEMAS) that begin with the typed text."""
    folders = [catalog.PACKAGED]
    if own := context.params.get("schemas") or os.environ.get("BRIDGE_SCHEMAS"):
        folders.append(Path(own))
    try:
        types = sorted(catalog.load(folders).types)
    except (catalog.SchemaError, OSError):
        # While a shell completes a word, no error can be printed. The command itself prints the error when it runs.
        return []
    return [name for name in types if name.startswith(begun)]


def warn_of_schemas(schemas: catalog.Catalog) -> None:
    """Prints a warning for each probable mistake in the schema files."""
    for warning in schemas.warnings:
        echo(f"edk-bridge: warning: {warning}", err=True)


KUBERNETES_SKIPPED = "Kubernetes Service variables skipped"

_MAX_NAMES = 8
"""The maximum number of variable names in the line that `skipped_variables` returns.

A namespace may have many Services, each with seven or more variables.
"""


def skipped_variables() -> str | None:
    """Returns one line with the names of the variables that Kubernetes has injected for Services, or None."""
    names = service_variables(PREFIX, os.environ)
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more or None
