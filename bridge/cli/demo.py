"""`edk-bridge demo`: the bridge with invented killmails."""

import sys

import click

from bridge.cli.common.options import setting_options


@click.command(
    params=setting_options("amqp_url", "schemas"),
    short_help="Runs a broker, the bridge and invented killmails.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="the bridge's port")
@click.option("--rate", type=click.FloatRange(0.01, 1000), default=1.0, show_default=True, help="killmails a second")
@click.option("--publish-only", is_flag=True, help="only the publisher, to the bridge's exchange at BRIDGE_AMQP_URL")
@click.pass_context
def demo(context: click.Context, /, port: int, rate: float, publish_only: bool, **flags: str | None) -> None:
    """Runs a broker, the bridge and a publisher of invented killmails, until Ctrl-C."""
    from bridge.demo import demo as demos  # noqa: PLC0415 - what only the demo needs is not loaded into the bridge
    from bridge.demo.broker import start_container  # noqa: PLC0415 - as above

    started = demos.Demo(rate, {**flags, "port": str(port)})
    if publish_only:
        sys.exit(demos.publish_only(started))
    # `make demo` passes a function that can also start a private node.
    sys.exit(demos.run(started, context.obj or start_container))
