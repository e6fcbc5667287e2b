"""`edk-bridge rejects` with obstacles: a slow reader, other writers of the queue, another kind of queue."""

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
"""RabbitMQ's limit on the number of channels per connection."""


async def put(amqp: AbstractConnection, rejects: str, *headers: dict[str, Any], kind: str = "classic") -> None:
    """Publishes a killmail to the queue for each element of `headers`. The killmails have the ids 0, 1, 2 ..."""
    channel = await amqp.channel(publisher_confirms=True)
    await channel.declare_queue(rejects, durable=True, arguments={"x-queue-type": kind})
    messages = [
        aio_pika.Message(orjson.dumps(killmail(number)), headers=each, message_id=f"id-{number}", delivery_mode=2)
        for number, each in enumerate(headers)
    ]
    await asyncio.gather(*(channel.default_exchange.publish(message, rejects) for message in messages))
    await channel.close()


def is_full(pipe: int) -> bool:
    """Whether a write to the pipe would block."""
    return not select.select([], [pipe], [], 0)[1]


def waits_of(pid: int) -> int:
    """Returns how often the process has waited for an event."""
    [count] = re.findall(r"^voluntary_ctxt_switches:\t(\d+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(count)


async def test_list_with_a_slow_reader_still_answers_heartbeats(
    broker: Broker, amqp: AbstractConnection, rejects: str
) -> None:
    """If a full pipe blocked the event loop, the broker would get no heartbeat and close the connection."""
    channel = await amqp.channel()
    await channel.declare_queue(rejects, durable=True)
    # The event is larger than the pipe's buffer, so the pipe is full in the middle of a line.
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
        # Only the heartbeats of both sides wake the process. A blocked process would not wake.
        await eventually("its event loop runs", lambda: waits_of(process.pid) > before + 4)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(
    ("redirected", "code", "error"),
    [
        (">&-", 2, "edk-bridge: standard output is closed"),
        (">/dev/full", 1, "edk-bridge: standard output: No space left on device"),
    ],
)
async def test_error_of_the_output_is_one_line(
    broker: Broker, amqp: AbstractConnection, rejects: str, redirected: str, code: int, error: str
) -> None:
    await rejected(amqp, rejects, "kills", [1])
    process = await asyncio.create_subprocess_shell(
        f"{sys.executable} -m bridge rejects list {redirected}",
        env=environment(BRIDGE_AMQP_URL=broker.url, BRIDGE_REJECT_EXCHANGE=rejects),
        cwd=Path(__file__).parent,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert (process.returncode, errors.decode().splitlines()) == (code, [error])


async def test_json_on_a_terminal_has_no_control_characters(
    broker: Broker, amqp: AbstractConnection, rejects: str
) -> None:
    await put(amqp, rejects, {"x-reject-detail": "\x9b31m\u202e\x7f"})
    async with on_terminal(
        "rejects", "list", "--json", BRIDGE_AMQP_URL=broker.url, BRIDGE_REJECT_EXCHANGE=rejects
    ) as terminal:
        assert await terminal.ended() == 0
    shown = terminal.shown.decode().splitlines()[0]
    assert shown.isprintable()
    assert orjson.loads(shown)["detail"] == "\x9b31m\u202e\x7f"


async def test_purge_keeps_events_that_arrive_after_the_question(
    broker: Broker, amqp: AbstractConnection, rejects: str
) -> None:
    await rejected(amqp, rejects, "kills", range(3))
    async with on_terminal(
        "rejects", "purge", "--all", BRIDGE_AMQP_URL=broker.url, BRIDGE_REJECT_EXCHANGE=rejects
    ) as terminal:
        await eventually("the command asks", lambda: terminal.shown.endswith(b"[y/N]: "))
        await rejected(amqp, rejects, "kills", range(3, 6))
        terminal.type("y\n")
        assert await terminal.ended() == 0
    assert terminal.shown.decode().splitlines()[-1] == "3 events removed"
    assert await numbers_in(amqp, rejects) == [3, 4, 5]


async def test_event_with_an_invalid_expiration_does_not_prevent_the_requeue_of_others(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, rejects: str
) -> None:
    """The broker closes the channel of an event with an invalid expiration.

    Later messages on a closed channel would end the connection.
    """
    await bind(amqp, exchange, queue)
    headers = [{"x-reject-exchange": exchange} for _ in range(120)]
    headers[20]["x-reject-expiration"] = "soon"
    await put(amqp, rejects, *headers)
    ended = await ran("rejects", "requeue", "--all", BRIDGE_AMQP_URL=broker.url, BRIDGE_REJECT_EXCHANGE=rejects)
    assert ended.code == 1
    assert ended.errors == [
        "1 kept: their expiration is not a number of milliseconds, so no bridge has published them",
        "119 events requeued, 1 kept",
    ]
    assert await numbers_in(amqp, queue) == [n for n in range(120) if n != 20]
    assert await numbers_in(amqp, rejects) == [20]


@pytest.mark.slow
async def test_requeue_handles_more_missing_exchanges_than_there_are_channels(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, rejects: str
) -> None:
    await bind(amqp, exchange, queue)
    names = [*(f"no\n{number}" for number in range(CHANNELS + 1)), exchange]
    await put(amqp, rejects, *({"x-reject-exchange": name} for name in names))
    # The command opens two thousand channels, one after another.
    ended = await ran(
        *("rejects", "requeue", "--all"), limit_s=120, BRIDGE_AMQP_URL=broker.url, BRIDGE_REJECT_EXCHANGE=rejects
    )
    assert ended.errors[-1] == f"1 event requeued, {CHANNELS + 1:,} kept"


async def test_list_warns_of_a_quorum_queue_which_drops_events_that_are_read_too_often(
    broker: Broker, amqp: AbstractConnection, rejects: str
) -> None:
    await put(amqp, rejects, {}, {}, kind="quorum")
    for first in (True, False):
        ended = await ran("rejects", "list", BRIDGE_AMQP_URL=broker.url, BRIDGE_REJECT_EXCHANGE=rejects)
        assert ended.code == 0
        assert ended.errors[0] == f"2 events listed; {rejects} has 2"
        assert [line.partition(":")[0] for line in ended.errors[2:]] == (
            [] if first else [f"{rejects} is a quorum queue"]
        )
