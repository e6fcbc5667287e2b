"""One supervised life after another: whoever lives on a connection to the broker is started again when it ends.

The one place that tells a lost connection (tried again soon) from a refusal (tried again patiently, or the end of the
program where nothing ever worked) and from a fault of ours (said in full, and no reason to stop).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import aiormq
import structlog

from bridge.broker.link import Backoff, sentence
from bridge.broker.status import State, Status
from bridge.errors import BrokerRefusal

STABLE_S = 5.0
"""A life that lasted this long was a good one: what ended it is news, and the next attempt follows at once."""

_log = structlog.get_logger("bridge.broker")


async def keep_alive(
    live: Callable[[], Awaitable[str]],
    status: Status,
    lost: Callable[[State, str], None],
    stopping: asyncio.Event,
    wait: bool,
) -> None:
    """Calls `live` again and again until `stopping` is set; each call is a life, and returns what ended it.

    `lost` is told of each end, before the status changes. Raises BrokerRefusal for a refusal while nothing has ever
    worked, unless `wait` is set.
    """
    soon, patient = Backoff(), Backoff(first_s=0.5, longest_s=15.0)
    while not stopping.is_set():
        pauses = soon
        status.attempts += 1
        began_s = time.monotonic()
        try:
            state, reason = State.LOST, await live()
        except BrokerRefusal as error:
            if not status.worked and not wait:
                raise
            state, reason = State.REFUSED, str(error)
            pauses = patient
        except (aiormq.exceptions.AMQPError, OSError, RuntimeError) as error:
            state, reason = State.LOST, sentence(error)
        except asyncio.CancelledError as error:
            if cancelled_from_outside():
                raise
            state, reason = State.LOST, sentence(error)
        except Exception as error:
            _log.exception("a connection to the broker failed in an unexpected way")
            state, reason = State.LOST, repr(error)
        if stopping.is_set():
            break
        if time.monotonic() - began_s >= STABLE_S:
            soon.reset()
            patient.reset()
        lost(state, reason)
        status.enter(state, reason)
        with suppress(TimeoutError):
            async with asyncio.timeout(pauses.pause_s()):
                await stopping.wait()
    status.enter(State.STOPPED)


def cancelled_from_outside() -> bool:
    """True where somebody asked the running task to end.

    aiormq cancels whoever waits for a connection that goes away: a CancelledError alone says nothing.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
