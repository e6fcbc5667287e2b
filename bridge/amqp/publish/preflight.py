"""One look at the broker before a command begins: what is wrong from the start is said at once, and not tried again.

A connection that is lost later is another matter, and for whoever holds it.
"""

from collections.abc import Sequence

from bridge.amqp import topology
from bridge.amqp.connection import open_connection
from bridge.amqp.nodes import Node
from bridge.amqp.timeouts import rpc_timeout
from bridge.errors import ConfigurationError
from bridge.timing import DEFAULT


async def reach(nodes: Sequence[Node], exchange: str | None) -> None:
    """Returns where the broker can be used, and has the exchange; None: whichever it has.

    Raises ConnectionError where no node can be reached, BrokerRefusal, and ConfigurationError where there is no such
    exchange.
    """
    async with open_connection(nodes, "edk-bridge publish command") as amqp:
        if exchange is None:
            return
        async with rpc_timeout(DEFAULT.setup_timeout_s):
            there = await topology.exchange_exists(amqp, exchange)
        if not there:
            hint = (
                f"; RabbitMQ reserves names that begin with {topology.RESERVED_PREFIX}"
                if topology.is_reserved(exchange)
                else ", or start the bridge, which makes the ones in BRIDGE_EXCHANGES"
            )
            raise ConfigurationError([f"there is no exchange {exchange!r}: name one that exists{hint}"])
