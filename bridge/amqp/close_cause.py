"""Why a connection, a channel or a consumer ended; and why a connection takes nothing to publish.

This file must never know what is done about it.
"""

import asyncio
import re
from collections.abc import Callable
from typing import NamedTuple

import aiormq
from pamqp import commands

from bridge.amqp.connection import error_text
from bridge.contract.text import printable
from bridge.errors import BrokerRefusal

CANCELLED = "the broker cancelled the consumer"

_GOES_DOWN = re.compile("'shutdown'|is down")
"""In the broker's words when it ends a connection because it stops itself, or the virtual host."""


class ExplainedError(ConnectionError):
    """Ends a session by the bridge's own decision, and not for want of an answer."""


class Ending(NamedTuple):
    """Why something at the broker ended."""

    reason: str
    explained: bool = True
    """False if the broker may have been restarted: it said that it stops, or the connection was lost without a word."""

    @classmethod
    def by(cls, error: BaseException) -> "Ending":
        """The ending that an error of aiormq's means."""
        told = isinstance(error, _EXPLAINED)
        return cls(error_text(error), told and not _GOES_DOWN.search(error_text(error)))


_EXPLAINED = (
    BrokerRefusal,
    ExplainedError,
    aiormq.exceptions.ChannelClosed,
    aiormq.exceptions.ConnectionClosed,
)


def ending_of(task: "asyncio.Task[object]") -> Ending:
    """What a task means that has failed, on a channel that may be gone."""
    error = None if task.cancelled() else task.exception()
    return Ending("the channel was closed", explained=False) if error is None else Ending.by(error)


async def ending_of_connection(amqp: aiormq.abc.AbstractConnection, limit_s: float) -> Ending | None:
    """Why a connection has ended; None where it has not, within `limit_s`.

    A pending request fails first. The reason for the close is known only after that.
    """
    await asyncio.wait([amqp.closing], timeout=limit_s)
    return _ending(amqp.closing) if amqp.closing.done() else None


def _ending(closing: "asyncio.Future[object]") -> Ending:
    error = None if closing.cancelled() else closing.exception()
    if isinstance(error, asyncio.CancelledError):
        # aiormq cancels its own reader when the heartbeats stay away.
        return Ending("nothing more was heard from the broker", explained=False)
    return Ending("the connection was closed", explained=False) if error is None else Ending.by(error)


def closed_future(amqp: aiormq.abc.AbstractConnection, channel: aiormq.abc.AbstractChannel) -> asyncio.Future[Ending]:
    """Done when the connection, the channel or the consumer ends."""
    ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()

    def end(ending: Ending) -> None:
        if not ended.done():
            ended.set_result(ending)

    def closed(closing: "asyncio.Future[object]") -> None:
        end(_ending(closing))

    amqp.closing.add_done_callback(closed)
    channel.closing.add_done_callback(closed)
    # The only sign of a queue that was deleted, or of a consumer that the broker cancelled.
    channel.on_consumer_cancel_callbacks.add(lambda frame: end(Ending(CANCELLED)))
    return ended


def watch_blocked(amqp: aiormq.abc.AbstractConnection, tell: Callable[[str | None], None]) -> None:
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
