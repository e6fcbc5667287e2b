"""Tests of the errors of a Publisher.

While the broker refuses the publisher, each call raises an error with the reason for the refusal.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from pathlib import Path

import aiormq
import pytest

from bridge.amqp import status, supervisor
from bridge.amqp.publish import confirm_channel
from bridge.amqp.publish.publisher import ExchangeNotFound, InvalidUpdate, NotConfirmed, Publisher
from bridge.errors import BrokerRefusal
from tests.support.fake_amqp import HANGS, NACK, NO_EXCHANGE, REFUSED, FakeAmqp, FakeBroker, returned
from tests.support.killmail import EXAMPLE, killmail
from tests.support.virtual_time import VirtualTime
from tests.support.waiting import eventually

PUBLISH = "publish to killmails"
LOOK = "exchange killmails passive"


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    return VirtualTime(monkeypatch, supervisor, status)


@pytest.fixture
def broker(clock: VirtualTime, monkeypatch: pytest.MonkeyPatch) -> FakeBroker:
    broker = FakeBroker()
    monkeypatch.setattr(confirm_channel, "open_connection", broker.open_connection)
    return broker


async def test_update_is_published_persistent_to_its_exchange(broker: FakeBroker) -> None:
    broker.connections.append(amqp := FakeAmqp())
    async with Publisher() as publisher:
        assert await publisher.broadcast("killmail", EXAMPLE)
    [(_, properties)] = amqp.channels[0].published
    assert (properties.message_type, properties.delivery_mode) == ("killmail", 2)
    assert broker.closed == 1


async def test_unroutable_update_returns_false(broker: FakeBroker) -> None:
    broker.connections.append(FakeAmqp().on(PUBLISH, returned(), None))
    async with Publisher() as publisher:
        assert not await publisher.broadcast("killmail", EXAMPLE)
        assert await publisher.broadcast("killmail", EXAMPLE)


async def test_refused_publisher_tries_again_with_the_next_update(broker: FakeBroker) -> None:
    """If an operator grants the permission, the publisher works without a restart."""
    broker.connections += [BrokerRefusal("no permission"), BrokerRefusal("still none"), FakeAmqp()]
    async with Publisher() as publisher:
        for refusal in ("no permission", "still none"):
            with pytest.raises(BrokerRefusal, match=refusal):
                await publisher.broadcast("killmail", EXAMPLE)
        assert await publisher.broadcast("killmail", EXAMPLE)
    assert broker.attempts == 3


async def test_exchange_that_may_not_be_declared_is_a_refusal_until_the_permission_is_granted(
    broker: FakeBroker,
) -> None:
    broker.connections += [
        FakeAmqp().on(LOOK, NO_EXCHANGE).on("exchange killmails fanout durable", REFUSED),
        FakeAmqp(),
    ]
    async with Publisher(declare=True) as publisher:
        with pytest.raises(BrokerRefusal, match="the exchange 'killmails' can't be used: ACCESS_REFUSED"):
            await publisher.broadcast("killmail", EXAMPLE)
        assert await publisher.broadcast("killmail", EXAMPLE)


MADE = "exchange killmails fanout durable"


async def test_missing_exchange_raises_an_error_that_names_it_and_is_not_declared(broker: FakeBroker) -> None:
    """An exchange is missing if its name is wrong, or if the bridge has not started yet.

    Once the missing exchange exists, the same publisher works.
    """
    broker.connections += [missing := FakeAmqp().on(LOOK, NO_EXCHANGE), FakeAmqp()]
    async with Publisher() as publisher:
        with pytest.raises(ExchangeNotFound, match=r"no exchange 'killmails': .*start the bridge.*declare=True"):
            await publisher.broadcast("killmail", EXAMPLE)
        assert MADE not in missing.requests
        assert missing.channels[0].published == []
        assert await publisher.broadcast("killmail", EXAMPLE)


async def test_missing_exchange_with_a_reserved_name_is_not_to_be_declared(broker: FakeBroker) -> None:
    absent = aiormq.exceptions.ChannelNotFoundEntity("NOT_FOUND - no exchange 'amq.mine' in vhost '/'")
    broker.connections.append(FakeAmqp().on("exchange amq.mine passive", absent))
    async with Publisher(exchange="amq.mine") as publisher:
        with pytest.raises(
            ExchangeNotFound, match=r"'amq\.mine': RabbitMQ reserves .* name another exchange"
        ) as raised:
            await publisher.broadcast("killmail", EXAMPLE)
    assert "declare=True" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["http://localhost/"], "amqp_url: expected amqp://"),
        (["amqp://"], "amqp_url: expected amqp://"),
        (["amqp://localhost", ""], "exchange: '' is not valid"),
        (["amqp://localhost", "x" * 200], "a name of 1 to 127"),
    ],
)
def test_invalid_url_or_name_is_refused_at_once(arguments: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Publisher(*arguments)


def test_folder_without_schemas_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the folder has no schema files"):
        Publisher(schemas=tmp_path)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")], ids=str)
async def test_number_that_json_does_not_have_is_refused_and_does_not_become_null(number: float) -> None:
    publisher = Publisher("amqp://localhost")
    with pytest.raises(InvalidUpdate, match="not JSON compliant"):
        await publisher.broadcast("killmail", killmail(1, victimId=number))
    with pytest.raises(InvalidUpdate, match="not JSON compliant"):
        await publisher.broadcast("killmail", killmail(1, victim=dataclasses.make_dataclass("Victim", ["id"])(number)))


async def test_declaring_an_exchange_with_a_reserved_name_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"exchange: 'amq\.mine' can't be declared: RabbitMQ reserves names that begin"
    ):
        Publisher(exchange="amq.mine", declare=True)


@pytest.mark.parametrize("timeout_s", [0, 0.0, -1, -0.5, float("nan"), float("-inf")])
async def test_timeout_that_is_not_above_zero_is_an_error(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="timeout_s: expected a number of seconds above 0; got "):
        Publisher(timeout_s=timeout_s)


@pytest.mark.parametrize("max_message_bytes", [0, -1])
async def test_limit_of_zero_bytes_is_an_error(max_message_bytes: int) -> None:
    with pytest.raises(ValueError, match="max_message_bytes: expected a number of bytes above 0; got "):
        Publisher(max_message_bytes=max_message_bytes)


@pytest.mark.parametrize(
    ("update_type", "problem"),
    [("", "the update type is empty"), (None, "the update type is empty"), ("binary", "'binary' is no update type")],
)
@pytest.mark.parametrize("data", [EXAMPLE, {"type": "killmail", "data": EXAMPLE}], ids=["plain", "wrapped"])
async def test_unknown_update_type_is_an_error_that_names_the_known_ones(
    broker: FakeBroker, update_type: str | None, problem: str, data: object
) -> None:
    publisher = Publisher()
    with pytest.raises(InvalidUpdate, match=f"unknown-type: {problem}; known types: .*killmail"):
        await publisher.broadcast(update_type, data)  # type: ignore[arg-type]  # a publisher may be without types
    assert broker.attempts == 0


async def test_missing_exchange_is_declared_on_demand(broker: FakeBroker) -> None:
    broker.connections.append(amqp := FakeAmqp().on(LOOK, NO_EXCHANGE))
    async with Publisher(declare=True) as publisher:
        assert await publisher.broadcast("killmail", EXAMPLE)
    assert MADE in amqp.requests


async def test_inaccessible_exchange_counts_as_existing(broker: FakeBroker) -> None:
    broker.connections.append(FakeAmqp().on(LOOK, REFUSED))
    async with Publisher() as publisher:
        assert await publisher.broadcast("killmail", EXAMPLE)


async def test_exchange_that_vanishes_later_is_waited_for(broker: FakeBroker) -> None:
    first = FakeAmqp()
    broker.connections += [first, FakeAmqp().on(LOOK, NO_EXCHANGE), FakeAmqp()]
    async with Publisher() as publisher:
        assert await publisher.broadcast("killmail", EXAMPLE)
        first.lose()
        await eventually(
            "the channel is closed", lambda: publisher._channel is not None and not publisher._channel.is_open
        )
        assert await publisher.broadcast("killmail", EXAMPLE)
    assert broker.attempts == 3


async def test_exchange_that_vanishes_for_good_is_the_reason_of_notconfirmed(broker: FakeBroker) -> None:
    first = FakeAmqp()
    broker.connections += [first, *(FakeAmqp().on(LOOK, NO_EXCHANGE) for _ in range(100))]
    async with Publisher(timeout_s=5) as publisher:
        assert await publisher.broadcast("killmail", EXAMPLE)
        first.lose()
        await eventually(
            "the channel is closed", lambda: publisher._channel is not None and not publisher._channel.is_open
        )
        with pytest.raises(NotConfirmed, match="no exchange 'killmails'"):
            await publisher.broadcast("killmail", EXAMPLE)


async def test_exchange_that_may_not_be_written_to_is_a_refusal_without_a_retry(broker: FakeBroker) -> None:
    broker.connections += [FakeAmqp().on(PUBLISH, REFUSED), FakeAmqp()]
    async with Publisher() as publisher:
        with pytest.raises(BrokerRefusal, match="the exchange 'killmails' can't be used: ACCESS_REFUSED"):
            await publisher.broadcast("killmail", EXAMPLE)


async def test_update_that_the_broker_does_not_accept_is_published_again(broker: FakeBroker) -> None:
    broker.connections.append(amqp := FakeAmqp().on(PUBLISH, NACK, NACK, None))
    async with Publisher() as publisher:
        assert await publisher.broadcast("killmail", EXAMPLE)
    assert amqp.requests.count(PUBLISH) == 3


async def test_update_that_is_never_confirmed_raises_the_reason(broker: FakeBroker) -> None:
    broker.connections.append(FakeAmqp().on(PUBLISH, NACK))
    async with Publisher(timeout_s=5) as publisher:
        with pytest.raises(
            NotConfirmed, match=r"did not confirm within 5 s: the broker does not accept the message \(nack\)"
        ):
            await publisher.broadcast("killmail", EXAMPLE)


async def test_past_failure_is_not_the_reason_of_a_later_one(broker: FakeBroker) -> None:
    broker.connections.append(FakeAmqp().on(PUBLISH, NACK, None, HANGS))
    async with Publisher(timeout_s=5) as publisher:
        assert await publisher.broadcast("killmail", EXAMPLE)
        with pytest.raises(NotConfirmed, match="it may be short of memory or disk"):
            await publisher.broadcast("killmail", EXAMPLE)


async def test_unroutable_update_also_clears_a_past_failure(broker: FakeBroker) -> None:
    broker.connections.append(FakeAmqp().on(PUBLISH, NACK, returned(), HANGS))
    async with Publisher(timeout_s=5) as publisher:
        assert not await publisher.broadcast("killmail", EXAMPLE)
        with pytest.raises(NotConfirmed, match="it may be short of memory or disk"):
            await publisher.broadcast("killmail", EXAMPLE)


async def test_failed_connection_is_the_reason_of_notconfirmed(broker: FakeBroker) -> None:
    broker.connections += [ConnectionError("connection refused")] * 100
    async with Publisher(timeout_s=5) as publisher:
        with pytest.raises(NotConfirmed, match="connection refused"):
            await publisher.broadcast("killmail", EXAMPLE)
    assert broker.attempts > 2


async def test_restored_connection_clears_the_reason(broker: FakeBroker) -> None:
    broker.connections += [ConnectionError("connection refused"), FakeAmqp().on(PUBLISH, HANGS)]
    async with Publisher(timeout_s=5) as publisher:
        with pytest.raises(NotConfirmed, match="it may be short of memory or disk"):
            await publisher.broadcast("killmail", EXAMPLE)


async def test_lost_connection_and_its_return_are_logged_once(
    broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first, second = FakeAmqp(), FakeAmqp()
    broker.connections += [first, ConnectionError("refused"), ConnectionError("refused"), second]
    async with Publisher() as publisher:
        assert await publisher.broadcast("killmail", EXAMPLE)
        first.lose()
        assert await publisher.broadcast("killmail", EXAMPLE)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "no connection to the broker: CONNECTION_FORCED - shutdown"),
        ("INFO", "the connection to the broker is back"),
    ]
    assert len(second.channels[0].published) == 1


async def test_refusal_after_a_working_connection_is_a_loss_and_is_retried(broker: FakeBroker) -> None:
    """The broker accepted this publisher before.

    The refusal may be temporary, because an operator may be in the middle of changing the broker.
    """
    first = FakeAmqp()
    broker.connections += [first, BrokerRefusal("password changed"), FakeAmqp()]
    async with Publisher() as publisher:
        assert await publisher.broadcast("killmail", EXAMPLE)
        first.lose()
        await eventually(
            "the channel is closed", lambda: publisher._channel is not None and not publisher._channel.is_open
        )
        assert await publisher.broadcast("killmail", EXAMPLE)
    assert broker.attempts == 3


async def test_closed_publisher_publishes_nothing_more(broker: FakeBroker) -> None:
    broker.connections += [FakeAmqp(), FakeAmqp()]
    publisher = Publisher()
    assert await publisher.broadcast("killmail", EXAMPLE)
    await publisher.close()
    await publisher.close()
    with pytest.raises(RuntimeError, match="this publisher is closed"):
        await publisher.broadcast("killmail", EXAMPLE)
    with pytest.raises(RuntimeError, match="this publisher is closed"):
        await publisher.__aenter__()
    assert broker.attempts == 1


async def test_publisher_that_was_never_used_closes(broker: FakeBroker) -> None:
    await Publisher().close()
    assert broker.attempts == 0


async def test_close_ends_an_update_that_waits_for_a_connection(broker: FakeBroker) -> None:
    publisher = Publisher()
    waiting = [asyncio.create_task(publisher.broadcast("killmail", EXAMPLE)) for _ in range(3)]
    await eventually("the publisher connects", lambda: broker.attempts)
    await publisher.close()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["this publisher is closed"] * 3
