"""The command `edk-bridge`. Each setting is a flag of `serve`, a variable of the environment, a line of `.env`.

What a command does is elsewhere: here is what it is called, what it takes, and what its exit codes mean.
"""

import click

from bridge.cli.common.errors import OneLine, print_version
from bridge.cli.completion import completion
from bridge.cli.demo import demo
from bridge.cli.events import CHECK, PUBLISH
from bridge.cli.rejects import REJECTS
from bridge.cli.serve import CONFIG, SERVE
from bridge.cli.tail import tail


@click.group(cls=OneLine, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
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


for _command in (SERVE, CONFIG, CHECK, PUBLISH, REJECTS, tail, demo, completion):
    cli.add_command(_command)


def main() -> None:
    """The entry point."""
    cli.main(prog_name="edk-bridge")
