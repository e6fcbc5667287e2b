"""The examples over plain HTTP in the README of the clients, run as they stand against a real bridge."""

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

import orjson
import pytest
from aio_pika.abc import AbstractConnection

from bridge.app import Bridge
from tests.support.broker.find import Broker
from tests.support.broker.ports import free_port
from tests.support.broker.session import unavailable
from tests.support.documentation import adapted, code_block, printed_line, program
from tests.support.killmail import killmail
from tests.support.prepare import ROOT
from tests.support.prepare import program as installed
from tests.support.publishing import publish
from tests.support.running import port_of, running, sample
from tests.support.waiting import LIMIT_S, eventually

PYTHON = ROOT / ".venv/libraries/bin/python"
JITA, AMARR = 30000142, 30002187


@pytest.fixture
async def bridge(broker: Broker, exchange: str) -> AsyncIterator[Bridge]:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as running_bridge:
        yield running_bridge


def local(text: str, port: int) -> str:
    """Returns an example that uses the port of a bridge, and takes at most two updates with each request."""
    text = adapted(text, ("localhost:3000", f"127.0.0.1:{port}"))
    return text.replace("limit=1000", "limit=2")


async def emit(amqp: AbstractConnection, exchange: str, bridge: Bridge, *numbers: int) -> None:
    """Publishes killmails, and waits until the bridge has them."""
    before = sample(bridge, "bridge_update_log_updates")
    await publish(amqp, exchange, *(killmail(number, systemId=(AMARR, JITA)[number % 2]) for number in numbers))
    await eventually(
        "the bridge has the killmails",
        lambda: sample(bridge, "bridge_update_log_updates") == before + len(numbers),
    )


class Ended(NamedTuple):
    """The end of a process."""

    code: int | None
    output: str
    errors: str


async def ended(*command: str | Path, folder: Path) -> Ended:
    """Runs a program until it ends."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(LIMIT_S):
        output, errors = await process.communicate()
    return Ended(process.returncode, output.decode(), errors.decode())


async def test_curl_shows_the_newest_killmails(
    bridge: Bridge, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    installed("jq")
    await emit(amqp, exchange, bridge, *range(1, 13))
    command = local(code_block("schemas/clients/README.md", "curl", 0), port_of(bridge))
    shown = await ended("bash", "-c", adapted(command, ("jq ", "jq -c ")), folder=tmp_path)
    assert shown.code == 0, shown.errors
    assert [orjson.loads(line)["killmailId"] for line in shown.output.splitlines()] == list(range(3, 13))


async def test_loop_with_curl_prints_each_killmail_once(
    bridge: Bridge, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    installed("jq")
    await emit(amqp, exchange, bridge, 1)
    script = local(code_block("schemas/clients/README.md", "curl", 1), port_of(bridge))
    async with program("bash", "-c", script, folder=tmp_path) as output:
        for number in range(2, 5):
            await eventually("a request waits", lambda: sample(bridge, "bridge_connections", transport="poll") == 1)
            await emit(amqp, exchange, bridge, number)
            line = await printed_line(output, ".")
            assert orjson.loads(line)["killmailId"] == number


async def test_loop_with_curl_ends_after_a_refusal(bridge: Bridge, tmp_path: Path) -> None:
    script = local(code_block("schemas/clients/README.md", "curl", 1), port_of(bridge))
    refused = await ended("bash", "-c", adapted(script, ("type=killmail", "type=nothing")), folder=tmp_path)
    assert "400" in refused.errors
    assert refused.output == ""


async def test_loop_with_curl_waits_for_a_bridge_that_is_not_ready(tmp_path: Path) -> None:
    """The server refuses a connection, asks for patience, and then answers."""
    installed("jq")
    port = free_port()
    answers = [
        (HTTPStatus.SERVICE_UNAVAILABLE, b"The bridge is not ready."),
        (HTTPStatus.OK, b'{"updates":[{"data":{"killmailId":7}}],"id":"1-ab"}'),
        (HTTPStatus.BAD_REQUEST, b"This is the end."),
    ]
    asked: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head.decode().split(" ", 2)[1])
        status, body = answers[len(asked) - 1]
        lines = f"HTTP/1.1 {status.value} {status.phrase}", "Retry-After: 1", f"Content-Length: {len(body)}"
        writer.write("\r\n".join([*lines, "Connection: close", "", ""]).encode() + body)
        await writer.drain()
        writer.close()

    script = local(code_block("schemas/clients/README.md", "curl", 1), port)
    running_script = asyncio.create_task(ended("bash", "-c", script, folder=tmp_path))
    async with await asyncio.start_server(answer, "127.0.0.1", port):
        result = await running_script
    assert result.output == '{"killmailId":7}\n'
    assert [target.rpartition("=")[2] for target in asked] == ["", "", "1-ab"]


class Job:
    """A script that stores the last id, with the file in which it stores the id."""

    def __init__(self, folder: Path, *command: str | Path) -> None:
        self.folder = folder
        self.last_id = folder / "last-id"
        self._command = command

    async def run(self) -> Ended:
        return await ended(*self._command, folder=self.folder)

    def stored(self) -> str:
        return self.last_id.read_text().strip()


def cron_job(folder: Path, port: int) -> Job:
    """Installs the script for cron."""
    installed("jq")
    (folder / "fetch.sh").write_text(local(code_block("schemas/clients/README.md", "Cron job"), port))
    return Job(folder, "sh", "fetch.sh")


def imported(folder: Path) -> list[int]:
    """Returns the numbers of the killmails that the script for cron has appended to its file."""
    file = folder / "killmails.ndjson"
    return [orjson.loads(line)["killmailId"] for line in file.read_text().splitlines()] if file.exists() else []


async def test_cron_job_appends_each_killmail_once(
    bridge: Bridge, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    job = cron_job(tmp_path, port_of(bridge))
    await emit(amqp, exchange, bridge, *range(1, 6))
    assert await job.run() == (0, "", "")
    assert imported(tmp_path) == [1, 2, 3, 4, 5]
    assert await job.run() == (0, "", "")
    await emit(amqp, exchange, bridge, 6, 7)
    assert await job.run() == (0, "", "")
    assert imported(tmp_path) == [1, 2, 3, 4, 5, 6, 7]


async def test_cron_job_continues_after_an_error(
    broker: Broker, bridge: Bridge, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    job = cron_job(tmp_path, port_of(bridge))
    await emit(amqp, exchange, bridge, 1)
    assert (await job.run()).code == 0
    stored = job.stored()
    await emit(amqp, exchange, bridge, 2)
    # Without a bridge, the script reports the error.
    script = tmp_path / "fetch.sh"
    text = script.read_text()
    script.write_text(text.replace(str(port_of(bridge)), str(free_port())))
    failed = await job.run()
    assert failed.code != 0
    assert "curl" in failed.errors
    # If the killmails can't be written, their id is not stored.
    script.write_text(text)
    (tmp_path / "killmails.ndjson").rename(tmp_path / "first.ndjson")
    (tmp_path / "killmails.ndjson").mkdir()
    assert (await job.run()).code != 0
    assert job.stored() == stored
    (tmp_path / "killmails.ndjson").rmdir()
    assert await job.run() == (0, "", "")
    assert imported(tmp_path) == [2]


async def test_cron_job_reports_missing_killmails(
    bridge: Bridge, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    job = cron_job(tmp_path, port_of(bridge))
    job.last_id.write_text("unknown-1\n")
    await emit(amqp, exchange, bridge, 1)
    assert await job.run() == (0, "", "some killmails are missing\n")


async def test_cron_job_does_not_run_twice_at_the_same_time(bridge: Bridge, tmp_path: Path) -> None:
    job = cron_job(tmp_path, port_of(bridge))
    async with program("flock", "lock", "sh", "-c", "echo locked; exec sleep 600", folder=tmp_path) as output:
        await printed_line(output, "locked")
        assert await job.run() == (0, "", "")
        assert not job.last_id.exists()


async def test_php_page_shows_the_newest_killmails(
    bridge: Bridge, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    php = installed("php")
    await publish(amqp, exchange, killmail(1, timestamp="2024-10-22T10:30:00.000Z"))
    await emit(amqp, exchange, bridge, 2)
    page = tmp_path / "page.php"
    page.write_text(local(code_block("schemas/clients/README.md", "PHP", 0), port_of(bridge)))
    shown = await ended(php, page, folder=tmp_path)
    assert (shown.code, shown.errors) == (0, "")
    assert [line.rpartition(" ")[2] for line in shown.output.splitlines()[1:-1]] == ["2</li>", "1</li>"]
    # Without a bridge, the page shows an empty list.
    page.write_text(local(code_block("schemas/clients/README.md", "PHP", 0), free_port()))
    assert (await ended(php, page, folder=tmp_path)).output.split() == ["<ul>", "</ul>"]


def php_import(folder: Path, port: int) -> Job:
    """Installs the script in PHP."""
    (folder / "import.php").write_text(local(code_block("schemas/clients/README.md", "PHP", 1), port))
    return Job(folder, installed("php"), "import.php")


async def test_php_script_imports_each_killmail_once(
    bridge: Bridge, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    job = php_import(tmp_path, port_of(bridge))
    await emit(amqp, exchange, bridge, *range(1, 6))
    assert await job.run() == (0, "1\n2\n3\n4\n5\n", "")
    stored = job.stored()
    await emit(amqp, exchange, bridge, 6)
    script = tmp_path / "import.php"
    text = script.read_text()
    script.write_text(text.replace("type=killmail", "type=nothing"))
    refused = await job.run()
    assert refused.code == 1
    assert "there is no update type 'nothing'" in refused.errors
    assert job.stored() == stored
    script.write_text(text)
    assert await job.run() == (0, "6\n", "")


async def test_php_script_reports_missing_killmails(
    bridge: Bridge, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    job = php_import(tmp_path, port_of(bridge))
    job.last_id.write_text("unknown-1")
    await emit(amqp, exchange, bridge, 1)
    assert await job.run() == (0, "1\n", "some killmails are missing\n")


async def test_pandas_reads_all_killmails(
    bridge: Bridge, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    if (await ended(PYTHON, "-c", "import pandas", folder=tmp_path)).code != 0:
        unavailable("pandas is not installed; `make prepare` installs it")
    await emit(amqp, exchange, bridge, *range(1, 6))
    text = local(code_block("schemas/clients/README.md", "pandas"), port_of(bridge))
    (tmp_path / "main.py").write_text(text + "print(frame.dtypes)\n")
    shown = await ended(PYTHON, "main.py", folder=tmp_path)
    assert (shown.code, shown.errors) == (0, "")
    words = [line.split() for line in shown.output.splitlines()]
    assert words[1:3] == [[str(JITA), "3"], [str(AMARR), "2"]]
    assert ["killmailId", "Int64"] in words
    assert any(line[0] == "timestamp" and line[1].startswith("datetime64") for line in words if len(line) > 1)
