"""`edk-bridge demo`: the bridge with invented killmails."""

import sys

import click

from bridge.cli.common.options import setting_options
from bridge.demo import demo as demonstration
from bridge.demo.broker import start_container
from bridge.demo.demo import Demo


@click.command(short_help="Runs a broker, the bridge and invented killmails.")
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="the bridge's port")
@click.option("--rate", type=click.FloatRange(0.01, 1000), default=1.0, show_default=True, help="killmails a second")
@click.option("--publish-only", is_flag=True, help="only the publisher, to the bridge's exchange at BRIDGE_AMQP_URL")
@setting_options("amqp_url", "schemas")
@click.pass_context
def demo(context: click.Context, /, port: int, rate: float, publish_only: bool, **flags: str | None) -> None:
    """Runs a broker, the bridge and a publisher of invented killmails, until Ctrl-C."""
    started = Demo(rate, {**flags, "port": str(port)})
    if publish_only:
        sys.exit(demonstration.publish_only(started))
    # `make demo` passes a function that can also start a private node.
    sys.exit(demonstration.run(started, context.obj or start_container))
