"""`python -m tests.support.broker.demo [FLAGS]` runs `edk-bridge demo`, also on a machine without a container engine.

If BRIDGE_AMQP_URL is not set and no engine answers, this program starts a private node. The program installs
rabbitmq-server with apt if apt needs no password.
"""

import sys
from collections.abc import Callable

from bridge.cli import cli
from tests.support.broker.find import Broker, find_broker


def start(image: str, say: Callable[[str], None]) -> Broker:
    """Starts a broker for the demo. Raises NoBroker."""
    return find_broker(None, image, say)


if __name__ == "__main__":
    cli.main(["demo", *sys.argv[1:]], prog_name="edk-bridge", obj=start)
