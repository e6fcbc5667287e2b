"""`edk-bridge rejects` where somebody is in the way: a reader who waits, other writers of the queue, another queue."""

import asyncio
import os
import re
import select
import sys
from pathlib import Path
from typing import Any

import aio_pika
import orjson
import pytest
from aio_pika.abc import AbstractConnection

from tests.support.broker.find import Broker
from tests.support.commands import environment, on_terminal, ran
from tests.support.killmail import killmail
from tests.support.publishing import bind, numbers_in, rejected
from tests.support.waiting import eventually

CHANNELS = 2047
"""As many as RabbitMQ lets a connection have."""


async def put(amqp: AbstractConnection, rejects: str, *headers: dict[str, Any], kind: str = "classic") -> None:
    """Puts killmails with these headers into the queue, as anybody may; their numbers are their places, from 0."""
    channel = await amqp.channel(publisher_confirms=True)
    await channel.declare_queue(rejects, durable=True, arguments={"x-queue-type": kind})
    messages = [
        aio_pika.Message(orjson.dumps(killmail(number)), headers=each, message_id=f"id-{number}", delivery_mode=2)
        for number, each in enumerate(headers)
    ]
    await asyncio.gather(*(channel.default_exchange.publish(message, rejects) for message in messages))
    await channel.close()


def is_full(pipe: int) -> bool:
    """Whether whoever writes to it waits."""
    return not select.select([], [pipe], [], 0)[1]


def waits_of(pid: int) -> int:
    """How often it has waited for something, and gone on."""
    [count] = re.findall(r"^voluntary_ctxt_switches:\t(\d+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(count)


async def test_list_into_a_pager_that_waits_still_hears_the_broker(
    broker: Broker, amqp: AbstractConnection, rejects: str
) -> None:
    """Who is stuck in a full pipe answers no heartbeat: the broker takes it for dead, and the list ends half-way."""
    channel = await amqp.channel()
    await channel.declare_queue(rejects, durable=True)
    # More than a pipe holds, so that it is full in the middle of a line.
    await channel.default_exchange.publish(aio_pika.Message(b"x" * 200_000), rejects)
    ours, theirs = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bridge", "rejects", "list", "--json"),
        env=environment(BRIDGE_AMQP_URL=f"{broker.url}?heartbeat=1", BRIDGE_REJECT_EXCHANGE=rejects),
        cwd=Path(__file__).parent,
        stdout=theirs,
    )
    try:
        await eventually("the pipe is full", lambda: is_full(theirs))
        before = waits_of(process.pid)
        # The broker's heartbeats, and its own: without its loop, there is nothing that it goes on for.
        await eventually("its loop turns", lambda: waits_of(process.pid) > before + 4)
    finally:
        process.kill()
        await process.wait()
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [
        (">&-", 2, "edk-bridge: standard output is closed"),
        (">/dev/full", 1, "edk-bridge: standard output: No space left on device"),
    ],
)
async def test_output_that_can_not_be_written_is_said_in_one_line(
    broker: Broker, amqp: AbstractConnection, rejects: str, redirected: str, code: int, said: str
) -> None:
    await rejected(amqp, rejects, "kills", [1])
    process = await asyncio.create_subprocess_shell(
        f"{sys.executable} -m bridge rejects list {redirected}",
        env=environment(BRIDGE_AMQP_URL=broker.url, BRIDGE_REJECT_EXCHANGE=rejects),
        cwd=Path(__file__).parent,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert (process.returncode, errors.decode().splitlines()) == (code, [said])


async def test_json_on_a_terminal_holds_no_commands(broker: Broker, amqp: AbstractConnection, rejects: str) -> None:
    await put(amqp, rejects, {"x-reject-detail": "\x9b31m\u202e\x7f"})
    async with on_terminal(
        "rejects", "list", "--json", BRIDGE_AMQP_URL=broker.url, BRIDGE_REJECT_EXCHANGE=rejects
    ) as terminal:
        assert await terminal.ended() == 0
    shown = terminal.shown.decode().splitlines()[0]
    assert shown.isprintable()
    assert orjson.loads(shown)["detail"] == "\x9b31m\u202e\x7f"


async def test_purge_removes_none_that_came_after_the_question(
    broker: Broker, amqp: AbstractConnection, rejects: str
) -> None:
    await rejected(amqp, rejects, "kills", range(3))
    async with on_terminal(
        "rejects", "purge", "--all", BRIDGE_AMQP_URL=broker.url, BRIDGE_REJECT_EXCHANGE=rejects
    ) as terminal:
        await eventually("it asks", lambda: terminal.shown.endswith(b"[y/N]: "))
        await rejected(amqp, rejects, "kills", range(3, 6))
        terminal.type("y\n")
        assert await terminal.ended() == 0
    assert terminal.shown.decode().splitlines()[-1] == "3 removed"
    assert await numbers_in(amqp, rejects) == [3, 4, 5]


async def test_expiration_that_the_broker_refuses_keeps_no_other_event_from_being_requeued(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, rejects: str
) -> None:
    """It closes the channel, and what is sent there by then ends the connection."""
    await bind(amqp, exchange, queue)
    headers = [{"x-reject-exchange": exchange} for _ in range(120)]
    headers[20]["x-reject-expiration"] = "soon"
    await put(amqp, rejects, *headers)
    ended = await ran("rejects", "requeue", "--all", BRIDGE_AMQP_URL=broker.url, BRIDGE_REJECT_EXCHANGE=rejects)
    assert ended.code == 1
    assert ended.said == [
        "1 kept: their expiration is not a number of milliseconds, so no bridge has published them",
        "119 requeued, 1 kept",
    ]
    assert await numbers_in(amqp, queue) == [n for n in range(120) if n != 20]
    assert await numbers_in(amqp, rejects) == [20]


@pytest.mark.slow
async def test_more_names_that_are_none_than_there_are_channels_end_nothing(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, rejects: str
) -> None:
    await bind(amqp, exchange, queue)
    names = [*(f"no\n{number}" for number in range(CHANNELS + 1)), exchange]
    await put(amqp, rejects, *({"x-reject-exchange": name} for name in names))
    # It opens two thousand channels, one after another.
    ended = await ran(
        *("rejects", "requeue", "--all"), limit_s=120, BRIDGE_AMQP_URL=broker.url, BRIDGE_REJECT_EXCHANGE=rejects
    )
    assert ended.said[-1] == f"1 requeued, {CHANNELS + 1:,} kept"


async def test_queue_that_drops_what_is_read_too_often_is_named(
    broker: Broker, amqp: AbstractConnection, rejects: str
) -> None:
    await put(amqp, rejects, {}, {}, kind="quorum")
    for first in (True, False):
        ended = await ran("rejects", "list", BRIDGE_AMQP_URL=broker.url, BRIDGE_REJECT_EXCHANGE=rejects)
        assert ended.code == 0
        assert ended.said[0] == f"2 listed; 2 in {rejects} in all"
        assert [line.partition(":")[0] for line in ended.said[1:]] == (
            [] if first else [f"{rejects} is a quorum queue"]
        )
