"""The queue of rejected events, from its other end: read, remove, and publish again to where they came from.

Whatever is read stays the broker's until it is removed: it goes back to its old place when the connection ends, however
it ends. The one message at a time that `basic.get` gives is slow, and says when there is none; a consumer would have to
guess.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit
from weakref import WeakValueDictionary

import aiormq
from pamqp import commands

from bridge.broker import decoding
from bridge.broker.link import Node, connected, sentence
from bridge.contract.text import printable
from bridge.errors import BridgeError, BrokerRefusal, ConfigurationError

ANSWER_S = 30.0
"""For each request. A broker that is short of memory or disk takes nothing to publish, and does not say so."""

UNDER_WAY = 50
"""Events that may be published and not confirmed at once."""

PREFIX = "x-reject-"

Answer = TypeVar("Answer")

decoding.install()


class Kept(Exception):
    """An event stays in the queue of rejects. Its text says why, and what to do."""


class Interrupted(BridgeError):
    """The broker was lost on the way. What was not removed by then is still in the queue."""


@dataclass(frozen=True, slots=True)
class Reject:
    """One rejected event."""

    number: int
    """Its place in the queue, from 1, the oldest first."""
    body: bytes
    properties: commands.Basic.Properties
    routing_key: str
    tag: int
    """By which the broker knows it, on this connection."""

    @property
    def headers(self) -> Mapping[str, Any]:
        """All of them."""
        return self.properties.headers or {}

    @property
    def id(self) -> str:
        """By which a person may name it. One that came without was given one by the bridge."""
        return self.properties.message_id or ""

    @property
    def type(self) -> str:
        """The event's own; empty where it did not say."""
        return self.properties.message_type or ""

    def said(self, name: str) -> str:
        """What the bridge said of it: `reason`, `pointer`, `detail`, `time`, `exchange`."""
        return str(self.headers.get(PREFIX + name, ""))


class RejectsQueue:
    """The queue on a connection of its own. Made by `opened`."""

    def __init__(self, amqp: aiormq.abc.AbstractConnection, channel: aiormq.abc.AbstractChannel, name: str) -> None:
        self.count = 0
        """How many rejects there were at the start, but for those that somebody else has in hand."""
        self.name = name
        self._amqp = amqp
        self._channel = channel

    async def read(self) -> AsyncIterator[Reject]:
        """Those that there were at the start, the oldest first. Each stays where it is until it is removed."""
        for number in range(1, self.count + 1):
            message = await self._asked(self._channel.basic_get(self.name))
            if message.delivery_tag is None:
                # Somebody else has taken some meanwhile.
                return
            yield Reject(
                number, message.body, message.header.properties, message.routing_key or "", message.delivery_tag
            )

    async def remove(self, reject: Reject) -> None:
        """Takes one out for good."""
        await self._asked(self._channel.basic_ack(reject.tag))

    async def settle(self) -> None:
        """Returns when the broker has taken notice of every removal."""
        await self._asked(self._channel.queue_declare(self.name, passive=True))

    def requeuing(self, user: str) -> "Requeuing":
        """Publishes what was read again, as this user of the broker."""
        return Requeuing(self._amqp, user)

    async def _asked(self, request: Awaitable[Answer]) -> Answer:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await request
        except aiormq.exceptions.ChannelAccessRefused as error:
            raise BrokerRefusal(
                f"the queue {self.name!r} can't be read: {sentence(error)}; grant the user of BRIDGE_AMQP_URL read on "
                "it"
            ) from error
        except TimeoutError as error:
            raise Interrupted(f"the broker does not answer within {ANSWER_S:g} s") from error
        except _LOST as error:
            raise _interrupted(error) from error


@asynccontextmanager
async def opened(nodes: Sequence[Node], name: str) -> AsyncIterator[RejectsQueue]:
    """The queue of that name. What was read and not removed is back in it afterwards.

    Raises ConfigurationError where there is none, BrokerRefusal, and ConnectionError where no node can be reached.
    """
    async with connected(nodes, "edk-bridge rejects command") as amqp:
        channel = await amqp.channel(publisher_confirms=False)
        queue = RejectsQueue(amqp, channel, name)
        try:
            async with asyncio.timeout(ANSWER_S):
                declared = await channel.queue_declare(name, passive=True)
        except aiormq.exceptions.ChannelNotFoundEntity as error:
            raise ConfigurationError(
                [f"there is no queue {name!r}: nothing was ever rejected there, or BRIDGE_REJECT_EXCHANGE is another"]
            ) from error
        except aiormq.exceptions.ChannelLockedResource as error:
            raise BrokerRefusal(f"the queue {name!r} is somebody else's alone: {sentence(error)}") from error
        except aiormq.exceptions.ChannelAccessRefused as error:
            raise BrokerRefusal(f"the queue {name!r} can't be looked at: {sentence(error)}") from error
        queue.count = declared.message_count or 0
        yield queue


class Requeuing:
    """Publishes rejected events to the exchanges that they came from, as they were before."""

    def __init__(self, amqp: aiormq.abc.AbstractConnection, user: str) -> None:
        self._amqp = amqp
        self._user = user
        # One for each exchange: the broker closes a channel on which something is wrong, with all that is under way.
        self._channels: dict[str, aiormq.abc.AbstractChannel | Kept] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._proved: set[str] = set()
        """Exchanges to which something was published without the channel being closed for it."""
        self._of_this_id: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def publish(self, reject: Reject) -> None:
        """Returns when the broker has confirmed the event, and some queue has it. Raises Kept, and Interrupted."""
        if PREFIX + "exchange" not in reject.headers:
            raise Kept("no exchange is said that they came from: no bridge has put them there")
        exchange = reject.said("exchange")
        # The first one alone: what aiormq still sends on a channel that the broker has closed meanwhile, for a missing
        # permission say, ends the whole connection.
        async with self._turns.setdefault(exchange, asyncio.Lock()):
            channel = await self._channel(exchange)
            if exchange not in self._proved:
                await self._publish(channel, exchange, reject)
                self._proved.add(exchange)
                return
        await self._publish(channel, exchange, reject)

    async def _publish(self, channel: aiormq.abc.AbstractChannel, exchange: str, reject: Reject) -> None:
        # aiormq tells which of its publishes the broker returned by the message id alone: of two with the same at once,
        # one that nobody got would count as confirmed.
        async with self._of_this_id.setdefault(reject.id, asyncio.Lock()):
            try:
                async with asyncio.timeout(ANSWER_S):
                    await channel.basic_publish(
                        reject.body,
                        exchange=exchange,
                        routing_key=reject.routing_key,
                        properties=restored(reject.properties, self._user),
                        mandatory=True,
                    )
            except aiormq.exceptions.PublishError as error:
                raise Kept(f"no queue is bound to the exchange {exchange!r}: start what consumes from it") from error
            except aiormq.exceptions.DeliveryError as error:
                raise Kept(f"the broker does not take them for {exchange!r} (nack): a full queue, perhaps") from error
            except TimeoutError as error:
                raise Interrupted(
                    f"the broker did not confirm within {ANSWER_S:g} s: it may be short of memory or disk"
                ) from error
            except _LOST as error:
                interrupted = _interrupted(error)
                kept = _refused(exchange, channel)
                if kept is None:
                    raise interrupted from error
                # For those that follow.
                self._channels[exchange] = kept
                raise kept from error
            except Exception as error:  # a value that can be read, but not written: no bound to what the library raises
                raise Kept(f"their properties can't be published again: {printable(str(error))}") from error

    async def _channel(self, exchange: str) -> aiormq.abc.AbstractChannel:
        """One with confirms, for an exchange that exists."""
        if exchange not in self._channels:
            self._channels[exchange] = await self._opened(exchange)
        channel = self._channels[exchange]
        if isinstance(channel, Kept):
            raise Kept(*channel.args)
        return channel

    async def _opened(self, exchange: str) -> aiormq.abc.AbstractChannel | Kept:
        try:
            channel = await self._amqp.channel(publisher_confirms=True)
            if exchange:
                await channel.exchange_declare(exchange, passive=True)
        except aiormq.exceptions.ChannelNotFoundEntity:
            return _gone(exchange)
        except ValueError:
            # No bridge names one that the library does not let through, but others may write to the queue.
            return Kept(f"{printable(exchange, 127)!r} is no exchange's name: no bridge has put them there")
        except aiormq.exceptions.ChannelAccessRefused as error:
            return _without_permission(exchange, error)
        except _LOST as error:
            raise _interrupted(error) from error
        return channel


def restored(came: commands.Basic.Properties, user: str) -> commands.Basic.Properties:
    """The properties as they were before the bridge rejected the event, as far as they can be sent by `user`."""
    values = {name: getattr(came, name) for name in commands.Basic.Properties.attributes()}
    headers = came.headers or {}
    values["cluster_id"] = ""
    values["expiration"] = headers.get(PREFIX + "expiration")
    # The broker takes it from nobody else.
    said = headers.get(PREFIX + "user-id")
    values["user_id"] = said if said == user else None
    own = {name: value for name, value in headers.items() if not name.startswith(PREFIX)}
    values["headers"] = own or None
    return commands.Basic.Properties(**values)


def user_of(node: Node) -> str:
    """The broker's user in a URL."""
    return unquote(urlsplit(node.url).username or "guest")


def _gone(exchange: str) -> Kept:
    return Kept(f"the exchange {exchange!r} is gone: start the bridge that consumes from it, or make it")


def _without_permission(exchange: str, error: BaseException) -> Kept:
    return Kept(f"the user of BRIDGE_AMQP_URL may not write to the exchange {exchange!r}: {sentence(error)}")


def _refused(exchange: str, channel: aiormq.abc.AbstractChannel) -> Kept | None:
    """Why the broker has closed the channel; None where it is the connection that is over."""
    closing = channel.closing
    error = closing.exception() if closing.done() and not closing.cancelled() else None
    match error:
        case aiormq.exceptions.ChannelNotFoundEntity():
            return _gone(exchange)
        case aiormq.exceptions.ChannelAccessRefused():
            return _without_permission(exchange, error)
        case aiormq.exceptions.ChannelClosed():
            return Kept(f"the broker does not take them for the exchange {exchange!r}: {sentence(error)}")
    return None


_LOST = (aiormq.exceptions.AMQPError, OSError, RuntimeError, asyncio.CancelledError)
"""What aiormq raises where a connection or a channel goes away."""


def _interrupted(error: BaseException) -> Interrupted:
    if isinstance(error, asyncio.CancelledError):
        # aiormq cancels whoever waits for a connection that goes away: without a request, it was not Ctrl-C.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise error
        return Interrupted("the connection to the broker was lost")
    return Interrupted(f"the connection to the broker was lost: {sentence(error)}")
