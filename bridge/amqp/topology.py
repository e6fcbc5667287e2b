"""The exchanges, the queue and the bindings that must exist at the broker before events arrive.

The exchanges belong to the fetchers, so the bridge never changes an existing exchange. It does not change an existing
queue either.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

import aiormq
import structlog
from pamqp.common import FieldTable

from bridge.amqp.close_cause import CANCELLED
from bridge.amqp.connection import Channel, Connection
from bridge.amqp.connection_errors import error_text
from bridge.amqp.timeouts import rpc_timeout
from bridge.errors import BrokerRefusal

_log = structlog.get_logger("bridge.amqp")

Request = Callable[[Channel], Awaitable[object]]

ROUTING_KEY = "#"
"""A routing key that matches every event of a topic exchange. A fanout exchange ignores the routing key."""

RESERVED_PREFIX = "amq."
"""The prefix of the names of reserved exchanges, which no user can declare (AMQP 0-9-1, `exchange.declare`)."""

_MISMATCH = re.compile(r"inequivalent arg '(type|durable)' .* but current is '([\w-]+)'")
"""The pattern of the broker's error text for an exchange that differs from its declaration."""

_ABSENT = re.compile(r"NOT_FOUND - no (queue|exchange) '")
"""The pattern of the broker's error text for a queue or an exchange that does not exist.

If a queue exists but is not up yet, the broker's text is different. Just after the start of RabbitMQ 3.10.8, the text
says that the queue's home node "is down or inaccessible". The same declaration succeeds 50 ms later.
"""


_DECLARED_HINT = "if a fetcher publishes to an exchange with another name, correct BRIDGE_EXCHANGES"


class Presence(Enum):
    """What the bridge knows about the existence of an exchange or a queue at the broker."""

    EXISTS = auto()
    ABSENT = auto()
    INACCESSIBLE = auto()
    """Since RabbitMQ 4.3, the broker refuses to tell whether an exchange or a queue exists if the user has no
    permission on its name."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """An existing exchange, with the properties that the broker has confirmed."""

    name: str
    kind: str | None
    """The type of the exchange, or None if the broker does not show it (for lack of a permission, for example)."""
    durable: bool = True


@dataclass(frozen=True, slots=True)
class Topology:
    """The exchanges and the queue through which events reach the bridge."""

    exchanges: tuple[Exchange, ...]
    queue: str
    unverified_bindings: tuple[str, ...] = ()
    """The exchanges that the bridge has no permission to bind to the queue.

    Events from these exchanges arrive only if the queue's owner has bound the exchanges.
    """
    inaccessible: tuple[str, ...] = ()
    """The exchanges whose existence the bridge has no permission to check."""


@dataclass(frozen=True, slots=True)
class Queue:
    """An existing queue."""

    name: str
    created: bool
    """True if this connection has declared the queue."""


# Setup


async def set_up(
    amqp: Connection,
    exchanges: Sequence[str],
    known: Mapping[str, Exchange],
    prepare: Callable[[], Awaitable[Queue]],
    on_created: Callable[[], None],
) -> Topology:
    """Finds or declares the exchanges and the queue, and binds the queue to the exchanges.

    `known` contains the exchanges as the last session found them. `prepare` finds or declares the queue. `on_created`
    is called if an exchange or the queue was missing, even if a later step fails. Events that were published while the
    exchange or the queue was missing have never reached the bridge's queue. Raises BrokerRefusal if a permission is
    missing or an exchange would never deliver to the bridge. Raises ConnectionError if an exchange is missing and only
    the exchange's owner can declare it.
    """
    inaccessible = []
    try:
        for exchange in exchanges:
            presence = await _redeclare(amqp, known.get(exchange, Exchange(exchange, "fanout")))
            if presence is Presence.ABSENT:
                # If the name of the exchange is misspelled, there is no error: the bridge declares an exchange to which
                # no fetcher publishes.
                _log.warning("exchange declared", exchange=exchange, hint=_DECLARED_HINT)
                on_created()
            elif presence is Presence.INACCESSIBLE:
                inaccessible.append(exchange)
    except aiormq.exceptions.ChannelAccessRefused as error:
        raise permission_error(error, "create the exchange, or grant configure on it") from error
    found = [await _detect(amqp, exchange) for exchange in exchanges]
    queue = await prepare()
    if queue.created:
        on_created()
    unverified = [exchange for exchange in exchanges if not await _bind(amqp, queue, exchange)]
    return Topology(tuple(found), queue.name, tuple(unverified), tuple(inaccessible))


async def _bind(amqp: Connection, queue: Queue, exchange: str) -> bool:
    """Binds the queue. Returns False if the queue existed before and the user may neither bind nor configure it.

    If `_bind` returns False, the queue's owner must create the binding. The bridge can't check whether the binding
    exists, because AMQP has no request for a list of bindings. A user with the permission to configure the queue counts
    as its owner. If the owner can't bind the queue, `_bind` raises BrokerRefusal, because nobody else would bind it and
    no event would ever arrive.
    """
    channel = await amqp.channel(publisher_confirms=False)
    try:
        await channel.queue_bind(queue.name, exchange, ROUTING_KEY)
    except aiormq.exceptions.ChannelAccessRefused as error:
        if queue.created or await _may_configure(amqp, queue.name):
            raise permission_error(
                error, "it needs write on the queue and read on the exchange, to bind them"
            ) from error
        return False
    await channel.close()
    return True


async def _may_configure(amqp: Connection, queue: str) -> bool:
    channel = await amqp.channel(publisher_confirms=False)
    try:
        # The queue exists, so the declaration creates nothing. The broker checks the permission before it compares the
        # arguments.
        await channel.queue_declare(queue, durable=True)
    except aiormq.exceptions.ChannelAccessRefused:
        return False
    except (aiormq.exceptions.ChannelPreconditionFailed, aiormq.exceptions.ChannelLockedResource):
        return True
    await channel.close()
    return True


async def _detect(amqp: Connection, exchange: str) -> Exchange:
    # A passive declaration does not return the exchange's type. An active declaration does not change an existing
    # exchange. If the exchange differs from the declaration, the broker refuses the declaration, and its error text
    # names the actual value.
    kind, durable = "fanout", True
    for _ in range(3):
        channel = await amqp.channel(publisher_confirms=False)
        try:
            await channel.exchange_declare(exchange, exchange_type=kind, durable=durable)
        except aiormq.exceptions.ChannelAccessRefused:
            break
        except aiormq.exceptions.ChannelPreconditionFailed as error:
            mismatch = _MISMATCH.search(error_text(error))
            if mismatch is None:
                break
            if mismatch[1] == "durable":
                durable = mismatch[2] == "true"
                continue
            kind = mismatch[2]
            if kind == "direct":
                raise BrokerRefusal(
                    f"the exchange {exchange!r} is a direct exchange, which would never deliver to the bridge; "
                    "name a fanout or topic exchange in BRIDGE_EXCHANGES, or bind one to it"
                ) from error
        else:
            await channel.close()
            return Exchange(exchange, kind, durable)
    return Exchange(exchange, None)


# Finding and declaring exchanges and queues


def is_reserved(exchange: str) -> bool:
    """Whether RabbitMQ reserves the name. A reserved exchange that exists can be used, but no user can declare it."""
    return exchange.startswith(RESERVED_PREFIX)


async def exchange_exists(amqp: Connection, exchange: str) -> bool:
    """Whether an exchange of any kind has this name.

    The result is also True if the user has no permission to check whether the exchange exists. Raises ConnectionError
    if the exchange exists but is not available yet.
    """
    try:
        presence = await _presence(amqp, lambda channel: channel.exchange_declare(exchange, passive=True))
    except aiormq.exceptions.ChannelNotFoundEntity as error:
        raise ConnectionError(error_text(error)) from error
    return presence is not Presence.ABSENT


async def ensure_exchange(amqp: Connection, exchange: str) -> bool:
    """Declares a durable fanout exchange if no exchange has this name. Returns whether the exchange was declared."""
    return await _redeclare(amqp, Exchange(exchange, "fanout")) is Presence.ABSENT


async def ensure_queue(amqp: Connection, queue: str, arguments: FieldTable) -> bool:
    """Declares a durable queue if no queue has this name. Returns whether the queue was declared.

    If the user has no permission to check whether the queue exists, the function assumes that the queue exists. The
    next request on this queue then fails because of the missing permission.
    """
    presence = await _ensure(
        amqp,
        lambda channel: channel.queue_declare(queue, passive=True),
        lambda channel: channel.queue_declare(queue, durable=True, arguments=arguments),
    )
    return presence is Presence.ABSENT


async def _redeclare(amqp: Connection, exchange: Exchange) -> Presence:
    """Declares a missing exchange with the properties that it had before.

    If the bridge chose different properties, the exchange's owner could never declare the exchange again.
    """

    async def declare(channel: Channel) -> object:
        if is_reserved(exchange.name):
            raise BrokerRefusal(
                f"there is no exchange {exchange.name!r}, and RabbitMQ reserves names that begin with "
                f"{RESERVED_PREFIX}; name another exchange in BRIDGE_EXCHANGES"
            )
        if exchange.kind is None:
            raise ConnectionError(
                f"the exchange {exchange.name!r} is gone, and the bridge does not know its type; declare it again"
            )
        return await channel.exchange_declare(exchange.name, exchange_type=exchange.kind, durable=exchange.durable)

    return await _ensure(amqp, lambda channel: channel.exchange_declare(exchange.name, passive=True), declare)


async def _ensure(amqp: Connection, look: Request, declare: Request) -> Presence:
    """Declares an exchange or a queue if it is absent. Returns its Presence before the call."""
    presence = await _presence(amqp, look)
    if presence is Presence.ABSENT:
        channel = await amqp.channel(publisher_confirms=False)
        await declare(channel)
        await channel.close()
    return presence


async def _presence(amqp: Connection, look: Request) -> Presence:
    """Returns whether an exchange or a queue exists.

    Raises ChannelNotFoundEntity for a queue that exists but is not up yet. If a queue that is not up yet counted as
    ABSENT, the bridge would declare it and report it as new. Uses a new channel, because the broker closes the channel
    if the exchange or queue is missing.
    """
    channel = await amqp.channel(publisher_confirms=False)
    try:
        await look(channel)
    except aiormq.exceptions.ChannelAccessRefused:
        return Presence.INACCESSIBLE
    except aiormq.exceptions.ChannelNotFoundEntity as error:
        if not _ABSENT.search(error_text(error)):
            raise
        return Presence.ABSENT
    await channel.close()
    return Presence.EXISTS


# End


async def unbind(amqp: Connection, queue: str, exchanges: Sequence[str], limit_s: float) -> None:
    """Unbinds an exclusive queue before its connection is closed, but gives up after `limit_s`.

    If a bound queue is deleted, RabbitMQ 4.3 does not confirm the messages that are published at that moment.
    """
    try:
        async with rpc_timeout(limit_s):
            channel = await amqp.channel(publisher_confirms=False)
            for exchange in exchanges:
                await channel.queue_unbind(queue, exchange, ROUTING_KEY)
    except (aiormq.exceptions.AMQPError, OSError, RuntimeError) as error:
        _log.info("the queue was not unbound before its connection was closed", queue=queue, error=error_text(error))


async def cancellation_reason(amqp: Connection, queue: str, limit_s: float) -> str:
    """Returns why the broker cancelled the consumer of a queue. Waits for the broker's answer for at most `limit_s`."""
    try:
        async with rpc_timeout(limit_s):
            presence = await _presence(amqp, lambda channel: channel.queue_declare(queue, passive=True))
    except (aiormq.exceptions.AMQPError, OSError, RuntimeError) as error:
        return f"{CANCELLED}: {error_text(error)}"
    return f"{CANCELLED}: its queue is gone" if presence is Presence.ABSENT else CANCELLED


def permission_error(error: aiormq.exceptions.ChannelAccessRefused, hint: str) -> BrokerRefusal:
    """Returns the BrokerRefusal to raise if a permission is missing.

    `hint` names the missing permission, because the broker's error text does not.
    """
    return BrokerRefusal(
        f"the user of BRIDGE_AMQP_URL lacks a permission: {error_text(error)}; {hint}; see "
        "docker/rabbitmq/permissions.sh"
    )
