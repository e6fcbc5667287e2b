"""If a frame from the broker arrives damaged, the bridge reports the damage and reconnects. No event is lost."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import orjson
import pytest

from bridge.amqp.wire.fast_channel import BODY, DELIVER, EMPTY_HEADER, HEADER, METHOD
from tests.support.clients import RawClient
from tests.support.fake_amqp import payload_of, split_frames, with_payload
from tests.support.killmail import killmail
from tests.support.proxy import proxy
from tests.support.publishing import depth, publish
from tests.support.running import bridge_process
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from aio_pika.abc import AbstractConnection

    from tests.support.broker.find import Broker


class Damager:
    """Damages one frame of a delivery after the test has set `armed`. All other bytes pass unchanged."""

    def __init__(self, kind: int, damage: Callable[[bytes], bytes]) -> None:
        self._kind = kind
        self._damage = damage
        self.armed = False
        self.done = False

    def of_a_connection(self) -> Callable[[bytes], bytes]:
        """Returns a function that alters what the broker sends on one connection."""
        held = b""
        delivering = False

        def alter(data: bytes) -> bytes:
            nonlocal held, delivering
            if data.startswith(b"AMQP"):
                return data
            frames, held = split_frames(held + data)
            for at, each in enumerate(frames):
                delivering = delivering or (each[0] == METHOD and payload_of(each).startswith(DELIVER))
                if self.armed and not self.done and delivering and each[0] == self._kind:
                    self.done = True
                    frames[at] = self._damage(each)
            return b"".join(frames)

        return alter


def wrong_end(frame: bytes) -> bytes:
    return frame[:-1] + b"\x00"


def unknown_type(frame: bytes) -> bytes:
    return b"\x05" + frame[1:]


def cut_to(size: int) -> Callable[[bytes], bytes]:
    """Returns a function that shortens the payload of a frame to `size` bytes. The result is still a complete frame."""
    return lambda frame: with_payload(frame, payload_of(frame)[:size])


def without_its_end(frame: bytes) -> bytes:
    """Changes the length field of the last string in the frame, so that it counts one byte too many."""
    payload = payload_of(frame)
    assert payload.endswith(b"\x00"), "the routing key is empty"
    return with_payload(frame, payload[:-1] + b"\x01")


DAMAGES = {
    "end of a method": (METHOD, wrong_end),
    "end of a body": (BODY, wrong_end),
    "type of a frame": (HEADER, unknown_type),
    "method of two bytes": (METHOD, cut_to(2)),
    "method without its names": (METHOD, cut_to(60)),
    "routing key": (METHOD, without_its_end),
    "header": (HEADER, cut_to(EMPTY_HEADER - 1)),
}


@pytest.mark.parametrize(("kind", "damage"), DAMAGES.values(), ids=DAMAGES)
async def test_damaged_delivery_costs_the_connection_and_no_event(
    kind: int,
    damage: Callable[[bytes], bytes],
    broker: Broker,
    amqp: AbstractConnection,
    exchange: str,
    queue: str,
) -> None:
    """The broker delivers the event with the damaged frame and all later events again, in order."""
    damager = Damager(kind, damage)
    async with proxy(broker.url) as tunnel, AsyncExitStack() as stack:
        tunnel.alteration = damager.of_a_connection
        await tunnel.open()
        variables = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", "BRIDGE_QUEUE": queue}
        async with bridge_process(tunnel.url, **variables) as process:
            await process.consuming()
            client = await RawClient.open(await process.port())
            stack.push_async_callback(client.close)
            await publish(amqp, exchange, killmail(0))
            assert orjson.loads(await client.text())["data"] == killmail(0)
            damager.armed = True
            await publish(amqp, exchange, killmail(1), killmail(2))
            await eventually("the loss is logged", lambda: process.logged("broker lost"))
            lost = process.logged("broker lost")
            assert lost is not None
            assert str(lost["error"]).startswith("the broker sent a ")
            await eventually("the recovery is logged", lambda: process.logged("broker recovered"))
            await publish(amqp, exchange, killmail(3))
            received = [orjson.loads(await client.text())["data"] for _ in range(3)]
            assert received == [killmail(1), killmail(2), killmail(3)]
            assert damager.done

            async def acknowledged() -> bool:
                return await depth(amqp, queue) == 0

            await eventually("the queue is empty", acknowledged)
            await client.close()
            process.process.terminate()
            assert await process.ended() == 0
            assert process.texts == []
            faults = [logged for logged in process.lines if logged["level"] in {"error", "critical"}]
            assert faults == []
