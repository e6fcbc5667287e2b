"""Why a connection, a channel or a consumer was closed, and why a connection is blocked.

This module does not decide what follows from the cause.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import aiormq
from pamqp import commands

from bridge.amqp.connection import Channel, Connection
from bridge.amqp.connection_errors import error_text
from bridge.contract.text import printable
from bridge.errors import BrokerRefusal

CANCELLED = "the broker cancelled the consumer"

_SHUTDOWN = re.compile("'shutdown'|is down")
"""In the text of a close by a broker that stops itself or the virtual host."""


class SessionEndedError(ConnectionError):
    """Ends a session by a decision of the bridge, although the broker answers."""


_BROKER_IS_UP = (
    BrokerRefusal,
    SessionEndedError,
    aiormq.exceptions.ChannelClosed,
    aiormq.exceptions.ConnectionClosed,
)
"""Errors that a running broker causes."""


@dataclass(frozen=True, slots=True)
class CloseCause:
    """Why a connection, a channel or a consumer was closed."""

    reason: str
    broker_stayed_up: bool = True
    """False if the broker may have been restarted: its close announced a shutdown, or the connection was lost."""

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """Returns the cause that an error of aiormq or of a session stands for."""
        reason = error_text(error)
        return cls(reason, isinstance(error, _BROKER_IS_UP) and not _SHUTDOWN.search(reason))


def task_close_cause(task: asyncio.Task[object]) -> CloseCause:
    """Returns the cause for the end of a task that used a channel."""
    error = None if task.cancelled() else task.exception()
    return CloseCause("the channel was closed", broker_stayed_up=False) if error is None else CloseCause.of(error)


async def connection_close_cause(amqp: Connection, limit_s: float) -> CloseCause | None:
    """Returns why a connection was closed, or None if it is still open after `limit_s`.

    A pending request fails first. The cause is known only after that.
    """
    await asyncio.wait([amqp.closing], timeout=limit_s)
    return _cause(amqp.closing) if amqp.closing.done() else None


def closed_future(amqp: Connection, channel: Channel) -> asyncio.Future[CloseCause]:
    """Returns a future that is done when the connection, the channel or the consumer is closed."""
    closed: asyncio.Future[CloseCause] = asyncio.get_running_loop().create_future()

    def close(cause: CloseCause) -> None:
        if not closed.done():
            closed.set_result(cause)

    def on_closing(closing: asyncio.Future[object]) -> None:
        close(_cause(closing))

    amqp.closing.add_done_callback(on_closing)
    channel.closing.add_done_callback(on_closing)
    # The only sign that the queue was deleted or that the broker cancelled the consumer.
    channel.on_consumer_cancel_callbacks.add(lambda frame: close(CloseCause(CANCELLED)))
    return closed


def _cause(closing: asyncio.Future[object]) -> CloseCause:
    error = None if closing.cancelled() else closing.exception()
    if isinstance(error, asyncio.CancelledError):
        # aiormq cancels its own reader when heartbeats are missing.
        return CloseCause("nothing more was heard from the broker", broker_stayed_up=False)
    if error is None:
        return CloseCause("the connection was closed", broker_stayed_up=False)
    return CloseCause.of(error)


def watch_blocked(amqp: Connection, tell: Callable[[str | None], None]) -> None:
    """Has `tell` told when the broker takes nothing more to publish, in its own words, and None when it does again.

    aiormq waits then, and tells nobody but its log; a broker that is short of memory or disk may stay so for hours.
    """
    on_blocked = getattr(amqp, _ON_BLOCKED, None)
    on_unblocked = getattr(amqp, _ON_UNBLOCKED, None)
    if on_blocked is None or on_unblocked is None:
        return  # another version of the library: a confirm that is missed for long is noticed all the same

    async def tell_blocked(frame: commands.Connection.Blocked) -> None:
        tell(printable(str(frame.reason)))
        await on_blocked(frame)

    async def tell_unblocked(frame: commands.Connection.Unblocked) -> None:
        tell(None)
        await on_unblocked(frame)

    setattr(amqp, _ON_BLOCKED, tell_blocked)
    setattr(amqp, _ON_UNBLOCKED, tell_unblocked)


_ON_BLOCKED, _ON_UNBLOCKED = (f"_Connection__handle_connection_{what}" for what in ("blocked", "unblocked"))
"""The library's own methods, which are private: it has no callback for either."""
