"""Distinguishes a requested cancellation of a task from a cancellation that aiormq causes.

aiormq cancels each task that waits for a connection when the connection is lost. The task gets the same CancelledError
as after `Task.cancel`.
"""

import asyncio


class CancellationGuard:
    """A task creates this guard before it waits for the broker. `requested` is True if the task is cancelled later.

    Earlier requests to cancel the task don't count. `Task.cancelling` still counts a request if the task continued
    after the cancellation. The guard keeps no reference to the task, because with a reference, an error of the task
    would keep its own traceback in memory.
    """

    __slots__ = ("_earlier",)

    def __init__(self) -> None:
        self._earlier = _requests()

    @property
    def requested(self) -> bool:
        """Whether a cancellation of the running task was requested since the task created this guard."""
        return _requests() > self._earlier


def _requests() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()
