"""`edk-bridge demo`: the bridge with invented killmails."""

import sys

import click

from bridge.cli.common.errors import exit_on_error
from bridge.cli.common.options import exit_codes, setting_options
from bridge.demo import demo as demonstration
from bridge.demo.broker import start_container
from bridge.demo.demo import Demo
from bridge.errors import ConfigurationError


@click.command(
    short_help="Runs the bridge with invented killmails.",
    epilog=exit_codes(
        _0="A signal stopped the demo.",
        _1="The broker or the bridge has ended or can't be started.",
        _2="Options or settings can't be used.",
        _3="The broker refuses: password, virtual host or permission.",
        _130="Ctrl-C, before the demo runs.",
    ),
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=3000,
    show_default=True,
    metavar="PORT",
    help="The port of the bridge.",
)
@click.option(
    "--rate", type=click.FloatRange(0.01, 1000), default=1.0, show_default=True, metavar="N", help="Killmails a second."
)
@click.option("--without-broker", is_flag=True, help="Pass the killmails directly to the bridge, without RabbitMQ.")
@click.option("--publish-only", is_flag=True, help="Run only the publisher, to the exchange of the settings.")
@setting_options("amqp_url", "schemas", defaults={"amqp_url": "not set: start a container"})
@click.pass_context
def demo(
    context: click.Context, /, port: int, rate: float, without_broker: bool, publish_only: bool, **flags: str | None
) -> None:
    """Runs the bridge with invented killmails until Ctrl-C.

    If BRIDGE_AMQP_URL is set, the demo uses this broker, and publishes to the exchange bridge.demo, which no other
    program uses. If BRIDGE_AMQP_URL is not set, the demo starts a container with RabbitMQ. The container needs an
    engine such as Docker, and the package's extra `demo`.

    With --without-broker, you can write and test a client without any other program. Even without a broker, the bridge
    sends gaps and rejects invalid events, and clients can resume.
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
