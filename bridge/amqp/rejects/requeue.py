"""Publishes rejected events again, in their original form, to the exchanges that they came from."""

import asyncio
import re

import aiormq

from bridge.amqp.cancellation import CancellationGuard
from bridge.amqp.connection import Channel, Connection
from bridge.amqp.connection_errors import error_text
from bridge.amqp.publish.message_id_locks import MessageIdLocks
from bridge.amqp.rejects.properties import HEADER_PREFIX, original_properties
from bridge.amqp.rejects.queue import (
    CONNECTION_ERRORS,
    RPC_TIMEOUT_S,
    BrokerLost,
    Reject,
    broker_lost,
)
from bridge.amqp.timeouts import lag_tolerant_timeout
from bridge.contract.text import printable

MAX_IN_FLIGHT = 50
"""The maximum number of published events that are not confirmed yet."""

_EXPIRATION = re.compile("[0-9]{1,10}")
"""The format of a message's expiration: a number of milliseconds. RabbitMQ accepts no expiration above fifty days."""


class NotRequeued(Exception):
    """An event can't be published again, and stays in the queue of rejected events.

    The error's text says why, and what to do.
    """


class Requeuer:
    """Publishes rejected events on one connection."""

    def __init__(self, amqp: Connection, user: str) -> None:
        self._amqp = amqp
        self._user = user
        # Each exchange has its own channel, because an error closes the channel, and the confirms of all other messages
        # on this channel are then lost.
        self._channels: dict[str, Channel | NotRequeued] = {}
        self._exchange_locks: dict[str, asyncio.Lock] = {}
        self._usable: set[str] = set()
        """The exchanges that have accepted their first event: other events can follow on the same channel."""
        self._message_ids = MessageIdLocks()

    async def publish(self, reject: Reject) -> None:
        """Publishes an event, and waits until the broker confirms that a queue has it.

        Raises NotRequeued or BrokerLost if the event can't be published.
        """
        if HEADER_PREFIX + "exchange" not in reject.headers:
            raise NotRequeued("they have no x-reject-exchange header, so no bridge has published them")
        exchange = reject.header("exchange")
        _check_expiration(reject)
        # No second event is published to an exchange until the first event for this exchange is confirmed. If the
        # broker closes the channel (for example because a permission is missing), any further message on that channel
        # would make the broker close the whole connection.
        async with self._exchange_locks.setdefault(exchange, asyncio.Lock()):
            channel = await self._channel(exchange)
            if exchange not in self._usable:
                await self._publish(channel, exchange, reject)
                self._usable.add(exchange)
                return
        await self._publish(channel, exchange, reject)

    async def _publish(self, channel: Channel, exchange: str, reject: Reject) -> None:
        async with self._message_ids.lock(reject.id):
            cancellation = CancellationGuard()
            try:
                async with lag_tolerant_timeout(RPC_TIMEOUT_S):
                    await channel.basic_publish(
                        reject.body,
                        exchange=exchange,
                        routing_key=reject.routing_key,
                        properties=original_properties(reject.properties, self._user),
                        mandatory=True,
                    )
            except aiormq.exceptions.PublishError as error:
                raise NotRequeued(f"no queue is bound to the exchange {exchange!r}: start its consumer") from error
            except aiormq.exceptions.DeliveryError as error:
                raise NotRequeued(
                    f"the broker does not accept them for {exchange!r} (nack): a queue may be full"
                ) from error
            except TimeoutError as error:
                raise BrokerLost(
                    f"the broker did not confirm within {RPC_TIMEOUT_S:g} s: it may be short of memory or disk"
                ) from error
            except CONNECTION_ERRORS as error:
                lost = broker_lost(error, cancellation)
                refusal = _channel_refusal(exchange, channel)
                if refusal is None:
                    raise lost from error
                # Later events for the same exchange must not use the closed channel.
                self._channels[exchange] = refusal
                raise refusal from error
            except Exception as error:  # pamqp may raise any error for a value that it can't encode
                raise NotRequeued(f"their properties can't be published again: {printable(str(error))}") from error

    async def _channel(self, exchange: str) -> Channel:
        if exchange not in self._channels:
            self._channels[exchange] = await self._open_channel(exchange)
        channel = self._channels[exchange]
        if isinstance(channel, NotRequeued):
            raise NotRequeued(*channel.args)
        return channel

    async def _open_channel(self, exchange: str) -> Channel | NotRequeued:
        """Returns a channel with confirms for an exchange, or the reason why the exchange can't be used."""
        channel = None
        cancellation = CancellationGuard()
        try:
            channel = await self._amqp.channel(publisher_confirms=True)
            if exchange:
                await channel.exchange_declare(exchange, passive=True)
        except aiormq.exceptions.ChannelNotFoundEntity:
            return _missing(exchange)
        except ValueError:
            if channel is not None:
                # The number of exchanges is unbounded, but a connection has no more than 2047 channels.
                await channel.close()
            # aiormq refuses the exchange name. A bridge never writes a name that aiormq refuses, but other programs may
            # publish to the queue.
            return NotRequeued(f"{printable(exchange, 127)!r} is not an exchange name, so no bridge has published them")
        except aiormq.exceptions.ChannelAccessRefused as error:
            return _forbidden(exchange, error)
        except CONNECTION_ERRORS as error:
            raise broker_lost(error, cancellation) from error
        return channel


def _check_expiration(reject: Reject) -> None:
    """Raises NotRequeued for an expiration that makes the broker close the channel.

    If further messages are sent on the closed channel, the broker closes the connection. One event with a wrong
    expiration would thus prevent the requeue of all later events. Only the expiration has to be checked: it comes from
    a header that can contain any value, while the broker has already accepted all other properties once.
    """
    expiration = reject.headers.get(HEADER_PREFIX + "expiration")
    if expiration is not None and not (isinstance(expiration, str) and _EXPIRATION.fullmatch(expiration)):
        raise NotRequeued("their expiration is not a number of milliseconds, so no bridge has published them")


def _channel_refusal(exchange: str, channel: Channel) -> NotRequeued | None:
    """Returns why the broker has closed the channel, or None if the connection was lost instead."""
    closing = channel.closing
    error = closing.exception() if closing.done() and not closing.cancelled() else None
    match error:
        case aiormq.exceptions.ChannelNotFoundEntity():
            return _missing(exchange)
        case aiormq.exceptions.ChannelAccessRefused():
            return _forbidden(exchange, error)
        case aiormq.exceptions.ChannelClosed():
            return NotRequeued(f"the broker does not accept them for the exchange {exchange!r}: {error_text(error)}")
    return None


def _missing(exchange: str) -> NotRequeued:
    return NotRequeued(f"the exchange {exchange!r} is gone: start the bridge that consumes from it, or declare it")


def _forbidden(exchange: str, error: BaseException) -> NotRequeued:
    return NotRequeued(f"the user of BRIDGE_AMQP_URL may not write to the exchange {exchange!r}: {error_text(error)}")
