"""What must exist at the broker for events to flow: exchanges, the queue, bindings between them.

Nothing that exists is ever changed: the fetchers own their exchange, and the bridge must not get in their way.
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
"""Everything, where the exchange is a topic exchange; a fanout exchange does not look at it."""

MISMATCH = re.compile(r"inequivalent arg '(type|durable)' .* but current is '([\w-]+)'")
"""What the broker says where an exchange is not what it was declared as."""

RESERVED_PREFIX = "amq."
"""RabbitMQ lets no user declare an exchange whose name begins so (AMQP 0-9-1, `exchange.declare`)."""

ABSENT = re.compile(r"NOT_FOUND - no (queue|exchange) '")
"""What the broker says where there is none. Of one that it knows, and that is not up yet, it says something else: right
after a start of RabbitMQ 3.10.8 that its home node "is down or inaccessible", and to its declaration, 50 ms later, that
all is well."""


class Presence(Enum):
    """Whether something is at the broker, as far as the user may know."""

    THERE = auto()
    ABSENT = auto()
    HIDDEN = auto()
    """From RabbitMQ 4.3 on, the broker answers only a user with some permission on the name."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One that exists, and what the broker agreed that it is."""

    name: str
    kind: str | None
    """None where that can't be found out: no permission, or arguments of its own."""
    durable: bool = True


@dataclass(frozen=True, slots=True)
class Topology:
    """What events flow through."""

    exchanges: tuple[Exchange, ...]
    queue: str
    unverified_bindings: tuple[str, ...] = ()
    """Exchanges that the user may not bind to the queue, which is somebody else's: it is for them to have bound it."""
    hidden: tuple[str, ...] = ()
    """Exchanges that the user may not look at."""


@dataclass(frozen=True, slots=True)
class Queue:
    """One that was found or made."""

    name: str
    made: bool


async def set_up(
    amqp: Connection,
    exchanges: Sequence[str],
    known: Mapping[str, Exchange],
    prepare: Callable[[], Awaitable[Queue]],
    on_made: Callable[[], None],
) -> Topology:
    """Finds or makes everything, and binds.

    `known` is what exchanges were like before; `prepare` finds or makes the queue; `on_made` is called, whatever fails
    afterwards, where one of them had to be made: what was published before is in no queue of ours. Raises BrokerRefusal
    where a permission is missing or an exchange is of a kind that would never deliver, ConnectionError where one is
    gone that only its owner can make again.
    """
    hidden = []
    try:
        for exchange in exchanges:
            presence = await _redeclare(amqp, known.get(exchange, Exchange(exchange, "fanout")))
            if presence is Presence.ABSENT:
                on_made()
            elif presence is Presence.HIDDEN:
                hidden.append(exchange)
        found = [await _recognized(amqp, exchange) for exchange in exchanges]
        queue = await prepare()
        if queue.made:
            on_made()
    except aiormq.exceptions.ChannelAccessRefused as error:
        raise permission_error(error) from error
    unverified_bindings = [exchange for exchange in exchanges if not await bound(amqp, queue, exchange)]
    return Topology(tuple(found), queue.name, tuple(unverified_bindings), tuple(hidden))


async def bound(amqp: Connection, queue: Queue, exchange: str) -> bool:
    """Binds; False where the user may neither bind nor configure a queue that was there already.

    Such a user has the queue from somebody else, and so it has the binding: nobody can ask the broker for it. Raises
    BrokerRefusal for one who may configure the queue, and would wait for ever at one that is bound to nothing.
    """
    channel = await amqp.channel(publisher_confirms=False)
    try:
        await channel.queue_bind(queue.name, exchange, ROUTING_KEY)
    except aiormq.exceptions.ChannelAccessRefused as error:
        if queue.made or await _may_configure(amqp, queue.name):
            raise permission_error(error, "write on the queue and read on the exchange, to bind them") from error
        return False
    await channel.close()
    return True


async def unbind(amqp: Connection, queue: str, exchanges: Sequence[str], limit_s: float) -> None:
    """Unbinds an exclusive queue, before its connection is closed, if the broker does so within `limit_s`.

    On RabbitMQ 4.3, deleting a bound queue makes the confirms of other publishers fail at that moment.
    """
    try:
        async with rpc_timeout(limit_s):
            channel = await amqp.channel(publisher_confirms=False)
            for exchange in exchanges:
                await channel.queue_unbind(queue, exchange, ROUTING_KEY)
    except (aiormq.exceptions.AMQPError, OSError, RuntimeError) as error:
        _log.info("the queue was not unbound before its connection was closed", queue=queue, error=error_text(error))


async def _may_configure(amqp: Connection, queue: str) -> bool:
    channel = await amqp.channel(publisher_confirms=False)
    try:
        # It exists, so this makes nothing; the broker looks at the permission first, then at what is different.
        await channel.queue_declare(queue, durable=True)
    except aiormq.exceptions.ChannelAccessRefused:
        return False
    except (aiormq.exceptions.ChannelPreconditionFailed, aiormq.exceptions.ChannelLockedResource):
        return True
    await channel.close()
    return True


async def cancellation_reason(amqp: Connection, queue: str, limit_s: float) -> str:
    """Why the broker cancelled the consumer of a queue, as far as that can be found out within `limit_s`."""
    try:
        async with rpc_timeout(limit_s):
            presence = await _presence(amqp, lambda channel: channel.queue_declare(queue, passive=True))
    except (aiormq.exceptions.AMQPError, OSError, RuntimeError) as error:
        return f"{CANCELLED}: {error_text(error)}"
    return f"{CANCELLED}: its queue is gone" if presence is Presence.ABSENT else CANCELLED


def permission_error(error: aiormq.exceptions.ChannelAccessRefused, permission: str | None = None) -> BrokerRefusal:
    """The refusal that a missing permission is; `permission` says which, where the broker does not."""
    hint = "" if permission is None else f"; it needs {permission}"
    return BrokerRefusal(f"the user of BRIDGE_AMQP_URL lacks a permission: {error_text(error)}{hint}")


def is_reserved(exchange: str) -> bool:
    """Whether RabbitMQ reserves the name: such an exchange can be used if it exists, but not declared."""
    return exchange.startswith(RESERVED_PREFIX)


async def exchange_exists(amqp: Connection, exchange: str) -> bool:
    """Whether there is one of that name, of whatever kind; True as well if the user may not know.

    Raises ConnectionError where it is there and not up yet.
    """
    try:
        presence = await _presence(amqp, lambda channel: channel.exchange_declare(exchange, passive=True))
    except aiormq.exceptions.ChannelNotFoundEntity as error:
        raise ConnectionError(error_text(error)) from error
    return presence is not Presence.ABSENT


async def ensure_exchange(amqp: Connection, exchange: str) -> bool:
    """Makes a durable fanout exchange where none of that name exists, and says so; one that exists is used as it is."""
    return await _redeclare(amqp, Exchange(exchange, "fanout")) is Presence.ABSENT


async def _redeclare(amqp: Connection, exchange: Exchange) -> Presence:
    """One that has vanished is its owner's to declare, who would be refused for ever if it were another by then."""

    async def make(channel: Channel) -> object:
        if is_reserved(exchange.name):
            raise BrokerRefusal(
                f"there is no exchange {exchange.name!r}, and RabbitMQ reserves names that begin with "
                f"{RESERVED_PREFIX}; name another exchange in BRIDGE_EXCHANGES"
            )
        if exchange.kind is None:
            raise ConnectionError(f"the exchange {exchange.name!r} is gone; it is for those to make again who made it")
        return await channel.exchange_declare(exchange.name, exchange_type=exchange.kind, durable=exchange.durable)

    return await _ensured(amqp, lambda channel: channel.exchange_declare(exchange.name, passive=True), make)


async def ensure_queue(amqp: Connection, queue: str, arguments: FieldTable) -> bool:
    """Makes a durable queue where none of that name exists, and says so; one that exists is used as it is.

    One that the user may not look at is taken to exist: whatever is asked of it next says what the user lacks.
    """
    presence = await _ensured(
        amqp,
        lambda channel: channel.queue_declare(queue, passive=True),
        lambda channel: channel.queue_declare(queue, durable=True, arguments=arguments),
    )
    return presence is Presence.ABSENT


async def _ensured(amqp: Connection, look: Request, make: Request) -> Presence:
    """How it was found: what was absent is there now."""
    presence = await _presence(amqp, look)
    if presence is Presence.ABSENT:
        channel = await amqp.channel(publisher_confirms=False)
        await make(channel)
        await channel.close()
    return presence


async def _presence(amqp: Connection, look: Request) -> Presence:
    """Raises ChannelNotFoundEntity where it is there and not up yet: made anew, it would have nothing to lose."""
    # On a channel of its own: the broker closes one on which something is missing.
    channel = await amqp.channel(publisher_confirms=False)
    try:
        await look(channel)
    except aiormq.exceptions.ChannelAccessRefused:
        return Presence.HIDDEN
    except aiormq.exceptions.ChannelNotFoundEntity as error:
        if not ABSENT.search(error_text(error)):
            raise
        return Presence.ABSENT
    await channel.close()
    return Presence.THERE


async def _recognized(amqp: Connection, exchange: str) -> Exchange:
    # A passive declaration does not tell the kind. Another one changes nothing either: where the exchange is something
    # else, the broker refuses, and says what it is.
    kind, durable = "fanout", True
    for _ in range(3):
        channel = await amqp.channel(publisher_confirms=False)
        try:
            await channel.exchange_declare(exchange, exchange_type=kind, durable=durable)
        except aiormq.exceptions.ChannelAccessRefused:
            break
        except aiormq.exceptions.ChannelPreconditionFailed as error:
            mismatch = MISMATCH.search(error_text(error))
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
