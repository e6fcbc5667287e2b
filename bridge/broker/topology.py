"""What must exist at the broker for events to flow: exchanges, the queue, bindings between them.

Nothing that exists is ever declared otherwise than passively: the fetchers own their exchange, and the bridge must not
get in their way.
"""

import re
from collections.abc import Awaitable, Callable, Sequence

import aiormq
from pamqp.common import FieldTable

from bridge.broker.link import sentence
from bridge.errors import BrokerRefusal

Amqp = aiormq.abc.AbstractConnection
Request = Callable[[aiormq.abc.AbstractChannel], Awaitable[object]]

ROUTING_KEY = "#"
"""Everything, where the exchange is a topic exchange; a fanout exchange does not look at it."""

QUEUE_ARGUMENTS: FieldTable = {
    "x-expires": 7 * 24 * 3600 * 1000,
    "x-max-length-bytes": 256 * 1024 * 1024,
}
"""For a named queue that the bridge makes: kept for a week without a consumer (milliseconds), a few days of killmails
at most, the oldest going first, so that a bridge that never comes back does not fill the broker's disk."""

KIND = re.compile(r"inequivalent arg 'type' .* but current is '([\w-]+)'")


async def set_up(amqp: Amqp, channel: aiormq.abc.AbstractChannel, exchanges: Sequence[str], queue: str | None) -> str:
    """Finds or makes everything, and binds; returns the queue's name.

    `queue` None asks for an exclusive one that the broker names. Raises BrokerRefusal where a permission is missing or
    an exchange is of a kind that would never deliver.
    """
    try:
        for exchange in exchanges:
            await ensure_exchange(amqp, exchange)
            await _refuse_direct(amqp, exchange)
        if queue is None:
            name = (await channel.queue_declare("", exclusive=True, auto_delete=True)).queue or ""
        else:
            await ensure_queue(amqp, queue, QUEUE_ARGUMENTS)
            name = queue
        for exchange in exchanges:
            await channel.queue_bind(name, exchange, ROUTING_KEY)
    except aiormq.exceptions.ChannelAccessRefused as error:
        raise BrokerRefusal(f"the user of BRIDGE_AMQP_URL lacks a permission: {sentence(error)}") from error
    return name


async def check(channel: aiormq.abc.AbstractChannel, exchanges: Sequence[str], queue: str) -> None:
    """Raises where an exchange or the queue is gone; where an exchange was made anew, binds the queue to it again.

    An exchange that is deleted and made again takes the binding with it, and nobody is told: no error, no messages.
    """
    for exchange in exchanges:
        await channel.exchange_declare(exchange, passive=True)
    await channel.queue_declare(queue, passive=True)
    for exchange in exchanges:
        await channel.queue_bind(queue, exchange, ROUTING_KEY)


async def ensure_exchange(amqp: Amqp, exchange: str) -> None:
    """Makes a durable fanout exchange where none of that name exists; one that exists is used as it is."""
    await _ensure(
        amqp,
        lambda channel: channel.exchange_declare(exchange, passive=True),
        lambda channel: channel.exchange_declare(exchange, exchange_type="fanout", durable=True),
    )


async def ensure_queue(amqp: Amqp, queue: str, arguments: FieldTable) -> None:
    """Makes a durable queue with the arguments where none of that name exists; one that exists is used as it is."""
    await _ensure(
        amqp,
        lambda channel: channel.queue_declare(queue, passive=True),
        lambda channel: channel.queue_declare(queue, durable=True, arguments=arguments),
    )


async def _ensure(amqp: Amqp, look: Request, make: Request) -> None:
    # On channels of their own: the broker closes a channel on which something is missing.
    channel = await amqp.channel(publisher_confirms=False)
    try:
        await look(channel)
    except aiormq.exceptions.ChannelNotFoundEntity:
        channel = await amqp.channel(publisher_confirms=False)
        await make(channel)
    await channel.close()


async def _refuse_direct(amqp: Amqp, exchange: str) -> None:
    # A passive declaration does not tell the kind. This one changes nothing either: where the exchange is not a durable
    # fanout, the broker refuses it and says what it is; where the user may not declare, the kind stays unknown.
    probe = await amqp.channel(publisher_confirms=False)
    try:
        await probe.exchange_declare(exchange, exchange_type="fanout", durable=True)
        await probe.close()
    except aiormq.exceptions.ChannelPreconditionFailed as error:
        kind = KIND.search(sentence(error))
        if kind is not None and kind[1] == "direct":
            raise BrokerRefusal(
                f"the exchange {exchange!r} is a direct exchange, which would never deliver to the bridge; "
                "name a fanout or topic exchange in BRIDGE_EXCHANGES, or bind one to it"
            ) from error
    except aiormq.exceptions.ChannelAccessRefused:
        pass
