"""Reading a stream of a real broker's: nothing twice, nothing lost in silence, whatever becomes of it."""

from zlib import crc32

from aio_pika.abc import AbstractConnection

from bridge.broker.stream import Stream
from bridge.demo.broker import Broker
from tests.support.publishing import publish
from tests.support.recipient import CAUGHT_UP, Came, Recorder, reading
from tests.support.waiting import eventually

BYTES = 2**20


def stream_of(name: str, window: int = 1000, max_bytes: int = BYTES) -> Stream:
    return Stream(name, 3600.0, max_bytes, window)


def bodies(first: int, last: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, last)]


async def has(recorder: Recorder, wanted: list[bytes]) -> None:
    """Returns when all of these are there; fails where anything else is."""
    await eventually("all are read", lambda: len(recorder.bodies) >= len(wanted))
    assert recorder.bodies == wanted


async def test_what_was_there_before_is_read_as_the_past_and_in_order(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str
) -> None:
    first, second = Recorder(), Recorder()
    async with reading(broker.url, exchange, stream_of(queue), first):
        await eventually("it reads", lambda: CAUGHT_UP in first.log)
        await publish(amqp, exchange, *bodies(0, 50))
        await has(first, bodies(0, 50))
        assert first.past == []
        async with reading(broker.url, exchange, stream_of(queue), second):
            await eventually("it has read", lambda: CAUGHT_UP in second.log)
            assert second.past == bodies(0, 50)
            await publish(amqp, exchange, *bodies(50, 60))
            await has(first, bodies(0, 60))
            await has(second, bodies(0, 60))
    # All bridges come to the same ids, marks among them, and each one's check is its body's.
    assert second.ids == first.ids[: len(second.ids)] == sorted(first.ids)
    assert all(came.id and came.id.check == crc32(came.body) for came in first.log if isinstance(came, Came))
    assert first.gaps == second.gaps == []
