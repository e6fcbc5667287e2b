"""Serializes messages that have the same id."""

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from weakref import WeakValueDictionary


class MessageIdLocks:
    """One lock for each id of a message that waits for its confirm.

    aiormq finds a returned message among the unconfirmed ones by its id alone. Of two messages with the same id, an
    unroutable one would therefore count as confirmed.
    """

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def lock(self, message_id: str | None) -> AbstractAsyncContextManager[None]:
        """Returns the lock for an id. A message without an id needs no lock: aiormq generates a unique id for it."""
        return self._locks.setdefault(message_id, asyncio.Lock()) if message_id else nullcontext()

    def __len__(self) -> int:
        """Returns the number of ids with a lock in use."""
        return len(self._locks)
