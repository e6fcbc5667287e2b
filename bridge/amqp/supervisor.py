"""Runs one session on a connection to the broker after another, with pauses between them.

Only this module distinguishes a lost connection, a refusal by the broker and a fault of the bridge. A refusal ends the
program if no session ever worked. A fault is logged with its frames. After each of the three, the next session follows
after the same pauses. The bridge thus notices a corrected password as soon as it notices a restarted broker.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import aiormq

from bridge.amqp.cancellation import CancellationGuard
from bridge.amqp.connection_errors import error_text
from bridge.amqp.status import State, Status
from bridge.backoff import Backoff
from bridge.errors import BrokerRefusal
from bridge.timing import DEFAULT

# The standard library's logger, not structlog: a Publisher runs this in other programs.
_log = logging.getLogger("bridge.amqp")


class UnexpectedError(Exception):
    """Replaces an error in the log. The replacement has the type and the frames of the error, but not its text."""


async def supervise(
    run_session: Callable[[], Awaitable[str]],
    status: Status,
    on_lost: Callable[[State, str], None],
    stopping: asyncio.Event,
    *,
    wait: bool,
    stable_s: float = DEFAULT.stable_s,
) -> None:
    """Calls `run_session` until `stopping` is set. Each call runs one session and returns the reason of its end.

    A session that lasted `stable_s` resets the backoff: the next attempt follows after the shortest pause. `on_lost`
    gets the new state and the reason of each end, before the status changes. Raises BrokerRefusal for a refusal while
    no session has ever worked, unless `wait` is set.
    """
    cancellation = CancellationGuard()
    pauses = Backoff()
    while not stopping.is_set():
        status.attempts += 1
        began_s = time.monotonic()
        try:
            state, reason = State.LOST, await run_session()
        except BrokerRefusal as error:
            if not status.ever_connected and not wait:
                raise
            state, reason = State.REFUSED, str(error)
        except (aiormq.exceptions.AMQPError, OSError, RuntimeError) as error:
            state, reason = State.LOST, error_text(error)
        except asyncio.CancelledError as error:
            if cancellation.requested:
                raise
            state, reason = State.LOST, error_text(error)
        except Exception as error:
            # The text of an error may contain the broker's URL, and so may the texts of its causes.
            reason = type(error).__name__
            textless = UnexpectedError(reason).with_traceback(error.__traceback__)
            _log.error("connection to the broker failed unexpectedly", exc_info=textless)
            state = State.LOST
        if stopping.is_set():
            break
        if time.monotonic() - began_s >= stable_s:
            pauses.reset()
        on_lost(state, reason)
        status.enter(state, reason)
        with suppress(TimeoutError):
            async with asyncio.timeout(pauses.pause_s()):
                await stopping.wait()
    status.enter(State.STOPPED)
