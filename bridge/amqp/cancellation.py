"""Distinguishes a requested cancellation of a task from a cancellation that aiormq causes.

When a connection is lost, aiormq cancels each task that waits for this connection. A task that aiormq cancels gets a
CancelledError, just as after a call of `Task.cancel`.
"""

import asyncio


class CancellationGuard:
    """A task creates this guard before it waits for the broker.

    `requested` is True if the cancellation of the task was requested after the guard was created.

    A request to cancel the task does not count if it was made before the guard was created. `Task.cancelling` also
    counts a request from before the guard was created, if the task continued after the request. The guard keeps no
    reference to the task. If the guard referred to the task, an error that the task raises would keep its own traceback
    in memory.
    """

    __slots__ = ("_earlier",)

    def __init__(self) -> None:
        self._earlier = _requests()

    @property
    def requested(self) -> bool:
        """True if somebody has requested a cancellation of the running task since the task created this guard."""
        return _requests() > self._earlier


def _requests() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()
