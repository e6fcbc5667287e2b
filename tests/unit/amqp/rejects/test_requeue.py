"""Tests of a requeue: the event returns to its exchange or stays in the queue, or the connection is lost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aiormq
import pytest
from pamqp import commands

from bridge.amqp.rejects.queue import RPC_TIMEOUT_S, BrokerLost, Reject
from bridge.amqp.rejects.requeue import NotRequeued, Requeuer
from tests.support.fake_amqp import HANGS, NACK, REFUSED, FakeAmqp, returned
from tests.support.virtual_time import VirtualTime

if TYPE_CHECKING:
    from pamqp.common import FieldTable

PUBLISH = "publish to kills"
NOT_FOUND = aiormq.exceptions.ChannelNotFoundEntity("NOT_FOUND - no exchange 'kills' in vhost '/'")


def reject(exchange: str | None = "kills", message_id: str = "m-1", **reasons: str) -> Reject:
    headers: FieldTable = {f"x-reject-{name}": value for name, value in reasons.items()}
    if exchange is not None:
        headers["x-reject-exchange"] = exchange
    return Reject(1, b"{}", commands.Basic.Properties(headers=headers, message_id=message_id), "", 1)


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    return VirtualTime(monkeypatch)


async def kept_by(amqp: FakeAmqp, each: Reject | None = None, requeuer: Requeuer | None = None) -> str:
    """Returns the reason why the event stays in the queue."""
    with pytest.raises(NotRequeued) as kept:
        await (requeuer or Requeuer(amqp.amqp, "guest")).publish(each or reject())
    return str(kept.value)


async def test_event_is_published_to_its_exchange_on_one_channel_for_each_exchange() -> None:
    requeuer = Requeuer((amqp := FakeAmqp()).amqp, "guest")
    for exchange in ("kills", "kills", "prices"):
        await requeuer.publish(reject(exchange))
    assert amqp.requests == [
        "channel with confirms",
        "exchange kills passive",
        PUBLISH,
        PUBLISH,
        "channel with confirms",
        "exchange prices passive",
        "publish to prices",
    ]
    [(body, properties), _] = amqp.channels[0].published
    assert (body, properties.headers, properties.message_id) == (b"{}", None, "m-1")


async def test_event_of_the_default_exchange_needs_no_exchange() -> None:
    await Requeuer((amqp := FakeAmqp()).amqp, "guest").publish(reject(""))
    assert amqp.requests == ["channel with confirms", "publish to (default)"]


async def test_event_that_no_bridge_has_rejected_is_kept_without_a_request() -> None:
    amqp = FakeAmqp()
    assert "no bridge has published them" in await kept_by(amqp, reject(None))
    for expiration in ("soon", "", "-1", "9" * 11):
        assert "not a number of milliseconds" in await kept_by(amqp, reject(expiration=expiration))
    assert amqp.requests == []
    await Requeuer(amqp.amqp, "guest").publish(reject(expiration="60000"))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (returned(), "no queue is bound to the exchange 'kills'"),
        (NACK, r"does not accept them for 'kills' (nack)"),
        (REFUSED, "may not write to the exchange 'kills': ACCESS_REFUSED"),
        (NOT_FOUND, "the exchange 'kills' is gone"),
        (
            aiormq.exceptions.ChannelPreconditionFailed("PRECONDITION_FAILED - invalid"),
            "does not accept them for the exchange 'kills': PRECONDITION_FAILED - invalid",
        ),
        (TypeError("no such\nvalue"), r"their properties can't be published again: no such\nvalue"),
    ],
    ids=["returned", "nack", "permission", "gone", "precondition", "value"],
)
async def test_event_that_is_not_accepted_is_kept_with_the_reason(answer: Exception, words: str) -> None:
    assert words in await kept_by(FakeAmqp().on(PUBLISH, answer))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (NOT_FOUND, "the exchange 'kills' is gone"),
        (REFUSED, "may not write to the exchange 'kills': ACCESS_REFUSED"),
        (ValueError("no name"), "'kills' is not an exchange name"),
    ],
    ids=["gone", "permission", "no name"],
)
async def test_unusable_exchange_is_requested_once(answer: Exception, words: str) -> None:
    requeuer = Requeuer((amqp := FakeAmqp().on("exchange kills passive", answer)).amqp, "guest")
    for _ in range(2):
        assert words in await kept_by(amqp, requeuer=requeuer)
    assert amqp.requests.count("exchange kills passive") == 1
    assert amqp.channels[0].is_closed, "a connection has no more than 2047 channels"


async def test_channel_that_the_broker_has_closed_is_not_used_again() -> None:
    """Publishing a message on a closed channel would end the whole connection."""
    requeuer = Requeuer((amqp := FakeAmqp().on(PUBLISH, REFUSED)).amqp, "guest")
    for _ in range(3):
        assert "may not write" in await kept_by(amqp, requeuer=requeuer)
    assert amqp.requests.count(PUBLISH) == 1


async def test_event_that_is_not_accepted_does_not_stop_the_next_one() -> None:
    requeuer = Requeuer((amqp := FakeAmqp().on(PUBLISH, NACK, None)).amqp, "guest")
    await kept_by(amqp, requeuer=requeuer)
    await requeuer.publish(reject())


async def test_silent_broker_interrupts(clock: VirtualTime) -> None:
    with pytest.raises(BrokerLost, match=f"did not confirm within {RPC_TIMEOUT_S:g} s"):
        await Requeuer(FakeAmqp().on(PUBLISH, HANGS).amqp, "guest").publish(reject())


@pytest.mark.parametrize("request_text", [PUBLISH, "exchange kills passive"])
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (aiormq.exceptions.ConnectionClosed(320, "CONNECTION_FORCED"), "was lost: CONNECTION_FORCED"),
        (RuntimeError("closed"), "was lost: closed"),
        (asyncio.CancelledError(), "was lost$"),
    ],
    ids=["lost", "closed", "stray cancellation"],
)
async def test_lost_connection_interrupts(request_text: str, answer: BaseException, words: str) -> None:
    with pytest.raises(BrokerLost, match=words):
        await Requeuer(FakeAmqp().on(request_text, answer).amqp, "guest").publish(reject())


async def test_requested_cancellation_is_no_lost_connection(clock: VirtualTime) -> None:
    publishing = asyncio.create_task(Requeuer(FakeAmqp().on(PUBLISH, HANGS).amqp, "guest").publish(reject()))
    await asyncio.sleep(0.1)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing


@pytest.mark.parametrize(("ids", "at_once"), [("ab", 2), ("aa", 1)])
async def test_first_event_of_an_exchange_is_published_alone_and_those_of_one_id_one_by_one(
    clock: VirtualTime, ids: str, at_once: int
) -> None:
    requeuer = Requeuer((amqp := FakeAmqp().on(PUBLISH, HANGS)).amqp, "guest")
    tasks = [asyncio.create_task(requeuer.publish(reject(message_id=f"first {n}"))) for n in range(2)]
    await asyncio.sleep(0.1)
    assert amqp.requests.count(PUBLISH) == 1, "further messages could end the connection"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    amqp.on(PUBLISH, None)
    await requeuer.publish(reject())
    amqp.on(PUBLISH, HANGS)
    amqp.requests.clear()
    tasks = [asyncio.create_task(requeuer.publish(reject(message_id=each))) for each in ids]
    await asyncio.sleep(0.1)
    assert amqp.requests.count(PUBLISH) == at_once
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
