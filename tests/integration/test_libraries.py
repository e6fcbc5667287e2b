"""Real WebSocket libraries, in several languages, connect as their documentation shows and get an update."""

import asyncio
import itertools
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import orjson
import pytest
import pytest_asyncio
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
"""For a client to start, on a busy machine."""

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
"""How each is started, with the bridge's URL behind."""

LOADED: Mapping[str, Sequence[str]] = {
    "libsoup": (str(DEBIAN_PYTHON), "-c", "import gi; gi.require_version('Soup', '3.0')"),
    "AnyEvent": ("perl", "-MAnyEvent::WebSocket::Client", "-e1"),
    "Mojolicious": ("perl", "-MMojo::UserAgent", "-e1"),
    "faye-websocket on Ruby": ("ruby", "-rfaye/websocket", "-e", ""),
    "tcllib": ("sh", "-c", "echo 'exit [catch {package require websocket}]' | tclsh"),
}
"""Commands that succeed only if the library is installed. The language alone may be installed without it."""

BY_CHANCE = frozenset({"java.net.http"})
"""What is used if it is there: a Java runtime is 200 MB."""


EXCHANGE = unique("libraries")
NUMBERS = itertools.count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(broker: Broker) -> AsyncIterator[Bridge]:
    """A bridge for all of them."""
    async with running(broker.url, exchanges=f"{EXCHANGE}=killmail") as bridge:
        yield bridge
        async with observer(broker.url) as amqp:
            await (await amqp.channel()).exchange_delete(EXCHANGE)


def started(name: str) -> list[str | Path]:
    """The command; the test skips if its program is missing, or fails where it must not."""
    program, *arguments = COMMANDS[name]
    if program == "bun":
        try:
            return [bun(), "--no-install", *arguments]
        except Failed as error:
            unavailable(str(error))
    if shutil.which(program) is None:
        if name in BY_CHANCE:
            pytest.skip(f"{program} is not installed")
        unavailable(f"{program} is not installed; `make prepare` installs it")
    if name in LOADED and subprocess.run(LOADED[name], capture_output=True, check=False).returncode:
        unavailable(f"the library {name} is not installed; `make prepare` installs it")
    return [program, *arguments]


@pytest.mark.parametrize("name", COMMANDS)
async def test_client_made_with_a_library_gets_an_update(
    name: str, shared: Bridge, amqp: AbstractConnection, tmp_path: Path
) -> None:
    folder = tmp_path
    if name in {f"{library} on Node" for library in OF_NODE}:
        # Node looks for packages where the script is.
        folder = NODE
    url = f"ws://127.0.0.1:{port_of(shared)}/updates"
    process = await asyncio.create_subprocess_exec(
        *started(name), url, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:

        def is_connected() -> bool:
            assert process.returncode is None, "it ended before it was connected"
            return sample(shared, "bridge_connections", transport="websocket") == 1

        await eventually("it is connected", is_connected, limit_s=LIMIT_S)
        # Another one for each client: an update is sent once.
        await publish(amqp, EXCHANGE, event := killmail(next(NUMBERS)))
        async with asyncio.timeout(LIMIT_S):
            output, errors = await process.communicate()
    except BaseException:
        if process.returncode is None:
            process.kill()
        _, errors = await process.communicate()
        sys.stderr.write(errors.decode(errors="replace"))
        raise
    assert process.returncode == 0, errors.decode(errors="replace")
    assert orjson.loads(output)["data"] == event
    await eventually("it is gone", lambda: sample(shared, "bridge_connections", transport="websocket") == 0)
