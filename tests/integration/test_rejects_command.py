"""`edk-bridge rejects` as a process: lists, requeues and removes events, and loses none."""

import asyncio
import re
import sys
from pathlib import Path

import aio_pika
import orjson
import pytest
from aio_pika.abc import AbstractConnection
from pamqp.common import FieldTable

from tests.support.broker.find import Broker
from tests.support.clients import RawClient
from tests.support.commands import Ended, environment, on_terminal, ran
from tests.support.killmail import killmail
from tests.support.proxy import proxy
from tests.support.publishing import bind, depth, numbers_in, publish, rejected, take
from tests.support.running import port_of, running, unique
from tests.support.waiting import eventually

REQUEUE = "to publish an event again: edk-bridge rejects requeue -- "

CLEARED = re.compile(r"[^\r\n]*\r\x1b\[K")
"""Matches a line of terminal output that the command has erased."""


async def command(broker: Broker, rejects: str, *arguments: str) -> Ended:
    return await ran("rejects", *arguments, BRIDGE_AMQP_URL=broker.url, BRIDGE_REJECT_EXCHANGE=rejects)


async def test_list_shows_events_in_order_and_keeps_them(
    broker: Broker, amqp: AbstractConnection, rejects: str
) -> None:
    await rejected(amqp, rejects, "kills", range(1, 6))
    for _ in range(2):
        ended = await command(broker, rejects, "list", "--limit", "3")
        assert ended.code == 0
        assert [line.split("\t") for line in ended.printed] == [
            [
                str(n),
                "2026-11-26T02:15:01.123+00:00",
                "killmail",
                "too-large",
                "",
                "it is too large",
                "kills",
                str(len(orjson.dumps(killmail(n)))),
                f"killmail {n}",
                f"id-{n}",
            ]
            for n in (1, 2, 3)
        ]
        assert ended.errors == [f"3 events listed; {rejects} has 5", REQUEUE + "id-3"]
    assert await numbers_in(amqp, rejects) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "message_id", ["-1", "--all", "-", "--", "a b", " a", "it's $HOME `id` \\ !1 *", "#1", "~", "\u00e9\u8266"]
)
async def test_suggested_command_works_in_a_shell(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, rejects: str, message_id: str
) -> None:
    await bind(amqp, exchange, queue)
    channel = await amqp.channel()
    await channel.declare_queue(rejects, durable=True)
    message = aio_pika.Message(b"{}", message_id=message_id, headers={"x-reject-exchange": exchange})
    await channel.default_exchange.publish(message, rejects)
    hint = (await command(broker, rejects, "list")).errors[-1]
    assert hint.startswith(REQUEUE)
    suggested = hint.partition(": ")[2].replace("edk-bridge", f"{sys.executable} -m bridge", 1)
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", suggested),
        env=environment(BRIDGE_AMQP_URL=broker.url, BRIDGE_REJECT_EXCHANGE=rejects),
        cwd=Path(__file__).parent,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"1 event requeued, 0 kept\n")


@pytest.mark.parametrize("message_id", ["\x1b[2J", "a\nb", "\u202e", "\u00a0"])
async def test_id_that_is_not_printable_is_not_suggested(
    broker: Broker, amqp: AbstractConnection, rejects: str, message_id: str
) -> None:
    await rejected(amqp, rejects, "kills", [1])
    channel = await amqp.channel()
    headers: FieldTable = {"x-reject-reason": "not-json"}
    await channel.default_exchange.publish(aio_pika.Message(b"", message_id=message_id, headers=headers), rejects)
    assert (await command(broker, rejects, "list")).errors[-1] == REQUEUE + "id-1"
    again = "to publish the events again: edk-bridge rejects requeue"
    assert (await command(broker, rejects, "list", "--reason=not-json")).errors[-1] == f"{again} --reason not-json"
    await take(amqp, rejects, 1)
    assert (await command(broker, rejects, "list")).errors[-1] == f"{again} --all"


async def test_list_as_json_has_the_event_itself(broker: Broker, amqp: AbstractConnection, rejects: str) -> None:
    await rejected(amqp, rejects, "kills", [1])
    await rejected(amqp, rejects, "kills", [2, 3], reason="not-json")
    channel = await amqp.channel()
    await channel.default_exchange.publish(aio_pika.Message(b"\xff", message_id="mine"), rejects)
    ended = await command(broker, rejects, "list", "--json")
    first, _, _, odd = map(orjson.loads, ended.printed)
    assert orjson.loads(first.pop("body")) == killmail(1)
    assert first == {
        "number": 1,
        "id": "id-1",
        "type": "killmail",
        "killmail_id": 1,
        "time": "2026-11-26T02:15:01.123+00:00",
        "reason": "too-large",
        "pointer": "",
        "detail": "it is too large",
        "exchange": "kills",
        "routing_key": rejects,
        "size": len(orjson.dumps(killmail(1))),
    }
    assert (odd["id"], odd["reason"], odd["body_hex"]) == ("mine", "", "ff")
    chosen = await command(broker, rejects, "list", "--json", "--reason", "not-json", "--limit", "1")
    assert [orjson.loads(line)["number"] for line in chosen.printed] == [2]
    assert chosen.errors == [f"1 event with the reason not-json listed; {rejects} has 4", REQUEUE + "id-2"]


async def test_list_fits_the_terminal_and_escapes_control_characters(
    broker: Broker, amqp: AbstractConnection, rejects: str
) -> None:
    channel = await amqp.channel()
    await channel.declare_queue(rejects, durable=True)
    headers: FieldTable = {
        "x-reject-reason": "schema-violation",
        "x-reject-pointer": "/systemId",
        "x-reject-detail": "/systemId: \x1b[31m" + "long " * 100,
        "x-reject-exchange": "kills",
        "x-reject-time": "2026-11-26T02:15:01.123+00:00",
    }
    message = aio_pika.Message(b"{}", headers=headers, message_id="i" * 70, type="killmail")
    await channel.default_exchange.publish(message, rejects)
    async with on_terminal("rejects", "list", BRIDGE_AMQP_URL=broker.url, BRIDGE_REJECT_EXCHANGE=rejects) as terminal:
        assert await terminal.ended() == 0
    lines = terminal.shown.decode().split("\r\n")
    assert lines[0] == "   1  2026-11-26 02:15:01  schema-violation  killmail, 2 bytes, from kills"
    assert lines[1].startswith(r"      /systemId: \x1b[31mlong long ")
    assert lines[2:4] == ["      {}", "      " + "i" * 70]
    assert max(map(len, lines[:4])) <= 80
    assert lines[5] == f"{REQUEUE}{'i' * 70}"
    assert "\x1b" not in terminal.shown.decode()


async def test_list_ends_quietly_if_its_pipe_is_closed(broker: Broker, amqp: AbstractConnection, rejects: str) -> None:
    await rejected(amqp, rejects, "kills", range(30))
    process = await asyncio.create_subprocess_shell(
        f"{sys.executable} -m bridge rejects list --json | head -1",
        env=environment(BRIDGE_AMQP_URL=broker.url, BRIDGE_REJECT_EXCHANGE=rejects),
        cwd=Path(__file__).parent,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, error_output = await process.communicate()
    assert orjson.loads(printed)["number"] == 1
    assert b"Traceback" not in error_output
    assert b"Exception" not in error_output

    async def back() -> bool:
        return await depth(amqp, rejects) == 30

    await eventually("all events are in the queue again", back)


async def test_event_that_has_become_valid_is_an_update_after_requeue(
    broker: Broker, amqp: AbstractConnection, exchange: str, rejects: str
) -> None:
    flags = {"exchanges": f"{exchange}=killmail", "reject_exchange": rejects}
    large = killmail(1, note="x" * 2000)
    async with running(broker.url, **flags, max_message_bytes=1024):
        await publish(amqp, exchange, large, headers={"source": "fetcher-1"}, user_id="guest", expiration=60)

        async def there() -> bool:
            return await depth(amqp, rejects) == 1

        await eventually("the event is rejected", there)
    async with running(broker.url, **flags) as bridge:
        client = await RawClient.open(port_of(bridge))
        await bind(amqp, exchange, observed := unique("queue"))
        ended = await command(broker, rejects, "requeue", "--all")
        assert (ended.code, ended.errors) == (0, ["1 event requeued, 0 kept"])
        assert orjson.loads(await client.text())["data"] == large
        [message] = await take(amqp, observed, 1)
        assert message.headers == {"source": "fetcher-1"}
        assert (message.user_id, message.expiration) == ("guest", 60)
        assert await depth(amqp, rejects) == 0
        channel = await amqp.channel()
        await channel.queue_delete(observed)
        await client.close()


async def test_event_that_is_still_invalid_is_rejected_once_more(
    broker: Broker, amqp: AbstractConnection, exchange: str, rejects: str
) -> None:
    flags = {"exchanges": f"{exchange}=killmail", "reject_exchange": rejects}
    async with running(broker.url, **flags) as bridge:
        await publish(amqp, exchange, *(b"invalid" for _ in range(50)))

        def rejections() -> float:
            return bridge.metrics.registry.get_sample_value("bridge_rejects_total", {"reason": "not-json"}) or 0

        async def there() -> bool:
            return await depth(amqp, rejects) == 50

        await eventually("the events are rejected", there)
        ended = await command(broker, rejects, "requeue", "--all")
        assert (ended.code, ended.errors) == (0, ["50 events requeued, 0 kept"])
        await eventually("the events are in the queue again", there)
        assert rejections() == 100


async def test_requeue_takes_the_selected_events_and_keeps_the_order_of_the_others(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, rejects: str
) -> None:
    await bind(amqp, exchange, queue)
    await rejected(amqp, rejects, exchange, range(1, 7))
    await rejected(amqp, rejects, exchange, [7, 8], reason="not-json")
    ended = await command(broker, rejects, "requeue", "id-4", "id-2", "id-9")
    assert (ended.code, ended.errors) == (1, ["not in the queue: id-9", "2 events requeued, 0 kept"])
    ended = await command(broker, rejects, "requeue", "--reason", "not-json")
    assert (ended.code, ended.errors) == (0, ["2 events requeued, 0 kept"])
    assert await numbers_in(amqp, queue) == [2, 4, 7, 8]
    assert await numbers_in(amqp, rejects) == [1, 3, 5, 6]


async def test_event_that_would_reach_no_queue_is_kept_and_reported(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, rejects: str
) -> None:
    channel = await amqp.channel()
    await bind(amqp, exchange, queue)
    await channel.declare_exchange(deaf := unique("exchange"), aio_pika.ExchangeType.FANOUT)
    gone = unique("exchange")
    for number in range(0, 40, 4):
        await rejected(amqp, rejects, gone, [number])
        await rejected(amqp, rejects, exchange, [number + 1])
        await rejected(amqp, rejects, deaf, [number + 2])
        await channel.default_exchange.publish(aio_pika.Message(orjson.dumps(killmail(number + 3))), rejects)
    ended = await command(broker, rejects, "requeue", "--all")
    assert ended.code == 1
    assert sorted(ended.errors[:-1]) == sorted(
        [
            f"10 kept: the exchange '{gone}' is gone: start the bridge that consumes from it, or declare it",
            f"10 kept: no queue is bound to the exchange '{deaf}': start its consumer",
            "10 kept: they have no x-reject-exchange header, so no bridge has published them",
        ]
    )
    assert ended.errors[-1] == "10 events requeued, 30 kept"
    assert await numbers_in(amqp, queue) == list(range(1, 40, 4))
    assert await numbers_in(amqp, rejects) == [n for n in range(40) if n % 4 != 1]
    await channel.exchange_delete(deaf)


@pytest.mark.parametrize("after", [1, pytest.param(300, marks=pytest.mark.slow)])
async def test_killed_requeue_loses_no_event(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, rejects: str, after: int
) -> None:
    count = 1000
    await bind(amqp, exchange, queue)
    await rejected(amqp, rejects, exchange, range(count))
    # The proxy runs in the test's own process, so the command waits while the test is busy.
    async with proxy(broker.url) as line:
        await line.open()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bridge", "rejects", "requeue", "--all"),
            env=environment(BRIDGE_AMQP_URL=line.url, BRIDGE_REJECT_EXCHANGE=rejects),
            cwd=Path(__file__).parent,
        )

        async def under_way() -> bool:
            return await depth(amqp, queue) >= after

        await eventually("some events are requeued", under_way)
        process.kill()
        await process.wait()
    left, arrived = 0, 0

    async def settled() -> bool:
        nonlocal left, arrived
        left, arrived = await depth(amqp, rejects), await depth(amqp, queue)
        return left + arrived >= count

    await eventually("the broker has all events again", settled)
    in_queue, in_rejects = await numbers_in(amqp, queue), await numbers_in(amqp, rejects)
    assert len(in_rejects) > 0, "the command was killed too late for this test"
    assert {*in_queue} | {*in_rejects} == set(range(count))
    assert in_queue == sorted(in_queue)
    assert in_rejects == sorted(in_rejects)
    # An event that is published but not removed yet is in flight, so there are at most 50 such events.
    assert len({*in_queue} & {*in_rejects}) <= 50


async def test_requeue_that_loses_the_broker_reports_it_and_keeps_the_others(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, rejects: str
) -> None:
    count = 1500
    await bind(amqp, exchange, queue)
    await rejected(amqp, rejects, exchange, range(count))
    async with proxy(broker.url) as line:
        await line.open()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bridge", "rejects", "requeue", "--all"),
            env=environment(BRIDGE_AMQP_URL=line.url, BRIDGE_REJECT_EXCHANGE=rejects),
            cwd=Path(__file__).parent,
            stderr=asyncio.subprocess.PIPE,
        )

        async def under_way() -> bool:
            return await depth(amqp, queue) >= 100

        await eventually("some events are requeued", under_way)
        await line.close()
        _, error_output = await process.communicate()
    assert process.returncode == 1
    lines = error_output.decode().splitlines()
    assert len(lines) == 2, lines
    assert re.fullmatch(r"ended early, with [\d,]+ events? requeued; the others are kept", lines[0])
    assert lines[1].startswith("edk-bridge: the connection to the broker was lost")

    async def settled() -> bool:
        return await depth(amqp, rejects) + await depth(amqp, queue) >= count

    await eventually("the broker has all events again", settled)
    assert {*await numbers_in(amqp, queue)} | {*await numbers_in(amqp, rejects)} == set(range(count))


@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, 0), ("", 1, 3)])
async def test_purge_asks_on_a_terminal(
    broker: Broker, amqp: AbstractConnection, rejects: str, answer: str, code: int, left: int
) -> None:
    await rejected(amqp, rejects, "kills", range(3))
    async with on_terminal(
        "rejects", "purge", "--all", BRIDGE_AMQP_URL=broker.url, BRIDGE_REJECT_EXCHANGE=rejects
    ) as terminal:
        question = f"Remove 3 rejected events in {rejects}? [y/N]: ".encode()
        await eventually("the command asks", lambda: terminal.shown == question)
        terminal.type(f"{answer}\n")
        assert await terminal.ended() == code
    assert terminal.shown.decode().splitlines()[-1] == ("nothing is removed" if left else "3 events removed")
    assert await depth(amqp, rejects) == left


async def test_purge_without_a_terminal_removes_nothing_without_yes(
    broker: Broker, amqp: AbstractConnection, rejects: str
) -> None:
    await rejected(amqp, rejects, "kills", range(3))
    await rejected(amqp, rejects, "kills", range(3, 6), reason="not-json")
    ended = await command(broker, rejects, "purge", "--all")
    assert (ended.code, ended.errors) == (
        2,
        ["edk-bridge: standard input is not a terminal, so the question can't be answered; pass --yes"],
    )
    ended = await command(broker, rejects, "purge", "--yes", "--reason", "too-large")
    assert (ended.code, ended.errors) == (0, ["3 events removed"])
    assert await numbers_in(amqp, rejects) == [3, 4, 5]


async def test_purge_removes_the_selected_events_and_keeps_the_order_of_the_others(
    broker: Broker, amqp: AbstractConnection, rejects: str
) -> None:
    await rejected(amqp, rejects, "kills", range(5))
    await rejected(amqp, rejects, "kills", [5], reason="not-json")
    ended = await command(broker, rejects, "purge", "--yes", "id-3", "id-9", "id-1")
    assert (ended.code, ended.errors) == (1, ["2 events removed", "not in the queue: id-9"])
    ended = await command(broker, rejects, "purge", "--yes", "id-0")
    assert (ended.code, ended.errors) == (0, ["1 event removed"])
    # An event must match both the reason and the id.
    ended = await command(broker, rejects, "purge", "--yes", "--reason", "not-json", "id-2")
    assert (ended.code, ended.errors) == (1, ["0 events removed", "not in the queue: id-2"])
    assert await numbers_in(amqp, rejects) == [2, 4, 5]


async def test_question_of_purge_names_the_selection(broker: Broker, amqp: AbstractConnection, rejects: str) -> None:
    await rejected(amqp, rejects, "kills", range(3))
    async with on_terminal(
        *("rejects", "purge", "id-1"), BRIDGE_AMQP_URL=broker.url, BRIDGE_REJECT_EXCHANGE=rejects
    ) as terminal:
        question = f"Remove 1 event by id of the 3 rejected events in {rejects}? [y/N]: ".encode()
        await eventually("the command asks", lambda: terminal.shown == question)
        terminal.type("y\n")
        assert await terminal.ended() == 0
    assert await numbers_in(amqp, rejects) == [0, 2]


@pytest.mark.parametrize(
    "arguments", [("list",), ("requeue", "--all"), ("purge", "--all", "--yes")], ids=lambda words: words[0]
)
async def test_queue_that_does_not_exist_is_one_line_and_code_2(
    broker: Broker, rejects: str, arguments: tuple[str, ...]
) -> None:
    ended = await command(broker, rejects, *arguments)
    assert (ended.code, ended.errors[-1]) == (
        2,
        f"edk-bridge: there is no queue '{rejects}': no event was rejected yet, or BRIDGE_REJECT_EXCHANGE is "
        "another one",
    )


async def test_reject_exchange_that_is_off_is_one_line_and_code_2(broker: Broker) -> None:
    off = await command(broker, "off", "list")
    assert (off.code, off.errors) == (
        2,
        ["edk-bridge: BRIDGE_REJECT_EXCHANGE: it is off, so there is no queue of rejected events; set it to a name"],
    )


async def test_broker_that_is_not_reached_is_one_line_and_code_1(broker: Broker) -> None:
    async with proxy(broker.url) as away:
        ended = await ran("rejects", "list", BRIDGE_AMQP_URL=away.url)
    assert ended.code == 1
    [line] = ended.errors
    assert line.startswith("edk-bridge: amqp://guest:***@127.0.0.1:")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [([], "no events are selected; give ids"), (["--all", "id-1"], "ids and --all can't be combined")],
)
async def test_requeue_without_a_clear_selection_is_one_line_and_code_2(
    broker: Broker, rejects: str, arguments: list[str], words: str
) -> None:
    ended = await command(broker, rejects, "requeue", *arguments)
    assert (ended.code, len(ended.errors)) == (2, 1)
    assert ended.errors[0].startswith(f"edk-bridge: {words}")


async def test_wrong_password_is_one_line_without_it_and_code_3(broker: Broker) -> None:
    wrong = await ran("rejects", "list", BRIDGE_AMQP_URL=broker.url.replace("guest:guest", "guest:wrong"))
    assert wrong.code == 3
    assert len(wrong.errors) == 1
    assert "wrong@" not in wrong.errors[0]
