"""Finds why a connection, a channel or a consumer was closed, and why a connection is blocked.

This module does not decide how the bridge reacts to the cause.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import aiormq

from bridge.amqp.connection import Channel, Connection
from bridge.amqp.connection_errors import error_text
from bridge.amqp.wire.compat import observe_blocked
from bridge.contract.text import printable
from bridge.errors import BrokerRefusal

CANCELLED = "the broker cancelled the consumer"

_SHUTDOWN = re.compile("'shutdown'|is down")
"""Matches the close reason of a broker that shuts down or stops the virtual host."""


class SessionEndedError(ConnectionError):
    """Raised when the bridge itself ends a session. When this error is raised, the broker still answers requests."""


_BROKER_IS_UP = (
    BrokerRefusal,
    SessionEndedError,
    aiormq.exceptions.ChannelClosed,
    aiormq.exceptions.ConnectionClosed,
)
"""Errors that only a running broker can cause."""


@dataclass(frozen=True, slots=True)
class CloseCause:
    """The reason why a connection, a channel or a consumer was closed."""

    reason: str
    broker_stayed_up: bool = True
    """False if the broker may have been restarted: the broker announced a shutdown, or the connection was lost."""

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """Returns the close cause for an error of aiormq or of a session."""
        reason = error_text(error)
        return cls(reason, isinstance(error, _BROKER_IS_UP) and not _SHUTDOWN.search(reason))


def task_close_cause(task: asyncio.Task[object]) -> CloseCause:
    """Returns why a task that used a channel has ended."""
    error = None if task.cancelled() else task.exception()
    return CloseCause("the channel was closed", broker_stayed_up=False) if error is None else CloseCause.of(error)


async def connection_close_cause(amqp: Connection, limit_s: float) -> CloseCause | None:
    """Returns why a connection was closed, or None if it is still open after `limit_s`.

    When a connection is lost, pending requests fail first, and the cause of the loss is known a moment later.
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
    # Only this callback shows that the queue was deleted or that the broker cancelled the consumer.
    channel.on_consumer_cancel_callbacks.add(lambda frame: close(CloseCause(CANCELLED)))
    return closed


def _cause(closing: asyncio.Future[object]) -> CloseCause:
    error = None if closing.cancelled() else closing.exception()
    if isinstance(error, asyncio.CancelledError):
        # aiormq cancels its own reader when heartbeats are missing.
        return CloseCause("the broker sent no more heartbeats", broker_stayed_up=False)
    if error is None:
        return CloseCause("the connection was closed", broker_stayed_up=False)
    return CloseCause.of(error)


def watch_blocked(amqp: Connection, observer: Callable[[str | None], None]) -> None:
    """Calls `observer` with the broker's reason when the connection is blocked, and with None when the block ends."""
    observe_blocked(amqp, lambda reason: observer(None if reason is None else printable(reason)))
