"""`edk-bridge demo`: the bridge with invented killmails."""

import sys

import click

from bridge.cli.common.errors import exit_on_error
from bridge.cli.common.options import setting_options
from bridge.demo import demo as demonstration
from bridge.demo.broker import start_container
from bridge.demo.demo import Demo
from bridge.errors import ConfigurationError


@click.command(
    short_help="Runs the bridge with invented killmails.",
    epilog="Exit codes: 0 stopped as asked, 1 the broker or the bridge has ended or can't be started, 2 options or "
    "settings that can't be used, 3 the broker refuses.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="the bridge's port")
@click.option("--rate", type=click.FloatRange(0.01, 1000), default=1.0, show_default=True, help="killmails a second")
@click.option("--without-broker", is_flag=True, help="no RabbitMQ: the killmails go straight to the bridge")
@click.option("--publish-only", is_flag=True, help="only the publisher, to the bridge's exchange at BRIDGE_AMQP_URL")
@setting_options("amqp_url", "schemas", defaults={"amqp_url": "not set: a container"})
@click.pass_context
def demo(
    context: click.Context, /, port: int, rate: float, without_broker: bool, publish_only: bool, **flags: str | None
) -> None:
    """Runs the bridge with invented killmails, until Ctrl-C.

    The broker is the one of BRIDGE_AMQP_URL, if it is set: the killmails then go to the exchange bridge.demo, which
    only the demo uses. Otherwise a container is started, with the exchange killmails; this needs a container engine
    such as Docker, and the extra `demo` of the package.

    With --without-broker, this command alone is enough to write and try a client. The bridge also announces gaps and
    rejects invalid events, and clients can resume.
    """
    settings = Demo(rate, {**flags, "port": str(port)})
    other = "--publish-only" if publish_only else "--amqp-url" if flags["amqp_url"] is not None else None
    with exit_on_error():
        if without_broker and other is not None:
            raise ConfigurationError([f"--without-broker, {other}: can't be combined; give one of them"])
    if without_broker:
        sys.exit(demonstration.run_without_broker(settings))
    if publish_only:
        sys.exit(demonstration.publish_only(settings))
    # `make demo` passes a function that can also start a private node.
    sys.exit(demonstration.run(settings, context.obj or start_container))
