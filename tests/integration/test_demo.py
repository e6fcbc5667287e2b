"""`edk-bridge demo` as a user runs it: it sends killmails, and leaves nothing behind after Ctrl-C."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aio_pika
import orjson
import pytest
from aio_pika.abc import AbstractConnection

from tests.support.broker.find import Broker
from tests.support.broker.node import installed_server
from tests.support.broker.ports import free_port
from tests.support.broker.session import unavailable
from tests.support.clients import RawClient, get
from tests.support.commands import ROOT, environment, ran
from tests.support.process_stats import metric
from tests.support.waiting import LIMIT_S, eventually

EXCHANGE = "bridge.demo"

END_LIMIT_S = 15.0
"""The maximum time for the demo to end: the bridge's shutdown timeout, plus a reserve."""

START_LIMIT_S = 90.0
"""The time in which a node and the bridge start on a busy machine."""

COMMAND = ("bridge", "demo")
MAKE_DEMO = ("tests.support.broker.demo",)

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="the test finds processes in /proc")


def marked(mark: str) -> list[int]:
    """Returns the processes that have this text in their environment.

    Children inherit the text, even in another session.
    """
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = path.read_bytes()
        except OSError:
            continue  # the process has ended, or belongs to another user
        if mark.encode() in environment:
            found.append(int(path.parent.name))
    return found


def is_node(pid: int) -> bool:
    """Whether the process is the Erlang node, and not one of its helpers."""
    return Path(f"/proc/{pid}/comm").read_text().startswith("beam")


async def exists(amqp: AbstractConnection, exchange: str) -> bool:
    """Whether the broker has the exchange."""
    channel = await amqp.channel()
    try:
        await channel.get_exchange(exchange)
    except aio_pika.exceptions.ChannelNotFoundEntity:
        return False
    await channel.close()
    return True


@asynccontextmanager
async def demo(
    amqp_url: str | None, port: int, output: Path, *arguments: str, start: Sequence[str] = COMMAND, **variables: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Runs a demo, and kills all its processes at the end.

    Yields the demo's process, and a text that all its processes have in their environment.

    Without a URL, the demo starts a broker.
    """
    name = f"{port}.{os.getpid()}"
    mark = f"TEST_DEMO={name}"
    if amqp_url:
        variables["BRIDGE_AMQP_URL"] = amqp_url
    with output.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *start, "--port", str(port), "--rate", "20", *arguments),
            env=environment(PYTHONUNBUFFERED="1", TEST_DEMO=name, **variables),
            # The developer's .env is not in this folder.
            cwd=output.parent,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process, mark
    finally:
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)
        await process.wait()


async def guided(process: asyncio.subprocess.Process, output: Path) -> None:
    """Returns as soon as the demo has printed its guide."""

    def guide_is_shown() -> bool:
        assert process.returncode is None, output.read_text()
        return "Ctrl-C stops the demo" in output.read_text()

    await eventually("the demo prints its guide", guide_is_shown, START_LIMIT_S)


async def test_demo_publishes_killmails_and_leaves_nothing_after_ctrl_c(
    broker: Broker, amqp: AbstractConnection, tmp_path: Path
) -> None:
    port, output = free_port(), tmp_path / "output"
    command = Path(sys.executable).with_name("edk-bridge")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "duel.json").write_text('{"type": "object"}')
    async with demo(broker.url, port, output, "--schemas", "own") as (process, mark):
        await guided(process, output)
        guide = output.read_text()
        assert f"\n  {command} tail ws://localhost:{port}/updates\n" in guide
        assert "export" not in guide, "the guide shows the URL of a given broker, with its password"
        assert b'"duel.json"' in (await get(port, "/schemas/"))[1]
        assert (await get(port, "/readyz"))[0] == 200
        client = await RawClient.open(port)
        async with asyncio.timeout(LIMIT_S):
            updates = [orjson.loads(await client.text()) for _ in range(10)]
        assert {update["type"] for update in updates} == {"killmail"}
        assert len({update["data"]["killmailId"] for update in updates}) == 10
        assert await exists(amqp, EXCHANGE)
        # The processes are the demo, the shell around the bridge, the shell's watcher, and the bridge.
        assert len(marked(mark)) >= 3
        process.send_signal(signal.SIGINT)
        assert await client.closed() == 1001
        async with asyncio.timeout(END_LIMIT_S):
            assert await process.wait() == 0, output.read_text()
        await eventually("no process of the demo remains", lambda: not marked(mark))
        assert not await exists(amqp, EXCHANGE)
        assert output.read_text().rstrip().endswith("stopped")
        await client.close()


async def test_make_demo_starts_a_node_prints_its_url_and_ends_if_the_node_ends(tmp_path: Path) -> None:
    if installed_server() is None:
        unavailable("rabbitmq-server is not installed")
    port, output = free_port(), tmp_path / "output"
    variables = {"DOCKER_HOST": f"unix://{tmp_path}/none", "PYTHONPATH": str(ROOT)}
    # If no container engine answers, the demo starts a private RabbitMQ node.
    async with demo(None, port, output, start=MAKE_DEMO, **variables) as (process, mark):
        await guided(process, output)
        [url] = re.findall(r"^  export BRIDGE_AMQP_URL=(amqp://\S+)$", output.read_text(), re.MULTILINE)
        await (await aio_pika.connect(url)).close()
        [node] = [pid for pid in marked(mark) if is_node(pid)]
        os.kill(node, signal.SIGKILL)
        async with asyncio.timeout(END_LIMIT_S):
            assert await process.wait() == 1, output.read_text()
        assert re.search(
            r"^edk-bridge: the demo's broker \(private node of .*\) ended unexpectedly$",
            output.read_text(),
            re.MULTILINE,
        )
        await eventually("no process of the demo remains", lambda: not marked(mark))


async def test_killmails_do_not_reach_the_exchange_of_the_settings(
    broker: Broker, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    port, output = free_port(), tmp_path / "output"
    channel = await amqp.channel()
    declared = await channel.declare_exchange(exchange, aio_pika.ExchangeType.FANOUT, durable=True)
    queue = await channel.declare_queue(exclusive=True)
    await queue.bind(declared)
    async with demo(broker.url, port, output, BRIDGE_EXCHANGES=f"{exchange}=killmail") as (process, _):
        await guided(process, output)
        client = await RawClient.open(port)
        for _ in range(10):
            await client.text()
        await client.close()
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0, output.read_text()
    assert await queue.get(fail=False) is None


@pytest.mark.parametrize("arguments", [[], ["--rate", "1"]], ids=["plain", "with an option"])
async def test_demo_that_finds_no_broker_names_three_solutions(arguments: list[str], tmp_path: Path) -> None:
    ended = await ran("demo", *arguments, "--port", str(free_port()), DOCKER_HOST=f"unix://{tmp_path}/none")
    assert (ended.code, ended.printed) == (1, [])
    [line] = ended.errors
    assert line.startswith("edk-bridge: the demo can't start RabbitMQ: no container engine answers; ")
    assert all(hint in line for hint in ("BRIDGE_AMQP_URL", "pip install 'edk-bridge[demo]'", "--without-broker"))


@asynccontextmanager
async def without_broker(port: int, output: Path, **variables: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Runs a demo for which no broker is available.

    Stops the demo with Ctrl-C at the end, and checks that none of its processes remains.
    """
    variables["DOCKER_HOST"] = "unix:///nonexistent"
    async with demo(None, port, output, "--without-broker", **variables) as (process, mark):
        await guided(process, output)
        yield process
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(END_LIMIT_S):
            code = await process.wait()
        assert code == 0
        await eventually("no process of the demo remains", lambda: not marked(mark))


async def test_demo_without_a_broker_sends_killmails_and_a_gap_and_lets_clients_resume(tmp_path: Path) -> None:
    port, output = free_port(), tmp_path / "output"
    async with without_broker(port, output):
        client = await RawClient.open(port, path="/updates?after=")
        messages = [orjson.loads(await client.text())]
        assert messages[0]["type"] == "resume"
        while messages[-1]["type"] != "gap":
            messages.append(orjson.loads(await client.text()))
        updates = [message for message in messages if message["type"] == "killmail"]
        assert all(message["type"] in {"resume", "killmail", "gap"} for message in messages)
        assert messages[-1]["data"]["reason"] == "broker-away"
        assert messages[-1]["data"]["since"] < messages[-1]["data"]["until"]
        assert len({update["id"] for update in updates}) == len(updates) > 5
        await client.close()
        last, missed = updates[0]["id"], updates[1:]
        client = await RawClient.open(port, path=f"/updates?after={last}")
        first = orjson.loads(await client.text())
        assert (first["type"], first["data"]["complete"]) == ("resume", True)
        assert first["data"]["replayed"] >= len(missed)
        assert [orjson.loads(await client.text()) for _ in missed][: len(missed)] == missed
        await client.close()


async def test_demo_without_a_broker_counts_and_logs_rejected_events_and_is_ready(tmp_path: Path) -> None:
    port, output = free_port(), tmp_path / "output"
    async with without_broker(port, output):
        await eventually(
            "an event is rejected", lambda: metric(port, 'bridge_rejects_total{reason="schema-violation"}')
        )
        status, body = await get(port, "/readyz")
        report = orjson.loads(body)
        assert (status, report["broker"]["state"], report["rejects"]) == (200, "working", None)
        assert report["warnings"] == ["there is no broker: the demo feeds invented killmails to the bridge"]
        assert (await get(port, "/"))[0] == 200
        await eventually("the rejected event is logged", lambda: "event rejected" in output.read_text())


async def test_demo_without_a_broker_names_the_settings_that_it_ignores_and_logs_in_the_format_that_is_set(
    tmp_path: Path,
) -> None:
    port, output = free_port(), tmp_path / "output"
    variables = {"BRIDGE_QUEUE": "kept", "BRIDGE_HISTORY": "stream", "BRIDGE_LOG_FORMAT": "json"}
    async with without_broker(port, output, BRIDGE_AMQP_URL="amqp://example", **variables):
        lines = output.read_text().splitlines()
        ignored = "BRIDGE_AMQP_URL, BRIDGE_QUEUE, BRIDGE_HISTORY"
        assert f"edk-bridge: warning: --without-broker ignores {ignored}" in lines
        logged = [orjson.loads(line) for line in lines if line.startswith("{")]
        assert "listening" in [line["event"] for line in logged]


async def test_demo_without_a_broker_ignores_no_setting_if_none_is_set(tmp_path: Path) -> None:
    port, output = free_port(), tmp_path / "output"
    async with without_broker(port, output):
        assert "ignores" not in output.read_text()
        assert "listening" in output.read_text()
        assert not [line for line in output.read_text().splitlines() if line.startswith("{")]


async def test_command_of_the_guide_resumes(tmp_path: Path) -> None:
    port, output = free_port(), tmp_path / "output"
    async with without_broker(port, output):
        [line] = re.findall(r"^  (id=.*)$", output.read_text(), re.MULTILINE)
        # The test removes the pause of 10 s, so the client misses fewer updates.
        script = f"{line.replace('sleep 10', 'true')} | head -n 30"
        shell = await asyncio.create_subprocess_exec(
            *("sh", "-c", script),
            env=environment(PYTHONPATH=str(ROOT)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(START_LIMIT_S):
            printed, errors = await shell.communicate()
        assert len(printed.splitlines()) == 30, errors
        assert re.search(rb"connected to .*; \d+ updates? to catch up", errors), errors
