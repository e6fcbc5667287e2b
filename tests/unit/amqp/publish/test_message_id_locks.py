"""Messages with the same id are published one by one, but messages with different ids can overlap."""

from __future__ import annotations

import gc
from contextlib import AsyncExitStack

import pytest

from bridge.amqp.publish.message_id_locks import MessageIdLocks


@pytest.mark.parametrize(("ids", "at_once"), [(("a", "a"), 1), (("a", "b"), 2), ((None, None), 2), (("", ""), 2)])
async def test_only_messages_with_the_same_id_wait_for_each_other(ids: tuple[str | None, ...], at_once: int) -> None:
    locks = MessageIdLocks()
    async with AsyncExitStack() as held:
        acquired = 0
        for each in ids:
            lock = locks.lock(each)
            if not getattr(lock, "locked", lambda: False)():
                await held.enter_async_context(lock)
                acquired += 1
        assert acquired == at_once


async def test_lock_is_kept_only_while_a_message_holds_it() -> None:
    locks = MessageIdLocks()
    async with locks.lock("a"):
        assert len(locks) == 1
    gc.collect()
    assert len(locks) == 0
