"""Rejected events published again to where they came from, as they were before."""

import asyncio
import re
from urllib.parse import unquote, urlsplit
from weakref import WeakValueDictionary

import aiormq
from pamqp import commands

from bridge.amqp.connection import Channel, Connection
from bridge.amqp.connection_errors import error_text
from bridge.amqp.consume.delivery_counts import DELIVERY_COUNT
from bridge.amqp.nodes import Node
from bridge.amqp.rejects.queue import ANSWER_S, LOST, PREFIX, Interrupted, Reject, interrupted
from bridge.amqp.timeouts import lag_tolerant_timeout
from bridge.contract.text import printable

MAX_IN_FLIGHT = 50
"""Events that may be published and not confirmed at once."""

OF_DELIVERY = frozenset({DELIVERY_COUNT, "x-acquired-count", "x-stream-offset"})
"""Headers that a quorum queue or a stream adds to what it delivers: the event did not come with them."""

_MILLISECONDS = re.compile("[0-9]{1,10}")
"""Of an expiration, as the broker takes it: it has none of more than fifty days."""


class NotRequeued(Exception):
    """An event stays in the queue of rejects. Its text says why, and what to do."""


class Requeuer:
    """Publishes rejected events to the exchanges that they came from, as they were before."""

    def __init__(self, amqp: Connection, user: str) -> None:
        self._amqp = amqp
        self._user = user
        # One for each exchange: the broker closes a channel on which something is wrong, with all that is under way.
        self._channels: dict[str, Channel | NotRequeued] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._proved: set[str] = set()
        """Exchanges to which something was published without the channel being closed for it."""
        self._of_this_id: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def publish(self, reject: Reject) -> None:
        """Returns when the broker has confirmed the event, and some queue has it. Raises Kept, and Interrupted."""
        if PREFIX + "exchange" not in reject.headers:
            raise NotRequeued("no exchange is said that they came from: no bridge has put them there")
        exchange = reject.said("exchange")
        _check(reject)
        # The first one alone: what aiormq still sends on a channel that the broker has closed meanwhile, for a missing
        # permission say, ends the whole connection.
        async with self._turns.setdefault(exchange, asyncio.Lock()):
            channel = await self._channel(exchange)
            if exchange not in self._proved:
                await self._publish(channel, exchange, reject)
                self._proved.add(exchange)
                return
        await self._publish(channel, exchange, reject)

    async def _publish(self, channel: Channel, exchange: str, reject: Reject) -> None:
        # aiormq tells which of its publishes the broker returned by the message id alone: of two with the same at once,
        # one that nobody got would count as confirmed.
        async with self._of_this_id.setdefault(reject.id, asyncio.Lock()):
            try:
                async with lag_tolerant_timeout(ANSWER_S):
                    await channel.basic_publish(
                        reject.body,
                        exchange=exchange,
                        routing_key=reject.routing_key,
                        properties=restored(reject.properties, self._user),
                        mandatory=True,
                    )
            except aiormq.exceptions.PublishError as error:
                raise NotRequeued(
                    f"no queue is bound to the exchange {exchange!r}: start what consumes from it"
                ) from error
            except aiormq.exceptions.DeliveryError as error:
                raise NotRequeued(
                    f"the broker does not take them for {exchange!r} (nack): a full queue, perhaps"
                ) from error
            except TimeoutError as error:
                raise Interrupted(
                    f"the broker did not confirm within {ANSWER_S:g} s: it may be short of memory or disk"
                ) from error
            except LOST as error:
                lost = interrupted(error)
                kept = _refused(exchange, channel)
                if kept is None:
                    raise lost from error
                # For those that follow.
                self._channels[exchange] = kept
                raise kept from error
            except Exception as error:  # a value that can be read, but not written: no bound to what the library raises
                raise NotRequeued(f"their properties can't be published again: {printable(str(error))}") from error

    async def _channel(self, exchange: str) -> Channel:
        """One with confirms, for an exchange that exists."""
        if exchange not in self._channels:
            self._channels[exchange] = await self._opened(exchange)
        channel = self._channels[exchange]
        if isinstance(channel, NotRequeued):
            raise NotRequeued(*channel.args)
        return channel

    async def _opened(self, exchange: str) -> Channel | NotRequeued:
        channel = None
        try:
            channel = await self._amqp.channel(publisher_confirms=True)
            if exchange:
                await channel.exchange_declare(exchange, passive=True)
        except aiormq.exceptions.ChannelNotFoundEntity:
            return _gone(exchange)
        except ValueError:
            if channel is not None:
                # As many names as others like, and no more than 2047 channels.
                await channel.close()
            # No bridge names one that the library does not let through, but others may write to the queue.
            return NotRequeued(f"{printable(exchange, 127)!r} is no exchange's name: no bridge has put them there")
        except aiormq.exceptions.ChannelAccessRefused as error:
            return _without_permission(exchange, error)
        except LOST as error:
            raise interrupted(error) from error
        return channel


def _check(reject: Reject) -> None:
    """Raises Kept for what the broker would close the channel for, with all that is under way on it.

    What is still sent there meanwhile ends the connection: one such event would keep all behind it from being requeued,
    each time again. Other properties that the broker refuses can't be in a queue; this one has been in a header.
    """
    expiration = reject.headers.get(PREFIX + "expiration")
    if expiration is not None and not (isinstance(expiration, str) and _MILLISECONDS.fullmatch(expiration)):
        raise NotRequeued(
            "the expiration that they came with is no number of milliseconds: no bridge has put them there"
        )


def restored(came: commands.Basic.Properties, user: str) -> commands.Basic.Properties:
    """The properties as they were before the bridge rejected the event, as far as they can be sent by `user`."""
    values = {name: getattr(came, name) for name in commands.Basic.Properties.attributes()}
    headers = came.headers or {}
    values["cluster_id"] = ""
    values["expiration"] = headers.get(PREFIX + "expiration")
    # The broker takes it from nobody else.
    said = headers.get(PREFIX + "user-id")
    values["user_id"] = said if said == user else None
    own = {name: value for name, value in headers.items() if not name.startswith(PREFIX) and name not in OF_DELIVERY}
    values["headers"] = own or None
    return commands.Basic.Properties(**values)


def user_of(node: Node) -> str:
    """The broker's user in a URL."""
    return unquote(urlsplit(node.url).username or "guest")


def _gone(exchange: str) -> NotRequeued:
    return NotRequeued(f"the exchange {exchange!r} is gone: start the bridge that consumes from it, or make it")


def _without_permission(exchange: str, error: BaseException) -> NotRequeued:
    return NotRequeued(f"the user of BRIDGE_AMQP_URL may not write to the exchange {exchange!r}: {error_text(error)}")


def _refused(exchange: str, channel: Channel) -> NotRequeued | None:
    """Why the broker has closed the channel; None where it is the connection that is over."""
    closing = channel.closing
    error = closing.exception() if closing.done() and not closing.cancelled() else None
    match error:
        case aiormq.exceptions.ChannelNotFoundEntity():
            return _gone(exchange)
        case aiormq.exceptions.ChannelAccessRefused():
            return _without_permission(exchange, error)
        case aiormq.exceptions.ChannelClosed():
            return NotRequeued(f"the broker does not take them for the exchange {exchange!r}: {error_text(error)}")
    return None
