"""`edk-bridge publish` as a process with files and pipes, and with a real broker."""

import asyncio
import os
import pty
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import orjson
import pytest
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage

from bridge.amqp.connection_errors import detect_container, localhost_hint
from tests.support.broker.find import Broker
from tests.support.broker.ports import free_port
from tests.support.commands import plain_environment
from tests.support.killmail import ESI, EXAMPLE, killmail, packaged
from tests.support.proxy import proxy
from tests.support.publishing import bind, depth, take
from tests.support.running import unique
from tests.support.waiting import LIMIT_S, eventually

WRONG_PASSWORD = "correct-horse"  # no message contains this word by chance

PATIENCE_S = 15.0
"""The maximum duration of a command that finds no broker.

The command waits at most 5 s for a broker, but the command may start slowly on a busy machine.
"""

IMPATIENT = "import sys; from bridge.cli.common import progress; progress.FIRST_S = progress.ON_TERMINAL_S = 0.0; "
SOON = (
    "import functools; from bridge.cli import publish; "
    "publish.Publisher = functools.partial(publish.Publisher, timeout_s={}); "
)
MAIN = "from bridge.cli import main; main()"


@dataclass
class Ended:
    """The exit code and the output of a process."""

    code: int
    errors: list[str]
    """The lines of standard error."""


class Command:
    """A running `edk-bridge publish`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._error_output = bytearray()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        while chunk := await self.process.stderr.read(2**16):
            self._error_output += chunk

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)

    async def ended(self) -> Ended:
        """Waits for the end of the process. Standard output must be empty. Standard error must have no traceback."""
        async with asyncio.timeout(LIMIT_S):
            code = await self.process.wait()
            await self._reading
        error_output = self._error_output.decode()
        assert "Traceback" not in error_output, error_output
        assert "Fatal" not in error_output, error_output
        return Ended(code, error_output.splitlines())


@asynccontextmanager
async def command(
    folder: Path, url: str, *arguments: str, script: str = MAIN, of: Sequence[str] = ("publish",), **variables: Any
) -> AsyncIterator[Command]:
    """Runs the command with a pipe as standard input. Kills the command at the end if it still runs."""
    start = ["-m", "bridge"] if script == MAIN else ["-c", script]
    process = await asyncio.create_subprocess_exec(
        # SIGINT has its default effect, as in a terminal. A background job ignores Ctrl-C, and so do its children.
        *("env", "--default-signal=INT", sys.executable, *start, *of, *arguments),
        env=plain_environment(**{"BRIDGE_AMQP_URL": url, **variables}),
        cwd=folder,
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    running = Command(process)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()
        await running._reading


async def published(folder: Path, url: str, *arguments: str, stdin: bytes = b"", **variables: Any) -> Ended:
    """Runs the command with this input until the command ends."""
    async with command(folder, url, *arguments, **variables) as running:
        running.write(stdin)
        assert running.process.stdin is not None
        running.process.stdin.close()
        return await running.ended()


def ndjson(*events: object) -> bytes:
    return b"".join(orjson.dumps(event) + b"\n" for event in events)


def contents(messages: list[AbstractIncomingMessage]) -> list[Any]:
    return [orjson.loads(message.body) for message in messages]


async def test_events_of_a_file_and_of_a_pipe_arrive_in_order_with_their_types(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, tmp_path: Path
) -> None:
    await bind(amqp, exchange, queue)
    in_file = [killmail(n) for n in range(1000)]
    in_pipe = [{"type": "killmail", "data": ESI}, killmail(1000), packaged({"killmail": ESI, "zkb": {}, "killID": 1})]
    (tmp_path / "events.ndjson").write_bytes(ndjson(*in_file))
    (tmp_path / "one.json").write_bytes(orjson.dumps(killmail(7), option=orjson.OPT_INDENT_2))
    ended = await published(
        tmp_path,
        broker.url,
        *("events.ndjson", "one.json", "-"),
        stdin=ndjson(*in_pipe),
        BRIDGE_EXCHANGES=f"{exchange}=killmail",
    )
    repeated = "2 have the identity of an earlier event, so a bridge does not send them"
    assert (ended.code, ended.errors) == (0, [f"1,004 events published, 0 invalid; {repeated}"])
    messages = await take(amqp, queue, 1004)
    assert contents(messages) == [*in_file, killmail(7), *in_pipe]
    assert {(message.type, message.delivery_mode) for message in messages} == {("killmail", 2)}
    assert await depth(amqp, queue) == 0


async def test_invalid_events_are_reported_with_their_lines_and_skipped(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, tmp_path: Path
) -> None:
    await bind(amqp, exchange, queue)
    wrong = ndjson(killmail(2, systemId="Jita"))
    (tmp_path / "events.ndjson").write_bytes(ndjson(killmail(1)) + b"\n" + wrong + b"x\n" + ndjson(killmail(5)))
    ended = await published(tmp_path, broker.url, "--exchange", exchange, "events.ndjson")
    assert ended.code == 1
    assert ended.errors == [
        'events.ndjson:3: /systemId: "Jita" is not of type "integer" [schema-violation]',
        "events.ndjson:4:1: unexpected character, expected a JSON value [not-json]",
        "2 events published, 2 invalid",
    ]
    assert contents(await take(amqp, queue, 2)) == [killmail(1), killmail(5)]


async def test_summary_counts_events_that_reached_no_queue(broker: Broker, exchange: str, tmp_path: Path) -> None:
    ended = await published(
        tmp_path, broker.url, stdin=ndjson(killmail(1), killmail(2)), BRIDGE_EXCHANGES=f"{exchange}=killmail"
    )
    assert ended.code == 1
    reason = f"no bridge consumes from the exchange {exchange}"
    assert ended.errors == [f"2 events published, 0 invalid; 2 reached no queue: {reason}"]


async def test_missing_exchange_is_declared_only_if_the_settings_name_it(
    broker: Broker, amqp: AbstractConnection, tmp_path: Path
) -> None:
    missing = unique("exchange")
    ended = await published(tmp_path, broker.url, "--exchange", missing, stdin=ndjson(EXAMPLE))
    line = f"edk-bridge: there is no exchange '{missing}': name one that exists, or start the bridge, which declares "
    assert (ended.code, ended.errors) == (2, [f"{line}those in BRIDGE_EXCHANGES"])
    channel = await amqp.channel()
    with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
        await channel.get_exchange(missing)
    ended = await published(tmp_path, broker.url, stdin=ndjson(EXAMPLE), BRIDGE_EXCHANGES=f"{missing}=killmail")
    assert (ended.code, ended.errors[0].partition(";")[0]) == (1, "1 event published, 0 invalid")
    channel = await amqp.channel()
    await channel.get_exchange(missing)
    await channel.exchange_delete(missing)


async def test_exchange_of_an_own_type_is_that_of_the_settings(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "duel.json").write_text('{"type": "object", "required": ["winner"]}')
    await bind(amqp, exchange, queue)
    ended = await published(
        tmp_path,
        broker.url,
        *("--type", "duel"),
        stdin=b'{\n "winner": 1\n}\n{\n "winner": 2\n}\n',
        BRIDGE_EXCHANGES=f"amq.fanout=killmail,{exchange}=duel",
        BRIDGE_SCHEMAS="own",
    )
    assert (ended.code, ended.errors) == (0, ["2 events published, 0 invalid"])
    messages = await take(amqp, queue, 2)
    assert contents(messages) == [{"winner": 1}, {"winner": 2}]
    assert {message.type for message in messages} == {"duel"}


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (["missing.ndjson"], {}),
        (["--type", "nonsense"], {}),
        (["--exchange", "\N{SNOWMAN}"], {}),
        ([], {"BRIDGE_AMQP_URL": "http://localhost"}),
        ([], {"BRIDGE_PROT": "1"}),
    ],
    ids=["file", "type", "exchange", "URL", "variable"],
)
async def test_unusable_arguments_end_with_2(
    broker: Broker, tmp_path: Path, arguments: list[str], variables: dict[str, Any]
) -> None:
    ended = await published(tmp_path, broker.url, *arguments, **variables)
    assert ended.code == 2
    assert ended.errors


@pytest.mark.parametrize("source", ["standard input", "pipe with a name"])
async def test_refusal_of_the_broker_ends_with_3_while_the_pipe_is_open(
    broker: Broker, exchange: str, tmp_path: Path, source: str
) -> None:
    parts = urlsplit(broker.url.split(",", maxsplit=1)[0])
    wrong = parts._replace(netloc=f"{parts.username}:{WRONG_PASSWORD}@{parts.hostname}:{parts.port}").geturl()
    async with silent_pipe(tmp_path, wrong, source, exchange) as running:
        ended = await running.ended()
    assert ended.code == 3
    [line] = ended.errors
    assert line.startswith("edk-bridge: amqp://")
    assert "refuses the user name or the password" in line
    assert WRONG_PASSWORD not in str(ended.errors)


@pytest.mark.parametrize("source", ["standard input", "pipe with a name"])
async def test_interrupt_while_the_pipe_is_silent_ends_with_130(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, tmp_path: Path, source: str
) -> None:
    await bind(amqp, exchange, queue)
    async with silent_pipe(tmp_path, broker.url, source, exchange) as running:
        assert contents(await take(amqp, queue, 1)) == [EXAMPLE]
        running.process.send_signal(signal.SIGINT)
        ended = await running.ended()
    # The event may be in the queue before the command has received the confirm.
    assert ended.code == 130
    assert ended.errors in [[f"interrupted: {count} published, 0 invalid"] for count in ("0 events", "1 event")]


@asynccontextmanager
async def silent_pipe(folder: Path, url: str, source: str, exchange: str) -> AsyncIterator[Command]:
    """Runs the command with an input pipe that has one event and stays open."""
    if source == "standard input":
        async with command(folder, url, "--exchange", exchange) as running:
            running.write(ndjson(EXAMPLE))
            yield running
        return
    os.mkfifo(folder / "pipe")
    # The pipe is opened for reading too, so that opening it does not wait for the command.
    descriptor = os.open(folder / "pipe", os.O_RDWR)
    try:
        os.write(descriptor, ndjson(EXAMPLE))
        async with command(folder, url, "--exchange", exchange, "pipe") as running:
            yield running
    finally:
        os.close(descriptor)


async def test_error_of_a_lost_broker_names_the_first_unconfirmed_event(
    broker: Broker, amqp: AbstractConnection, exchange: str, queue: str, tmp_path: Path
) -> None:
    await bind(amqp, exchange, queue)
    soon = SOON.format(1)
    async with proxy(broker.url) as line:
        await line.open()
        async with command(tmp_path, line.url, "--exchange", exchange, script=soon + MAIN) as running:
            running.write(b"\n" + ndjson(*(killmail(n) for n in range(10))))

            async def all_there() -> bool:
                return await depth(amqp, queue) == 10

            await eventually("the first events are in the queue", all_there)
            await line.close()
            running.write(ndjson(*(killmail(n) for n in range(10, 20))))
            ended = await running.ended()
    assert ended.code == 1
    # The error names the first event after the last received confirm. The last confirms may have been lost with the
    # connection.
    summary, [reason], where = ended.errors[-3], [ended.errors[-2]], ended.errors[-1]
    count = int(summary.split()[0])
    assert summary == f"{count} events published, 0 invalid"
    assert reason.startswith("edk-bridge: the broker did not confirm within 1 s: amqp://")
    assert where == f"edk-bridge: -:{count + 2}: not confirmed; later events may not be published either"
    assert count <= 10


@pytest.mark.parametrize(
    ("host", "words"),
    [("127.0.0.1", "Connection refused"), ("localhost", "Connection refused"), ("mq.invalid", "")],
    ids=["no listener", "no listener at any address", "no such host"],
)
@pytest.mark.parametrize("arguments", [["publish"], ["rejects", "list"]], ids=" ".join)
async def test_missing_broker_ends_with_one_line(tmp_path: Path, arguments: list[str], host: str, words: str) -> None:
    port = free_port()
    began_s = time.monotonic()
    async with command(tmp_path, f"amqp://guest:guest@{host}:{port}/", of=arguments) as running:
        # The pipe stays open, so the command must not wait for the end of its input.
        running.write(ndjson(EXAMPLE))
        ended = await running.ended()
    [line] = ended.errors
    begin, end = f"edk-bridge: amqp://guest:***@{host}:{port}/: ", "; BRIDGE_AMQP_URL (--amqp-url) names the broker"
    assert line.startswith(begin)
    assert line.endswith(end)
    assert "Multiple exceptions" not in line
    # If the tests run in a container, the message also has a hint.
    hint = localhost_hint(host, detect_container())
    assert not words or line == f"{begin}{words}{'' if hint is None else f'; {hint}'}{end}"
    assert ended.code == 1
    # The limit is much shorter than the time for which the command tries to reconnect after the loss of a connection.
    assert time.monotonic() - began_s < PATIENCE_S


async def test_long_input_shows_no_progress_in_a_pipe(broker: Broker, exchange: str, tmp_path: Path) -> None:
    (tmp_path / "events.ndjson").write_bytes(ndjson(*map(killmail, range(50))))
    async with command(
        tmp_path, broker.url, "events.ndjson", script=IMPATIENT + MAIN, BRIDGE_EXCHANGES=f"{exchange}=killmail"
    ) as running:
        ended = await running.ended()
    assert ended.code == 1
    [line] = ended.errors
    assert line.startswith("50 events published, 0 invalid; 50 reached no queue")


async def test_long_input_shows_its_progress_on_a_terminal(broker: Broker, exchange: str, tmp_path: Path) -> None:
    (tmp_path / "events.ndjson").write_bytes(ndjson(*map(killmail, range(50)), killmail(50, systemId="Jita")))
    script = IMPATIENT + MAIN
    ours, theirs = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", script, "publish", "--amqp-url", broker.url, "events.ndjson"),
            env=plain_environment(BRIDGE_EXCHANGES=f"{exchange}=killmail"),
            cwd=tmp_path,
            stderr=theirs,
        )
    finally:
        os.close(theirs)
    error_output = await asyncio.to_thread(all_of, ours)
    assert await process.wait() == 1
    shown = error_output.split("\r\n")
    assert shown.pop() == ""
    # In the output, each final line follows the progress lines that it replaced.
    assert [line.split("\r\x1b[K")[-1] for line in shown] == [
        'events.ndjson:51: /systemId: "Jita" is not of type "integer" [schema-violation]',
        f"50 events published, 1 invalid; 50 reached no queue: no bridge consumes from the exchange {exchange}",
    ]
    assert [text for line in shown for text in line.split("\r\x1b[K")[:-1]][-1] == "50 events published, 1 invalid"


def all_of(descriptor: int) -> str:
    """Returns all output on a terminal until its other side is closed."""
    error_output = b""
    try:
        while chunk := os.read(descriptor, 4096):
            error_output += chunk
    except OSError:
        pass
    finally:
        os.close(descriptor)
    return error_output.decode()
