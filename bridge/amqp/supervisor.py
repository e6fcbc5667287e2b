"""Runs sessions on connections to the broker, one after another, with pauses between the sessions.

Only this module distinguishes a lost connection, a refusal by the broker and a fault of the bridge. A refusal by the
broker ends the program if no session has ever worked and `wait` is False. A fault of the bridge is logged with its
stack frames. The pauses are the same after a lost connection, a refusal and a fault. The bridge therefore notices a
corrected password as quickly as the return of a broker.
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

# This module uses the standard library's logger instead of structlog, because a Publisher runs it in other programs.
_log = logging.getLogger("bridge.amqp")


class UnexpectedError(Exception):
    """Logged in place of another error, with that error's type and stack frames, but without its text."""


async def supervise(
    run_session: Callable[[], Awaitable[str]],
    status: Status,
    on_lost: Callable[[State, str], None],
    stopping: asyncio.Event,
    *,
    wait: bool,
    stable_s: float = DEFAULT.stable_s,
) -> None:
    """Calls `run_session` until `stopping` is set. Each call runs one session and returns why the session ended.

    If a session lasted at least `stable_s`, the pause after it has the minimum length. At the end of each session,
    `on_lost` is called with the new state and the reason, before the status changes. Raises BrokerRefusal if `wait` is
    False and the broker refuses before any session has worked.
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
            # The texts of the error and of its causes may contain the broker's URL, so they are not logged.
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
