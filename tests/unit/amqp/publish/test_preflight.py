"""The preflight check reports a wrong setting or broker before a command begins."""

from __future__ import annotations

import aiormq
import pytest

from bridge.amqp.publish import preflight as module
from bridge.amqp.publish.preflight import check_broker
from bridge.errors import BrokerRefusal, ConfigurationError
from bridge.timing import DEFAULT
from tests.support.fake_amqp import HANGS, NO_EXCHANGE, FakeAmqp, FakeBroker
from tests.support.virtual_time import VirtualTime

LOOK = "exchange killmails passive"


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> FakeBroker:
    monkeypatch.setattr(module, "open_connection", (broker := FakeBroker()).open_connection)
    return broker


@pytest.mark.parametrize("exchange", ["killmails", None])
async def test_broker_that_has_the_exchange_can_be_used(broker: FakeBroker, exchange: str | None) -> None:
    broker.connections.append(amqp := FakeAmqp())
    await check_broker((), exchange)
    assert (LOOK in amqp.requests, broker.closed) == (exchange is not None, 1)


async def test_missing_exchange_is_a_fault_of_the_settings(broker: FakeBroker) -> None:
    broker.connections.append(FakeAmqp().on(LOOK, NO_EXCHANGE))
    with pytest.raises(ConfigurationError, match="there is no exchange 'killmails': name one that exists, or start"):
        await check_broker((), "killmails")


async def test_missing_exchange_with_a_reserved_name_has_another_hint(broker: FakeBroker) -> None:
    absent = aiormq.exceptions.ChannelNotFoundEntity("NOT_FOUND - no exchange 'amq.mine' in vhost '/'")
    broker.connections.append(FakeAmqp().on("exchange amq.mine passive", absent))
    with pytest.raises(
        ConfigurationError, match=r"'amq\.mine': name one that exists; RabbitMQ reserves names that"
    ) as no:
        await check_broker((), "amq.mine")
    assert "start the bridge" not in str(no.value)


@pytest.mark.parametrize("error", [ConnectionError("refused"), BrokerRefusal("wrong password")], ids=repr)
async def test_error_of_the_connection_is_raised_unchanged(broker: FakeBroker, error: Exception) -> None:
    broker.connections.append(error)
    with pytest.raises(type(error), match=str(error)):
        await check_broker((), "killmails")


async def test_broker_that_does_not_answer_is_given_up(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    VirtualTime(monkeypatch)
    broker.connections.append(FakeAmqp().on(LOOK, HANGS))
    with pytest.raises(ConnectionError, match=f"does not answer within {DEFAULT.setup_timeout_s:g} s"):
        await check_broker((), "killmails")
