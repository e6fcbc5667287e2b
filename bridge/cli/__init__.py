"""The command `edk-bridge`. Each subcommand is the function of the same name in the module of the same name."""

import platform
from importlib import import_module
from importlib.metadata import version

import click

from bridge import __version__
from bridge.cli.common.errors import OneLineErrors
from bridge.cli.common.output import echo

COMMANDS = ("check", "completion", "config", "demo", "publish", "rejects", "serve", "tail")

LIBRARIES = ("aio-pika", "websockets")
"""The libraries whose versions a report of a fault should have: they speak to RabbitMQ and to clients."""


class LazyGroup(OneLineErrors):
    """A group that imports a command when it is used, so that `serve` needs no memory for the others."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Returns the command of this name, or None."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(f"{__name__}.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command


def print_version(context: click.Context, option: click.Parameter, value: bool) -> None:
    """Prints the versions of the bridge, of Python and of the libraries, and exits."""
    if value and not context.resilient_parsing:
        libraries = "".join(f", {name} {version(name)}" for name in LIBRARIES)
        echo(f"edk-bridge, version {__version__} (Python {platform.python_version()}{libraries})")
        context.exit()


@click.group(
    cls=LazyGroup,
    # The names only. They are the ones that click lists, and that it suggests for a misspelled one.
    commands={name: click.Command(name) for name in COMMANDS},
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=print_version,
    help="print the version, and that of Python and libraries",
)
def cli() -> None:
    """Broadcasts killmail events from RabbitMQ to WebSocket clients."""


def main() -> None:
    """The entry point."""
    cli.main(prog_name="edk-bridge")
