"""Checks the broker before a command begins, so that a wrong setting is reported at once, without retries.

If the connection is lost later, this module does not handle the loss: the code that uses the connection does.
"""

from collections.abc import Sequence

from bridge.amqp import topology
from bridge.amqp.connection import open_connection
from bridge.amqp.nodes import Node
from bridge.amqp.timeouts import rpc_timeout
from bridge.errors import ConfigurationError
from bridge.timing import DEFAULT


async def check_broker(nodes: Sequence[Node], exchange: str | None) -> None:
    """Checks that the broker can be used and has the exchange. If `exchange` is None, no exchange is checked.

    Raises ConnectionError if no node can be reached, BrokerRefusal if the broker refuses, and ConfigurationError if the
    exchange is missing.
    """
    async with open_connection(nodes, "edk-bridge publish command") as amqp:
        if exchange is None:
            return
        async with rpc_timeout(DEFAULT.setup_timeout_s):
            exists = await topology.exchange_exists(amqp, exchange)
        if not exists:
            hint = (
                f"; RabbitMQ reserves names that begin with {topology.RESERVED_PREFIX}"
                if topology.is_reserved(exchange)
                else ", or start the bridge, which declares those in BRIDGE_EXCHANGES"
            )
            raise ConfigurationError([f"there is no exchange {exchange!r}: name one that exists{hint}"])
