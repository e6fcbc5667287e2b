"""Tests that a session passes the deliveries of its channel to the handler, and acknowledges them to the broker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from pamqp import commands, frame
from pamqp.header import ContentHeader

from bridge.amqp.consume.session import ConsumerSession, Delivery
from bridge.amqp.status import Gap
from bridge.amqp.wire.fast_channel import FastChannel
from bridge.contract.update_id import UpdateId
from tests.support.fake_amqp import OWN, FakeAmqp, delivery, header, method, part, split_frames

if TYPE_CHECKING:
    from collections.abc import Sequence

PREFETCH = 8
HALF = PREFETCH // 2
FLUSH = "flush"

Sent = tuple[int, bool]
"""An acknowledged tag, and True if the acknowledgement also covers all earlier tags."""


class Handler:
    """Handles the deliveries of a session, and records the session's writes to the broker."""

    def __init__(self) -> None:
        self.log: list[int | str | list[Sent]] = []
        """What happened, in order: the tag of each delivery, FLUSH for each flush, and the acknowledgements of each
        write to the transport."""
        self.deliveries: list[Delivery] = []
        self.held: set[int] = set()
        """The tags of the deliveries that stay unsettled after a flush."""
        self._settled: set[int] = set()
        self.settles_at_once = False
        """If True, each delivery is settled as soon as it arrives, as the bridge settles duplicates."""
        self.fast_channel = FastChannel()
        self.fast_channel.attach(self)
        channel = FakeAmqp().open_channel()
        self.session = ConsumerSession(self, channel, self.fast_channel, PREFETCH, on_open=lambda: None)
        self.fast_channel.consume(OWN, self.session)

    def deliver(self, deliveries: Sequence[Delivery]) -> None:
        for each in deliveries:
            self.log.append(each.tag)
            self.deliveries.append(each)
            if self.settles_at_once:
                self.settle(each.tag)
        self.log.append(FLUSH)
        self.settle(*(each.tag for each in self.deliveries if each.tag not in self.held | self._settled))

    def record_id(self, update_id: UpdateId) -> None:
        raise AssertionError("only a stream has markers")

    def on_caught_up(self) -> None:
        raise AssertionError("only a stream has a history")

    def on_gap(self, gap: Gap, update_id: UpdateId | None) -> None:
        raise AssertionError("a session reports no gaps")

    def on_session_end(self) -> None:
        raise AssertionError("the consumer reports a session's end")

    def write(self, data: bytes) -> None:
        frames, rest = split_frames(data)
        assert rest == b""
        sent = []
        for each in frames:
            _, channel, ack = frame.unmarshal(each)
            assert channel == OWN
            assert isinstance(ack, commands.Basic.Ack)
            assert ack.delivery_tag is not None
            sent.append((ack.delivery_tag, bool(ack.multiple)))
        self.log.append(sent)

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        raise AssertionError("a session does not pause reading")

    resume_reading = pause_reading

    def feed(self, *tags: int) -> None:
        """Delivers messages with the given tags in one read."""
        assert self.fast_channel.feed(b"".join(delivery(b"body", tag=tag) for tag in tags)) == b""

    def settle(self, *tags: int) -> None:
        """Settles deliveries, as a handler does."""
        self._settled.update(tags)
        for tag in tags:
            next(each for each in self.deliveries if each.tag == tag).settle()

    def new(self) -> list[int | str | list[Sent]]:
        """Returns what was recorded since the last call."""
        log, self.log = self.log, []
        return log


@pytest.fixture
async def handler() -> Handler:
    return Handler()


async def turn() -> None:
    """Waits for one turn of the loop, after which all scheduled calls have run."""
    await asyncio.sleep(0)


# Deliveries that arrive in the same read


async def test_deliveries_of_one_read_are_flushed_once_and_acknowledged_in_one_write(handler: Handler) -> None:
    """The deliveries are handled in the same call that receives them, without another turn of the loop."""
    handler.feed(1, 2, 3)
    assert handler.new() == [1, 2, 3, FLUSH, [(3, True)]]
    handler.feed(4)
    assert handler.new() == [4, FLUSH, [(4, True)]]
    await turn()
    assert handler.new() == [], "the next turn does nothing"


async def test_delivery_has_the_fields_of_its_frames() -> None:
    handler = Handler()
    content = ContentHeader(
        body_size=4, properties=commands.Basic.Properties(message_type="kill", content_encoding="br")
    )
    frames = method(7, redelivered=True, exchange="kills", routing_key="a.b") + frame.marshal(content, OWN)
    handler.fast_channel.feed(frames + part(b"bo") + part(b"dy"))
    [came] = handler.deliveries
    assert (came.tag, came.redelivered, came.exchange, came.routing_key) == (7, True, "kills", "a.b")
    assert (came.properties.type, came.properties.encoding, came.body) == ("kill", "br", b"body")
    assert came.current


async def test_delivery_that_is_not_complete_is_not_flushed(handler: Handler) -> None:
    handler.fast_channel.feed(method(1) + header(4) + part(b"bo"))
    assert handler.new() == []
    handler.fast_channel.feed(part(b"dy"))
    assert handler.new() == [1, FLUSH, [(1, True)]]


async def test_delivery_that_is_settled_while_it_is_delivered_is_acknowledged_with_the_others(handler: Handler) -> None:
    handler.settles_at_once = True
    handler.feed(1, 2)
    assert handler.new() == [1, 2, FLUSH, [(2, True)]]
    await turn()
    assert handler.new() == []


async def test_without_settled_deliveries_nothing_is_written(handler: Handler) -> None:
    handler.held = {1, 2}
    handler.feed(1, 2)
    await turn()
    assert handler.new() == [1, 2, FLUSH]
    assert handler.session.outstanding == 2


# Settled later


async def test_delivery_that_is_settled_later_is_acknowledged_once_in_the_next_turn(handler: Handler) -> None:
    handler.held = {1, 2, 3}
    handler.feed(1, 2, 3)
    handler.new()
    handler.settle(2, 1)
    assert handler.new() == [], "more deliveries may be settled in this turn"
    handler.settle(3)
    await turn()
    assert handler.new() == [[(3, True)]]
    await turn()
    assert handler.new() == []


async def test_each_turn_with_settled_deliveries_has_its_own_acknowledgement(handler: Handler) -> None:
    handler.held = {1, 2}
    handler.feed(1, 2)
    handler.new()
    for tag in (1, 2):
        handler.settle(tag)
        await turn()
        assert handler.new() == [[(tag, True)]]


async def test_delivery_that_is_settled_before_the_next_read_is_acknowledged_with_it(handler: Handler) -> None:
    handler.held = {1}
    handler.feed(1)
    handler.settle(1)
    handler.feed(2)
    assert handler.new() == [1, FLUSH, 2, FLUSH, [(2, True)]]
    await turn()
    assert handler.new() == []


# Not settled


async def test_unsettled_delivery_holds_back_the_acknowledgements_of_later_ones(handler: Handler) -> None:
    handler.held = {2}
    handler.feed(1, 2, 3)
    assert handler.new() == [1, 2, 3, FLUSH, [(1, True)]]
    handler.feed(4)
    assert handler.new() == [4, FLUSH]
    handler.settle(2)
    await turn()
    assert handler.new() == [[(4, True)]]
    assert handler.session.outstanding == 0


async def test_deliveries_after_an_unsettled_one_are_acknowledged_at_half_of_the_prefetch(handler: Handler) -> None:
    """If deliveries that can't be settled used up the prefetch, the broker would send no more events."""
    handler.held = {1}
    alone = range(2, 2 + HALF)
    handler.feed(1, *alone)
    assert handler.new() == [1, *alone, FLUSH]
    last = alone.stop
    handler.feed(last)
    assert handler.new() == [last, FLUSH, [(tag, False) for tag in (*alone, last)]]
    assert handler.session.outstanding == 1
    handler.settle(1)
    await turn()
    assert handler.new() == [[(1, True)]]


# The end of the channel


async def test_nothing_is_acknowledged_after_the_end_of_the_channel(handler: Handler) -> None:
    handler.held = {1, 2}
    handler.feed(1, 2)
    handler.settle(1)
    handler.session.end()
    handler.settle(2)
    await turn()
    handler.session.acknowledge()
    assert handler.new() == [1, 2, FLUSH]
    assert not any(each.current for each in handler.deliveries)
    assert not handler.session.all_settled.is_set()


async def test_delivery_after_the_end_is_dropped(handler: Handler) -> None:
    handler.session.end()
    handler.feed(1)
    await turn()
    assert handler.new() == []


async def test_settled_is_set_when_the_last_delivery_was_acknowledged_and_not_before(handler: Handler) -> None:
    settled = handler.session.all_settled
    handler.held = {1, 2}
    handler.feed(1, 2)
    assert not settled.is_set()
    waiting = asyncio.create_task(settled.wait())
    handler.settle(1)
    await turn()
    assert not settled.is_set()
    handler.settle(2)
    assert not settled.is_set(), "the delivery is settled but not acknowledged"
    await turn()
    assert handler.new()[-1] == [(2, True)]
    assert await waiting


async def test_settled_can_be_cleared_and_is_set_again(handler: Handler) -> None:
    handler.feed(1)
    assert handler.session.all_settled.is_set()
    handler.session.all_settled.clear()
    handler.held = {2}
    handler.feed(2)
    assert not handler.session.all_settled.is_set()
    handler.settle(2)
    await turn()
    assert handler.session.all_settled.is_set()
