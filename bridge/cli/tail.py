"""`edk-bridge tail`: what it is asked for on the command line."""

import sys

import click

from bridge.cli.common.endpoint import endpoint, trusting
from bridge.cli.common.options import INTERRUPTED, complete_type, fail
from bridge.errors import BridgeError
from bridge.terminal import takes_color

DEFAULT_URL = "ws://localhost:3000/updates"

COLORS = ("auto", "always", "never")


@click.command(
    short_help="Prints the updates that a bridge sends, as they come.",
    help="Prints the updates that a bridge sends, one a line, as they come: JSON with the members type, data, "
    "timestamp and id. A lost connection is made again, and what came meanwhile is printed then; standard error says "
    f"what is missing.\n\nURL is the bridge's; {DEFAULT_URL} unless given.",
    epilog="Exit codes: 0 nobody reads the output any more, 2 options that can't be used or that the bridge refuses, "
    "130 Ctrl-C, 143 SIGTERM, 1 anything else.",
)
@click.argument("url", default=DEFAULT_URL)
@click.option(
    "--type",
    "types",
    multiple=True,
    metavar="TYPE",
    shell_complete=complete_type,
    help="only updates of this type; may be repeated",
)
@click.option(
    "--where",
    multiple=True,
    metavar="MEMBER=VALUE",
    help="only updates whose data has this value; may be repeated: each member must have one of its values",
)
@click.option("--after", metavar="ID", default="", help="begin after the update with this id; without it, from now on")
@click.option("--cafile", metavar="FILE", help="of wss://, the authorities to trust instead of the system's")
@click.option(
    "--color",
    type=click.Choice(COLORS),
    default="auto",
    show_default=True,
    help="auto: on a terminal, unless NO_COLOR is set or TERM is dumb",
)
def tail(url: str, types: tuple[str, ...], where: tuple[str, ...], after: str, cafile: str | None, color: str) -> None:
    """Follows a bridge."""
    from bridge.commands.tail import run  # noqa: PLC0415 - what only this needs is not loaded into the bridge

    try:
        asked = endpoint(url, types, where)
        run(asked, after, trusting(asked, cafile), _in_color(color))
    except BridgeError as error:
        fail(error)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _in_color(color: str) -> bool:
    # Whoever started this without a standard output is told so by what would print to it.
    return takes_color(sys.stdout) if color == "auto" else color == "always"
