"""The command `edk-bridge`. Each subcommand is a function, in a module that has the same name as the function."""

import platform
from importlib import import_module
from importlib.metadata import version

import click

from bridge import __version__
from bridge.cli.common.errors import OneLineErrors
from bridge.cli.common.output import echo
from bridge.interrupts import exit_on_interrupt

COMMANDS = ("check", "completion", "config", "demo", "publish", "rejects", "serve", "tail")

LIBRARIES = ("aio-pika", "websockets")
"""The libraries that connect to RabbitMQ and to clients. The versions of these libraries belong in a bug report."""


class LazyGroup(OneLineErrors):
    """A group that imports each command on its first use, so that `serve` needs no memory for other commands."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Returns the command with this name, or None if there is none."""
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
    # click needs only the names of the commands here, to list them and to suggest one for a misspelled name.
    commands={name: click.Command(name) for name in COMMANDS},
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=print_version,
    help="Print the versions of the bridge, of Python and of the libraries.",
)
def cli() -> None:
    """Broadcasts killmail events from RabbitMQ to WebSocket clients."""


def main() -> None:
    """Runs the command that the arguments name, and exits."""
    exit_on_interrupt()
    cli.main(prog_name="edk-bridge")
