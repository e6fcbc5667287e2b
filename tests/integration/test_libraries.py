"""Real WebSocket libraries, in several languages, connect as their documentation shows and get an update.

The README of the clients lists the libraries that refuse a large update by default, and how to raise their limits. The
tests check that each listed library gets the largest update only with the option that the README names.
"""

import asyncio
import itertools
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
import pytest_asyncio
import websocket
from aio_pika.abc import AbstractConnection

from bridge.app import Bridge
from tests.bench.build import bun
from tests.bench.process import Failed
from tests.support import module_loop
from tests.support.broker.find import Broker
from tests.support.broker.session import unavailable
from tests.support.killmail import killmail
from tests.support.prepare import DEBIAN_PYTHON, NODE, ROOT
from tests.support.publishing import observer, publish
from tests.support.running import port_of, running, sample, unique
from tests.support.waiting import eventually

pytestmark = [pytest.mark.slow, module_loop.MARK]
amqp = module_loop.amqp

FOLDER = ROOT / "tests/conformance/libraries"
PYTHON = ROOT / ".venv/libraries/bin/python"
LIMIT_S = 60.0
"""The time that a client may take to start on a busy machine."""

OF_PYTHON = (
    "aiohttp",
    "httpx_ws",
    "lomond",
    "picows",
    "simple_websocket",
    "tornado",
    "websocket_client",
    "websockets_asyncio",
    "websockets_sync",
    "ws4py",
)
OF_NODE = ("faye-websocket", "undici", "websocket", "ws")
COMMANDS: Mapping[str, Sequence[str | Path]] = {
    **{name: (PYTHON, FOLDER / "clients.py", name) for name in OF_PYTHON},
    **{f"{name} on Node": ("node", "clients.mjs", name) for name in OF_NODE},
    "Bun": ("bun", NODE / "clients.mjs", "builtin"),
    "java.net.http": ("java", FOLDER / "HttpClient.java"),
    "libsoup": (DEBIAN_PYTHON, FOLDER / "clients.py", "soup"),
    "AnyEvent": ("perl", FOLDER / "anyevent.pl"),
    "Mojolicious": ("perl", FOLDER / "mojo.pl"),
    "faye-websocket on Ruby": ("ruby", FOLDER / "faye.rb"),
    "tcllib": ("tclsh", FOLDER / "tcllib.tcl"),
}
"""The command of each client. The last argument of each command is the bridge's URL."""

LOADED: Mapping[str, Sequence[str]] = {
    "libsoup": (str(DEBIAN_PYTHON), "-c", "import gi; gi.require_version('Soup', '3.0')"),
    "AnyEvent": ("perl", "-MAnyEvent::WebSocket::Client", "-e1"),
    "Mojolicious": ("perl", "-MMojo::UserAgent", "-e1"),
    "faye-websocket on Ruby": ("ruby", "-rfaye/websocket", "-e", ""),
    "tcllib": ("sh", "-c", "echo 'exit [catch {package require websocket}]' | tclsh"),
}
"""Commands that succeed only if a library is installed. A language may be installed without its WebSocket library."""

OPTIONAL = frozenset({"java.net.http"})
"""Clients that are tested only where they are installed, because a Java runtime takes 200 MB."""

MAX_EVENT_BYTES = 4 * 2**20
"""The default of BRIDGE_MAX_MESSAGE_BYTES. The envelope of an update adds less than 100 bytes."""

LIMITED: Mapping[str, Sequence[str]] = {
    "websockets (Python)": ("websockets_asyncio", "websockets_sync"),
    "aiohttp (Python)": ("aiohttp",),
    "`websocket` (npm)": ("websocket on Node",),
    "libsoup 3": ("libsoup",),
    "AnyEvent::WebSocket::Client (Perl)": ("AnyEvent",),
    "Mojolicious (Perl)": ("Mojolicious",),
}
"""The libraries in the README's table that a test runs, each with its clients."""

USING_PROXY = {
    "websockets_asyncio": "http_proxy",
    "websockets_sync": "http_proxy",
    "websocket_client": "http_proxy",
    "httpx_ws": "all_proxy",
}
"""Clients that by default use a proxy from the environment, each with the name of the variable."""

EXCHANGE = unique("libraries")
NUMBERS = itertools.count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(broker: Broker) -> AsyncIterator[Bridge]:
    """A bridge for the clients of all tests."""
    async with running(broker.url, exchanges=f"{EXCHANGE}=killmail") as bridge:
        yield bridge
        async with observer(broker.url) as amqp:
            await (await amqp.channel()).exchange_delete(EXCHANGE)


def command(name: str) -> list[str | Path]:
    """Returns the command of a client.

    If the program is missing, the test is skipped, or fails where skipping is not allowed.
    """
    program, *arguments = COMMANDS[name]
    if program == "bun":
        try:
            return [bun(), "--no-install", *arguments]
        except Failed as error:
            unavailable(str(error))
    if shutil.which(program) is None:
        if name in OPTIONAL:
            pytest.skip(f"{program} is not installed")
        unavailable(f"{program} is not installed; `make prepare` installs it")
    if name in LOADED and subprocess.run(LOADED[name], capture_output=True, check=False).returncode:
        unavailable(f"the library {name} is not installed; `make prepare` installs it")
    return [program, *arguments]


def update_bytes(number: int) -> bytes:
    """Returns a killmail of the largest size that the bridge accepts."""
    body = orjson.dumps(killmail(number, padding=""))
    return body.replace(b'"padding":""', b'"padding":"%s"' % (b"x" * (MAX_EVENT_BYTES - len(body))))


class Client:
    """A process that prints one update."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.output = asyncio.create_task(process.communicate())


@asynccontextmanager
async def client(
    arguments: Sequence[str | Path], bridge: Bridge, folder: Path, *protocols: str, **variables: str
) -> AsyncIterator[Client]:
    """Runs a client, and kills it at the end if it still runs. The clients for Node can request subprotocols."""
    process = await asyncio.create_subprocess_exec(
        *arguments,
        f"ws://127.0.0.1:{port_of(bridge)}/updates",
        *protocols,
        cwd=folder,
        env={name: text for name, text in os.environ.items() if not name.lower().endswith("_proxy")} | variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    running_client = Client(process)
    try:
        yield running_client
    finally:
        if process.returncode is None:
            process.kill()
        await running_client.output


def connections(bridge: Bridge) -> float:
    return sample(bridge, "bridge_connections", transport="websocket")


async def connected(client: Client, bridge: Bridge) -> None:
    """Waits until the client is connected, or raises AssertionError with the output of a client that has ended."""

    def is_connected() -> bool:
        assert not client.output.done(), client.output.result()
        return connections(bridge) == 1

    await eventually("the client is connected", is_connected, limit_s=LIMIT_S)


async def printed(client: Client) -> object:
    """Returns the data of the update that the client prints."""
    async with asyncio.timeout(LIMIT_S):
        output, errors = await client.output
    assert client.process.returncode == 0, errors.decode(errors="replace")
    return orjson.loads(output)["data"]


def folder_of(name: str, folder: Path) -> Path:
    """Returns the folder to run a client in. Node looks for packages in the folder of the script."""
    return NODE if name.endswith("on Node") else folder


@pytest.mark.parametrize("name", COMMANDS)
async def test_client_made_with_a_library_gets_the_largest_update(
    name: str, shared: Bridge, amqp: AbstractConnection, tmp_path: Path
) -> None:
    async with client(command(name), shared, folder_of(name, tmp_path)) as running_client:
        await connected(running_client, shared)
        # A killmail with the number of an earlier killmail would be dropped as a duplicate.
        await publish(amqp, EXCHANGE, event := update_bytes(next(NUMBERS)))
        assert await printed(running_client) == orjson.loads(event)
    await eventually("the client is gone", lambda: connections(shared) == 0)


def limits() -> Iterator[tuple[str, str, str]]:
    """Yields the rows of the README's table: the library, its limit, and the option that raises the limit."""
    text = (ROOT / "schemas/clients/README.md").read_text()
    section = text.partition("\n## Limits of client libraries\n")[2].partition("\n## ")[0]
    yield from re.findall(r"^\| (.+) \| (.+) \| (.+) \|$", section, re.MULTILINE)[2:]


def option_of(library: str) -> str:
    [option] = [option for name, _, option in limits() if name == library]
    return option.strip("`")


async def test_each_client_with_a_limit_is_in_the_table_of_the_readme() -> None:
    assert set(LIMITED) <= {library for library, _, _ in limits()}


@pytest.mark.parametrize(("library", "name"), [(library, name) for library, names in LIMITED.items() for name in names])
async def test_client_without_the_option_of_the_readme_refuses_the_largest_update(
    library: str, name: str, shared: Bridge, amqp: AbstractConnection, tmp_path: Path
) -> None:
    program, *arguments = command(name)
    folder = folder_of(name, tmp_path)
    script = folder / arguments[0]
    text = script.read_text()
    assert option_of(library) in text, f"{script} does not have the option that the README names"
    (tmp_path / script.name).write_text(text.replace(option_of(library), ""))
    (tmp_path / "node_modules").symlink_to(NODE / "node_modules")
    changed = [program, tmp_path / script.name, *arguments[1:]]
    async with client(changed, shared, tmp_path) as running_client:
        await connected(running_client, shared)
        await publish(amqp, EXCHANGE, update_bytes(next(NUMBERS)))
        await eventually("the client has closed the connection", lambda: connections(shared) == 0)
        if running_client.process.returncode is None:
            running_client.process.kill()
        output, _ = await running_client.output
    assert output.strip() == b""


@pytest.mark.parametrize("name", USING_PROXY)
async def test_client_uses_the_proxy_of_the_environment_even_for_localhost(
    name: str, shared: Bridge, amqp: AbstractConnection, tmp_path: Path
) -> None:
    script = tmp_path / "clients.py"
    script.write_text((FOLDER / "clients.py").read_text().replace("proxy=None, ", ""))
    changed = [command(name)[0], script, name]
    nothing_listens = {USING_PROXY[name]: "http://127.0.0.1:1"}
    async with client(changed, shared, tmp_path, **nothing_listens) as running_client, asyncio.timeout(LIMIT_S):
        _, errors = await running_client.output
    assert running_client.process.returncode == 1
    assert b"roxy" in errors or b"refused" in errors
    async with client(changed, shared, tmp_path, **nothing_listens, no_proxy="localhost,127.0.0.1") as running_client:
        await connected(running_client, shared)
        await publish(amqp, EXCHANGE, event := killmail(next(NUMBERS)))
        assert await printed(running_client) == event


@pytest.mark.parametrize("name", ["ws on Node", "undici on Node"])
async def test_client_that_requests_a_subprotocol_ends_the_connection(name: str, shared: Bridge) -> None:
    async with client(command(name), shared, NODE, "json") as running_client, asyncio.timeout(LIMIT_S):
        output, _ = await running_client.output
    assert (running_client.process.returncode, output) == (1, b"")


async def test_websocket_client_that_requests_a_subprotocol_ends_the_connection(shared: Bridge) -> None:
    url = f"ws://127.0.0.1:{port_of(shared)}/updates"
    with pytest.raises(websocket.WebSocketException, match="Invalid WebSocket Header"):
        await asyncio.to_thread(websocket.create_connection, url, subprotocols=["json"])
