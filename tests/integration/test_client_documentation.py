"""The examples in the README of the clients, run as they stand against a real bridge."""

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from aio_pika.abc import AbstractConnection
from playwright.async_api import ConsoleMessage

from bridge.app import Bridge
from tests.support.broker.find import Broker
from tests.support.browser import File, chromium, foreign_site
from tests.support.clients import RawClient
from tests.support.documentation import BIN, adapted, code_block, printed_line, program, shell
from tests.support.followers import CLIENTS, page_files
from tests.support.killmail import killmail
from tests.support.prepare import NODE, ROOT
from tests.support.publishing import publish
from tests.support.running import port_of, running, sample
from tests.support.waiting import LIMIT_S, eventually

JITA, AMARR = 30000142, 30002187


@pytest.fixture
async def bridge(broker: Broker, exchange: str) -> AsyncIterator[Bridge]:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as running_bridge:
        yield running_bridge


def local(text: str, bridge: Bridge) -> str:
    """Returns an example that uses the address of the bridge."""
    return adapted(text, ("localhost:3000", f"127.0.0.1:{port_of(bridge)}"))


async def connected(bridge: Bridge, transport: str = "websocket") -> None:
    await eventually("the client is connected", lambda: sample(bridge, "bridge_connections", transport=transport) == 1)


async def test_example_in_javascript_prints_updates(
    node: str, bridge: Bridge, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    (tmp_path / "main.js").write_text(local(code_block("schemas/clients/README.md", "WebSocket", 1), bridge))
    # Node 20 has WebSocket only with a flag, which later versions of Node accept too.
    async with program(node, "--experimental-websocket", "main.js", folder=tmp_path) as output:
        await connected(bridge)
        await publish(amqp, exchange, killmail(1))
        await printed_line(output, "killmailId: 1,")


async def test_example_in_python_prints_updates(
    bridge: Bridge, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    (tmp_path / "main.py").write_text(local(code_block("schemas/clients/README.md", "WebSocket", 2), bridge))
    async with program(sys.executable, "-u", "main.py", folder=tmp_path) as output:
        await connected(bridge)
        await publish(amqp, exchange, killmail(1))
        await printed_line(output, "'killmailId': 1,")


RECORD_PAUSE = """
async def record(pause_s):
    print("pause", pause_s)
    raise SystemExit

"""
"""A function that prints the length of a pause, and ends the program instead of the pause."""


async def test_example_in_python_pauses_after_a_full_bridge(broker: Broker, exchange: str, tmp_path: Path) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", max_connections=1) as full:
        client = await RawClient.open(port_of(full))
        await connected(full)
        example = local(code_block("schemas/clients/README.md", "WebSocket", 2), full)
        # The library also calls `asyncio.sleep`, so only the call in the example is replaced.
        (tmp_path / "main.py").write_text(RECORD_PAUSE + example.replace("asyncio.sleep(", "record("))
        async with program(sys.executable, "-u", "main.py", folder=tmp_path) as output:
            async with asyncio.timeout(LIMIT_S):
                printed = (await output.read()).decode().splitlines()
        await client.close()
    assert len(printed) == 2, printed
    assert "1013" in printed[0]
    assert 4 <= float(printed[1].removeprefix("pause ")) <= 8


async def print_in_page(
    script: str, bridge: Bridge, amqp: AbstractConnection, exchange: str, transport: str
) -> list[str]:
    """Runs a script in a page, and returns the lines of the console once the script has printed an update."""
    page_html = '<!doctype html><link rel="icon" href="data:,"><script type="module" src="/main.js"></script>'
    files = page_files({}) | page_files({}, "sse.js")
    files |= {"/": File("text/html", page_html), "/main.js": File("text/javascript", local(script, bridge))}
    lines: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        lines.append(message.text)

    async with chromium() as browser, foreign_site(files) as site:
        page = await browser.new_page()
        page.on("console", on_console)
        await page.goto(f"http://localhost:{site.port}/")
        await connected(bridge, transport)
        await publish(amqp, exchange, killmail(1))
        await eventually("the page prints the update", lambda: any("killmailId: 1," in line for line in lines))
    return lines


async def test_example_with_the_copied_browser_client_prints_updates(
    bridge: Bridge, amqp: AbstractConnection, exchange: str
) -> None:
    script = code_block("schemas/clients/README.md", "Examples to copy", 0)
    lines = await print_in_page(script, bridge, amqp, exchange, "websocket")
    assert lines[0].startswith("connected ")


async def test_example_with_the_copied_client_for_events_prints_updates(
    bridge: Bridge, amqp: AbstractConnection, exchange: str
) -> None:
    script = code_block("schemas/clients/README.md", "Examples to copy", 3)
    lines = await print_in_page(script, bridge, amqp, exchange, "sse")
    assert lines[0].startswith("connected ")


async def test_example_with_eventsource_prints_updates(bridge: Bridge, amqp: AbstractConnection, exchange: str) -> None:
    script = code_block("schemas/clients/README.md", "Server-Sent Events", 0)
    [line] = await print_in_page(script, bridge, amqp, exchange, "sse")
    assert "killmailId: 1," in line


async def test_example_with_the_copied_client_for_events_prints_updates_in_node(
    node: str, bridge: Bridge, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    (tmp_path / "node_modules").symlink_to(NODE / "node_modules")
    shutil.copy(CLIENTS / "sse.js", tmp_path / "sse.mjs")
    (tmp_path / "main.mjs").write_text(local(code_block("schemas/clients/README.md", "Examples to copy", 4), bridge))
    async with program(node, "main.mjs", folder=tmp_path) as output:
        await connected(bridge, "sse")
        await publish(amqp, exchange, killmail(1))
        await printed_line(output, "killmailId: 1,")


async def test_curl_prints_events(bridge: Bridge, amqp: AbstractConnection, exchange: str) -> None:
    await publish(amqp, exchange, killmail(1), killmail(2))
    await eventually("the bridge has the updates", lambda: sample(bridge, "bridge_update_log_updates") == 2)
    command = local(code_block("schemas/clients/README.md", "Server-Sent Events", 1), bridge)
    async with program("bash", "-c", f"exec {command}", folder=ROOT) as output, asyncio.timeout(LIMIT_S):
        assert await output.readline() == b":\n"
        assert (await output.readline()).startswith(b"retry: ")
        assert (await output.readline()).startswith(b"id: ")
        assert b'"complete":true,"replayed":1,' in await output.readline()
        await printed_line(output, 'data: .*"killmailId":2,')
        await publish(amqp, exchange, killmail(3))
        await printed_line(output, 'data: .*"killmailId":3,')


async def test_example_with_the_copied_client_for_node_prints_updates(
    node: str, bridge: Bridge, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    (tmp_path / "node_modules").symlink_to(NODE / "node_modules")
    shutil.copy(CLIENTS / "node.mjs", tmp_path)
    (tmp_path / "main.mjs").write_text(local(code_block("schemas/clients/README.md", "Examples to copy", 1), bridge))
    async with program(node, "main.mjs", folder=tmp_path) as output:
        await connected(bridge)
        await publish(amqp, exchange, killmail(1))
        await printed_line(output, "killmailId: 1,")


async def test_example_with_the_copied_client_for_python_prints_updates(
    bridge: Bridge, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    shutil.copy(CLIENTS / "python_client.py", tmp_path)
    (tmp_path / "main.py").write_text(local(code_block("schemas/clients/README.md", "Examples to copy", 2), bridge))
    async with program(sys.executable, "-u", "main.py", folder=tmp_path) as output:
        await connected(bridge)
        await publish(amqp, exchange, killmail(1))
        await printed_line(output, "'killmailId': 1,")


async def test_example_that_stores_the_last_id_continues_after_a_restart(
    bridge: Bridge, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    shutil.copy(CLIENTS / "python_client.py", tmp_path)
    (tmp_path / "main.py").write_text(local(code_block("schemas/clients/README.md", "After a restart"), bridge))
    stored = tmp_path / "last-id"
    async with program(sys.executable, "-u", "main.py", folder=tmp_path) as output:
        await connected(bridge)
        await eventually("the id of the connection is stored", stored.exists)
        await publish(amqp, exchange, killmail(1))
        last_id = (await printed_line(output, "'killmailId': 1,")).split()[0]
        await eventually("the id of the update is stored", lambda: stored.read_text() == last_id)
    await eventually("the client is gone", lambda: sample(bridge, "bridge_connections", transport="websocket") == 0)
    await publish(amqp, exchange, killmail(2))
    async with program(sys.executable, "-u", "main.py", folder=tmp_path) as output:
        first = await printed_line(output, "killmailId")
        assert "'killmailId': 2," in first
        await eventually("the new id is stored", lambda: stored.read_text() == first.split()[0])


async def test_signal_ends_the_copied_client_for_node(node: str, bridge: Bridge, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(NODE / "node_modules")
    shutil.copy(CLIENTS / "node.mjs", tmp_path)
    script = """import { updates } from "./node.mjs";
const ending = new AbortController();
const options = { signal: ending.signal, onState: () => ending.abort() };
try {
  for await (const update of updates("ws://localhost:3000/updates", options)) console.log(update);
} catch (error) {
  console.log(error.name);
}
"""
    (tmp_path / "main.mjs").write_text(local(script, bridge))
    async with program(node, "main.mjs", folder=tmp_path) as output:
        assert await printed_line(output, ".") == "AbortError\n"
        async with asyncio.timeout(LIMIT_S):
            assert await output.read() == b"", "the program has not ended"


async def print_filtered(command: str, bridge: Bridge, amqp: AbstractConnection, exchange: str) -> None:
    """Checks that a shell command prints the update that it requests."""
    async with program("bash", "-c", f"PATH={BIN}:$PATH; exec {command}", folder=ROOT) as output:
        await connected(bridge)
        await publish(amqp, exchange, killmail(1, systemId=AMARR), killmail(2, systemId=JITA))
        # Curl prints no line break.
        async with asyncio.timeout(LIMIT_S):
            await output.readuntil(b'"killmailId":2,')


async def test_tail_prints_updates(bridge: Bridge, amqp: AbstractConnection, exchange: str) -> None:
    command = code_block("schemas/clients/README.md", "Command line", 0)
    await print_filtered(local(command, bridge), bridge, amqp, exchange)


async def test_older_curl_prints_updates(bridge: Bridge, amqp: AbstractConnection, exchange: str) -> None:
    command = code_block("schemas/clients/README.md", "Command line", 2)
    await print_filtered(local(command, bridge), bridge, amqp, exchange)


def refused_queries() -> Sequence[str]:
    """Queries that are refused according to the section about filters."""
    return "type=killmail,event", "type[]=killmail", "type=nothing", "systemId=Jita"


async def test_curl_shows_why_a_filter_is_refused(bridge: Bridge, tmp_path: Path) -> None:
    command = code_block("schemas/clients/README.md", "Filters", 1)
    output = await shell(adapted(local(command, bridge), ("curl", "curl -s")), tmp_path)
    assert output.decode() == code_block("schemas/clients/README.md", "Filters", 2)
    for query in refused_queries():
        refused = await shell(f"curl -sgi 'http://127.0.0.1:{port_of(bridge)}/updates?{query}'", tmp_path)
        assert refused.startswith(b"HTTP/1.1 400 "), query
