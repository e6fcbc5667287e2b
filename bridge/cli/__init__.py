"""The command `edk-bridge`. Each setting is a flag of `serve`, a variable of the environment, a line of `.env`.

What a command does is elsewhere: here is what it is called, what it takes, and what its exit codes mean.
"""

import sys

import click

from bridge.cli.common.errors import OneLine, print_version
from bridge.cli.common.options import ENV_FILE
from bridge.cli.completion import completion
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


@click.command(params=[ENV_FILE], short_help="Runs a broker, the bridge and invented killmails.")
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="the bridge's port")
@click.option("--rate", type=click.FloatRange(0.01, 1000), default=1.0, show_default=True, help="killmails a second")
@click.option("--schemas", metavar="FOLDER", help="a folder of schema files of your own, for the bridge")
@click.option("--publish-only", is_flag=True, help="only the publisher, to the bridge's exchange at BRIDGE_AMQP_URL")
def demo(port: int, rate: float, schemas: str | None, publish_only: bool, env_file: str | None) -> None:
    """Runs a broker, the bridge and a publisher of invented killmails, until Ctrl-C."""
    from bridge.demo import demo as show  # noqa: PLC0415 - what only the demo needs is not loaded into the bridge

    if publish_only:
        sys.exit(show.publish_only(rate, env_file))
    sys.exit(show.run(port=port, rate=rate, schemas=schemas, env_file=env_file))


for _command in (SERVE, CONFIG, CHECK, PUBLISH, REJECTS, tail, demo, completion):
    cli.add_command(_command)


def main() -> None:
    """The entry point."""
    cli.main(prog_name="edk-bridge")
