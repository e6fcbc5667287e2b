"""If a bridge with a slow event loop reads answers late, it must not blame the broker."""

import asyncio
import ssl
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
from aio_pika.abc import AbstractConnection

from bridge.timing import Timing
from tests.support.broker.find import Broker
from tests.support.certificates import certificate
from tests.support.clients import READ_LIMIT_S, RawClient
from tests.support.killmail import killmail
from tests.support.publishing import publish
from tests.support.running import consumer_of, port_of, running, sample
from tests.support.waiting import eventually

TURN_S = 0.05
"""Each turn of the event loop takes this long, as if the bridge had thousands of clients and only a part of a core."""

LIMIT_S = 0.5
"""The time limit for the broker's answers.

To a bridge with a slow loop, each answer seems to take longer than it really does.
"""

TIMING = Timing(connect_timeout_s=LIMIT_S, setup_timeout_s=LIMIT_S, check_timeout_s=LIMIT_S, check_interval_s=0.1)


HANDSHAKE_TIMEOUT_S = 0.2


@asynccontextmanager
async def slow_loop(turn_s: float = TURN_S) -> AsyncIterator[None]:
    async def block() -> None:
        while True:
            time.sleep(turn_s)  # noqa: ASYNC251 - it causes the fault
            await asyncio.sleep(0)

    blocking = asyncio.create_task(block())
    try:
        yield
    finally:
        blocking.cancel()


async def test_bridge_connects_and_consumes_although_each_answer_is_read_late(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    async with slow_loop(), running(broker.url, TIMING, exchanges=f"{exchange}=killmail") as bridge:
        client = await RawClient.open(port_of(bridge))
        status = consumer_of(bridge).status
        until_s = time.monotonic() + 5 * LIMIT_S
        await eventually("the topology is checked for a while", lambda: (status.last_answered_s or 0) > until_s)
        await publish(amqp, exchange, killmail(1))
        assert orjson.loads(await client.text())["data"] == killmail(1)
        assert sample(bridge, "bridge_broker_losses_total") == 0
        assert sample(bridge, "bridge_broker_connection_attempts_total") == 1
        assert bridge.readiness.report()[1]["warnings"] == []
        await client.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_client_is_served_although_a_turn_takes_longer_than_the_timeout_of_a_handshake(
    broker: Broker, exchange: str, tmp_path: Path, scheme: str
) -> None:
    chain, key = certificate(tmp_path, "bridge")
    tls = {"tls_certificate": chain, "tls_key": key} if scheme == "https" else {}
    flags = {"exchanges": f"{exchange}=killmail", "handshake_timeout": HANDSHAKE_TIMEOUT_S, **tls}
    async with running(broker.url, **flags) as bridge, slow_loop(1.5 * HANDSHAKE_TIMEOUT_S):
        url = f"{scheme}://127.0.0.1:{port_of(bridge)}/healthz"
        context = ssl.create_default_context(cafile=chain)

        def ask() -> int:
            with urllib.request.urlopen(url, timeout=READ_LIMIT_S, context=context) as answer:
                return int(answer.status)

        # The test has several clients, so that some of them connect in different turns of the loop.
        assert await asyncio.gather(*(asyncio.to_thread(ask) for _ in range(5))) == [200] * 5
        assert sample(bridge, "bridge_clients_refused_total", rule="timeout") == 0
