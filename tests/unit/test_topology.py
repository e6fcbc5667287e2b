"""What is made, and what is only not there yet."""

from typing import Any, cast

import aiormq
import pytest

from bridge.broker.topology import Amqp, ensure_queue

NOT_UP = "NOT_FOUND - home node 'rabbit@host' of durable queue 'kept' in vhost '/' is down or inaccessible"
ABSENT = "NOT_FOUND - no queue 'kept' in vhost '/'"


class Returning:
    """A broker that has just been started: whoever looks is too early, and whoever declares is not.

    RabbitMQ is so for some 50 ms of its start, and a test can't hit them.
    """

    def __init__(self, words: str) -> None:
        self.declared: list[str] = []
        self._words = words

    async def channel(self, publisher_confirms: bool) -> "Returning":
        return self

    async def queue_declare(self, queue: str, passive: bool = False, **_arguments: Any) -> None:
        if passive:
            raise aiormq.exceptions.ChannelNotFoundEntity(self._words)
        self.declared.append(queue)

    async def close(self) -> None:
        pass


async def test_queue_that_is_not_up_yet_is_not_taken_for_one_that_was_just_made() -> None:
    """What the broker had confirmed for it may be lost, and who has just made a queue says nothing of that."""
    broker = Returning(NOT_UP)
    with pytest.raises(aiormq.exceptions.ChannelNotFoundEntity, match="is down or inaccessible"):
        await ensure_queue(cast("Amqp", broker), "kept", {})
    assert broker.declared == []


async def test_queue_that_does_not_exist_is_made() -> None:
    broker = Returning(ABSENT)
    assert await ensure_queue(cast("Amqp", broker), "kept", {})
    assert broker.declared == ["kept"]
