"""One supervised life after another: whoever lives on a connection to the broker is started again when it ends.

The one place that tells a lost connection from a refusal (the end of the program where nothing ever worked) and from a
fault of ours (said in full, and no reason to stop). All are tried again alike: whoever mends a password waits as little
for the bridge as who starts a broker.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import aiormq

from bridge.amqp.connection import error_text
from bridge.amqp.status import State, Status
from bridge.backoff import Backoff
from bridge.errors import BrokerRefusal
from bridge.timing import DEFAULT

# Not structlog, as elsewhere: a Publisher has this in other people's programs.
_log = logging.getLogger("bridge.amqp")


class UnexpectedError(Exception):
    """Stands for an error in the log: with its type's name and its frames, without its text."""


async def keep_alive(
    live: Callable[[], Awaitable[str]],
    status: Status,
    lost: Callable[[State, str], None],
    stopping: asyncio.Event,
    wait: bool,
    stable_s: float = DEFAULT.stable_s,
) -> None:
    """Calls `live` again and again until `stopping` is set; each call is a life, and returns what ended it.

    A life that lasted `stable_s` resets the backoff: the next attempt follows after the shortest pause. `lost` is told
    of each end, before the status changes. Raises BrokerRefusal for a refusal while nothing has ever
    worked, unless `wait` is set.
    """
    before = cancel_requests()
    pauses = Backoff()
    while not stopping.is_set():
        status.attempts += 1
        began_s = time.monotonic()
        try:
            state, reason = State.LOST, await live()
        except BrokerRefusal as error:
            if not status.ever_connected and not wait:
                raise
            state, reason = State.REFUSED, str(error)
        except (aiormq.exceptions.AMQPError, OSError, RuntimeError) as error:
            state, reason = State.LOST, error_text(error)
        except asyncio.CancelledError as error:
            if cancel_requests() > before:
                raise
            state, reason = State.LOST, error_text(error)
        except Exception as error:
            # The text of an error may hold the broker's URL, and so may those of its causes.
            reason = type(error).__name__
            textless = UnexpectedError(reason).with_traceback(error.__traceback__)
            _log.error("a connection to the broker failed in an unexpected way", exc_info=textless)
            state = State.LOST
        if stopping.is_set():
            break
        if time.monotonic() - began_s >= stable_s:
            pauses.reset()
        lost(state, reason)
        status.enter(state, reason)
        with suppress(TimeoutError):
            async with asyncio.timeout(pauses.pause_s()):
                await stopping.wait()
    status.enter(State.STOPPED)


def cancel_requests() -> int:
    """How often somebody has asked the running task to end; more than before, and a CancelledError is theirs.

    aiormq cancels whoever waits for a connection that goes away: a CancelledError alone says nothing. Nor does the
    number: it stays with a task that went on after a cancellation, to say a last word, perhaps.
    """
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
