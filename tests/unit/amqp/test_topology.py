"""Tests of the setup of exchanges and queues that are missing, that exist, or that are not up yet."""

from collections.abc import Mapping
from typing import Any, cast

import aiormq
import pytest
from structlog.testing import capture_logs

from bridge.amqp.connection import Connection
from bridge.amqp.topology import (
    Exchange,
    Queue,
    Topology,
    ensure_queue,
    exchange_exists,
    set_up,
)
from bridge.errors import BrokerRefusal
from tests.support.fake_amqp import NO_EXCHANGE, REFUSED, FakeAmqp

NOT_UP = "NOT_FOUND - home node 'rabbit@host' of durable queue 'kept' in vhost '/' is down or inaccessible"
ABSENT = "NOT_FOUND - no queue 'kept' in vhost '/'"


class Returning:
    """A fake of a broker that has just started. A passive declaration fails, and an active declaration succeeds.

    A real RabbitMQ gives these answers only for about 50 ms after it starts, so a test can't rely on getting them.
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


async def test_queue_that_is_not_up_yet_does_not_count_as_declared() -> None:
    """A queue that becomes available late may have lost confirmed events.

    If the bridge replaced a queue that is not available yet, it would not report that the events in this queue are
    lost.
    """
    broker = Returning(NOT_UP)
    with pytest.raises(aiormq.exceptions.ChannelNotFoundEntity, match="is down or inaccessible"):
        await ensure_queue(cast("Connection", broker), "kept", {})
    assert broker.declared == []


async def test_missing_queue_is_declared() -> None:
    broker = Returning(ABSENT)
    assert await ensure_queue(cast("Connection", broker), "kept", {})
    assert broker.declared == ["kept"]


# Exchanges


def mismatch(argument: str, current: str) -> aiormq.exceptions.ChannelPreconditionFailed:
    return aiormq.exceptions.ChannelPreconditionFailed(
        f"PRECONDITION_FAILED - inequivalent arg '{argument}' for exchange 'kills' in vhost '/': received 'x' but "
        f"current is '{current}'"
    )


class Made:
    """Sets up the exchange `kills` with the queue `kept`, and counts the declarations of missing parts."""

    def __init__(self, *, queue_made: bool = False) -> None:
        self.times = 0
        self._queue = Queue("kept", queue_made)

    def _note(self) -> None:
        self.times += 1

    async def _prepare(self) -> Queue:
        return self._queue

    async def set_up(
        self, amqp: FakeAmqp, known: Mapping[str, Exchange] | None = None, exchange: str = "kills"
    ) -> Topology:
        return await set_up(amqp.amqp, [exchange], known or {}, self._prepare, self._note)


@pytest.mark.parametrize("queue_made", [True, False])
async def test_existing_exchange_and_queue_are_used_and_a_declaration_is_reported(*, queue_made: bool) -> None:
    made = Made(queue_made=queue_made)
    found = await made.set_up(amqp := FakeAmqp())
    assert found == Topology((Exchange("kills", "fanout"),), "kept")
    assert made.times == queue_made
    assert all(channel.is_closed for channel in amqp.channels)


async def test_missing_exchange_is_declared_as_durable_fanout_and_reported() -> None:
    made = Made()
    amqp = FakeAmqp().on("exchange kills passive", NO_EXCHANGE)
    with capture_logs() as logged:
        await made.set_up(amqp)
    assert amqp.requests[2] == "channel"
    assert amqp.requests[3] == "exchange kills fanout durable"
    assert made.times == 1
    [line] = logged
    assert (line["log_level"], line["event"], line["exchange"]) == ("warning", "exchange declared", "kills")
    assert "BRIDGE_EXCHANGES" in line["hint"]


async def test_declaration_is_reported_even_if_a_later_step_fails() -> None:
    made = Made()
    amqp = FakeAmqp().on("exchange kills passive", NO_EXCHANGE).on("bind kept to kills #", ConnectionError("gone"))
    with pytest.raises(ConnectionError):
        await made.set_up(amqp)
    assert made.times == 1


async def test_properties_of_an_exchange_are_found_in_the_brokers_errors() -> None:
    amqp = FakeAmqp()
    amqp.on("exchange kills fanout durable", mismatch("durable", "false"))
    amqp.on("exchange kills fanout", mismatch("type", "topic"))
    found = await Made().set_up(amqp)
    assert found.exchanges == (Exchange("kills", "topic", durable=False),)


async def test_direct_exchange_is_a_refusal() -> None:
    amqp = FakeAmqp().on("exchange kills fanout durable", mismatch("type", "direct"))
    with pytest.raises(BrokerRefusal, match="'kills' is a direct exchange, which would never deliver to the bridge"):
        await Made().set_up(amqp)


@pytest.mark.parametrize(
    "answer",
    [
        REFUSED,
        aiormq.exceptions.ChannelPreconditionFailed("inequivalent arg 'alternate-exchange'"),
        mismatch("type", "x"),
    ],
    ids=["permission", "arguments", "never agrees"],
)
async def test_exchange_with_unknown_properties_is_still_used(answer: Exception) -> None:
    amqp = FakeAmqp().on("exchange kills fanout durable", answer).on("exchange kills x durable", answer)
    found = await Made().set_up(amqp)
    assert found.exchanges == (Exchange("kills", None),)


async def test_missing_exchange_with_unknown_properties_is_not_declared() -> None:
    made = Made()
    amqp = FakeAmqp().on("exchange kills passive", NO_EXCHANGE)
    with pytest.raises(
        ConnectionError, match="'kills' is gone, and the bridge does not know its type; declare it again"
    ):
        await made.set_up(amqp, {"kills": Exchange("kills", None)})
    assert made.times == 0
    assert not [request for request in amqp.requests if "durable" in request]


async def test_missing_permission_for_an_exchange_is_a_refusal() -> None:
    amqp = FakeAmqp().on("exchange kills passive", NO_EXCHANGE).on("exchange kills fanout durable", REFUSED)
    with pytest.raises(BrokerRefusal, match=r"ACCESS_REFUSED.*; create the exchange, or grant configure on it; see"):
        await Made().set_up(amqp)


@pytest.mark.parametrize("name", ["amq.kills", "amq."])
async def test_missing_exchange_with_a_reserved_name_is_a_refusal_that_asks_for_another_name(name: str) -> None:
    absent = aiormq.exceptions.ChannelNotFoundEntity(f"NOT_FOUND - no exchange '{name}' in vhost '/'")
    amqp = FakeAmqp().on(f"exchange {name} passive", absent)
    amqp.on(f"exchange {name} fanout durable", REFUSED)
    with pytest.raises(BrokerRefusal, match=f"no exchange '{name}', and RabbitMQ reserves .* name another exchange"):
        await Made().set_up(amqp, exchange=name)


async def test_existing_exchange_with_a_reserved_name_is_used() -> None:
    found = await Made().set_up(FakeAmqp(), exchange="amq.fanout")
    assert found.exchanges == (Exchange("amq.fanout", "fanout"),)


# Missing permissions


async def test_inaccessible_exchange_is_used_and_reported() -> None:
    made = Made()
    amqp = FakeAmqp().on("exchange kills passive", REFUSED).on("exchange kills fanout durable", REFUSED)
    found = await made.set_up(amqp)
    assert found == Topology((Exchange("kills", None),), "kept", inaccessible=("kills",))
    assert made.times == 0


# Existence


async def test_exchange_exists_or_does_not_or_is_not_up_yet() -> None:
    look = "exchange killmails passive"
    not_up = aiormq.exceptions.ChannelNotFoundEntity(NOT_UP)
    assert await exchange_exists(FakeAmqp().amqp, "killmails")
    assert not await exchange_exists(FakeAmqp().on(look, NO_EXCHANGE).amqp, "killmails")
    with pytest.raises(ConnectionError, match="is down or inaccessible"):
        await exchange_exists(FakeAmqp().on(look, not_up).amqp, "killmails")
    assert await exchange_exists(FakeAmqp().on(look, REFUSED).amqp, "killmails"), (
        "the next request reports the missing permission"
    )
