"""Distinguishes a requested cancellation of a task from a cancellation that aiormq causes.

When a connection is lost, aiormq cancels each task that waits for this connection. The task then gets a CancelledError,
just as after a call of `Task.cancel`.
"""

import asyncio


class CancellationGuard:
    """A task creates this guard before it waits for the broker.

    `requested` is True if the cancellation of the task was requested after the guard was created.

    Requests to cancel the task before the guard was created don't count. `Task.cancelling` also counts requests that
    were made before, if the task has continued after them. The guard keeps no reference to the task. With such a
    reference, an error that the task raises would keep its own traceback in memory.
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
