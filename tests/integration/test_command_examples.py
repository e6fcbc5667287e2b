"""The examples in the README of the command line, run with a real broker."""

import asyncio
from pathlib import Path

import orjson
from aio_pika.abc import AbstractConnection

from tests.support.broker.find import Broker
from tests.support.documentation import adapted, code_block, shell
from tests.support.killmail import killmail
from tests.support.publishing import bind, depth, numbers_in, publish, rejected
from tests.support.running import port_of, running


async def test_tail_prints_the_updates_that_match(
    broker: Broker, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        url = f"ws://127.0.0.1:{port_of(bridge)}/updates"
        command = adapted(code_block("bridge/cli/README.md", "tail", 1), ("edk-bridge tail", f"edk-bridge tail {url}"))
        printing = asyncio.create_task(shell(command, tmp_path))
        number = 0
        # The loop publishes repeatedly, because the command may connect after the first updates.
        while not printing.done():
            number += 2
            await publish(amqp, exchange, killmail(number, systemId=1), killmail(number + 1, systemId=30002187))
            await asyncio.wait([printing], timeout=0.1)
    [update] = [line for line in (await printing).splitlines() if line.startswith(b"{")]
    assert orjson.loads(update)["data"]["systemId"] == 30002187


async def test_publish_prints_what_the_readme_shows(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, tmp_path: Path
) -> None:
    await bind(amqp, exchange, queue)
    (tmp_path / "kills.ndjson").write_text(code_block("bridge/cli/README.md", "publish", 0))
    command = code_block("bridge/cli/README.md", "publish", 1)
    exchanges = f"{exchange}=killmail"
    output = await shell(command, tmp_path, BRIDGE_AMQP_URL=broker.url, BRIDGE_EXCHANGES=exchanges)
    assert output.decode() == code_block("bridge/cli/README.md", "publish", 2)
    assert await numbers_in(amqp, queue) == [1, 2]


async def test_rejects_are_listed_requeued_and_purged(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, rejects: str, tmp_path: Path
) -> None:
    await bind(amqp, exchange, queue)
    await rejected(amqp, rejects, exchange, [1, 2], reason="schema-violation")
    await rejected(amqp, rejects, exchange, [3], reason="too-large")
    command = code_block("bridge/cli/README.md", "rejects")
    output = (await shell(command, tmp_path, BRIDGE_AMQP_URL=broker.url, BRIDGE_REJECT_EXCHANGE=rejects)).decode()
    assert f"3 events listed; {rejects} has 3" in output
    assert "killmail 1\tid-1\n" in output
    assert output.endswith("2 events requeued, 0 kept\n1 event removed\n")
    assert await numbers_in(amqp, queue) == [1, 2]
    assert await depth(amqp, rejects) == 0
