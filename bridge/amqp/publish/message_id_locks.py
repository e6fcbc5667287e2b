"""Publishes messages that have the same id one after another."""

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from weakref import WeakValueDictionary


class MessageIdLocks:
    """The locks for the ids of messages that wait for their confirms.

    If the broker returns a message, aiormq looks for its id among the unconfirmed messages. If two unconfirmed messages
    had the same id, an unroutable message could therefore count as confirmed.
    """

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def lock(self, message_id: str | None) -> AbstractAsyncContextManager[None]:
        """Returns the lock for an id. A message without an id needs no lock, because aiormq gives it a unique id."""
        return self._locks.setdefault(message_id, asyncio.Lock()) if message_id else nullcontext()

    def __len__(self) -> int:
        """Returns the number of message ids whose lock is in use."""
        return len(self._locks)
