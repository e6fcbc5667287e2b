"""Programs that follow a bridge, and a scripted bridge that they follow.

The programs are the examples of `schemas/clients`, in a browser, in Node and in Python, and `edk-bridge tail`. Each
example runs as a copy of its file with changed pauses. `reports` returns the reports of a program.
"""

import asyncio
import importlib.util
import json
import logging
import re
import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence, Set
from contextlib import asynccontextmanager, suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

import orjson
from playwright.async_api import Browser
from websockets.asyncio.server import Server, ServerConnection, broadcast, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from bridge.contract.catalog import PACKAGED
from tests.support.browser import File, foreign_site
from tests.support.commands import IMPATIENT, Tailing, tailing
from tests.support.prepare import NODE
from tests.support.waiting import LIMIT_S

CLIENTS = PACKAGED / "clients"

PAUSES_S = {"FIRST_PAUSE": 0.02, "LONGEST_PAUSE": 0.1, "LASTING": 0.0}
"""The pauses in a copy of an example, unless a test chooses other pauses."""

_PAGE = """<!doctype html><link rel="icon" href="data:,"><script>
const reports = [];
let connection;
async function follow(url, options) {
  const { connect } = await import("/EXAMPLE");
  connection = connect(url, {
    ...options,
    onUpdate: (update) => reports.push(["update", update]),
    onState: (...state) => reports.push(state),
    onMissed: (data) => reports.push(["missed", data]),
    onHeartbeat: (data) => reports.push(["heartbeat", data]),
  });
}
</script>"""


class Follower(Protocol):
    """A running program that follows a bridge."""

    async def reports(self) -> list[list[Any]]:
        """Returns the calls that the client made to its callbacks, each as a list.

        The possible calls are `["update", {...}]`, `["missed", {...}]`, `["heartbeat", {...}]`, `["connected", id]`,
        `["disconnected", why]` and `["refused", sentence]`.
        """

    async def stop(self) -> None:
        """Asks the program to end."""


async def updates_of(follower: Follower) -> list[Any]:
    """Returns the updates in the reports of a follower."""
    return [words[1] for words in await follower.reports() if words[0] == "update"]


class InBrowser:
    """An open page of a browser that follows a bridge."""

    def __init__(self, page: Any) -> None:
        self._page = page
        self._errors: list[str] = []
        page.on("pageerror", lambda error: self._errors.append(str(error)))

    async def reports(self) -> list[list[Any]]:
        assert self._errors == [], "the script of the page failed"
        return list(await self._page.evaluate("reports"))

    async def stop(self) -> None:
        await self._page.evaluate("connection.stop()")

    async def last_id(self) -> str:
        """Returns the id that a page would store for its next visit."""
        return str(await self._page.evaluate("connection.lastId()"))


@asynccontextmanager
async def in_browser(
    browser: Browser,
    url: str,
    silence_s: float,
    pauses_s: Mapping[str, float],
    *,
    after: str = "",
    example: str = "browser.js",
) -> AsyncIterator[InBrowser]:
    """Follows a bridge in a page that is served from localhost. The page imports the example from a plain script."""
    async with (
        foreign_site(page_files(pauses_s, example)) as site,
        in_page(browser, f"http://localhost:{site.port}/", url, silence_s, after=after) as follower,
    ):
        yield follower


def page_files(pauses_s: Mapping[str, float], example: str = "browser.js") -> dict[str, File]:
    """Returns the files of a site with a page that follows a bridge."""
    script = paused((CLIENTS / example).read_text(), pauses_s)
    page_html = _PAGE.replace("EXAMPLE", example)
    return {"/": File("text/html", page_html), f"/{example}": File("text/javascript", script)}


@asynccontextmanager
async def in_page(
    browser: Browser,
    page_url: str,
    url: str,
    silence_s: float,
    *,
    after: str = "",
    permissions: Sequence[str] | None = None,
) -> AsyncIterator[InBrowser]:
    """Follows a bridge from the page at `page_url`, which must be made of `page_files`.

    The browser trusts any certificate.

    With `permissions`, the page has exactly these permissions. Without `permissions`, the browser would ask the user.
    """
    context = await browser.new_context(ignore_https_errors=True)
    try:
        if permissions is not None:
            await context.grant_permissions(permissions)
        page = await context.new_page()
        follower = InBrowser(page)
        await page.goto(page_url)
        options = {"silenceMs": silence_s * 1000, "after": after}
        await page.evaluate("([url, options]) => follow(url, options)", [url, options])
        yield follower
    finally:
        await context.close()


@asynccontextmanager
async def node_program(node: str, script: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Runs a script with Node, and kills it at the end if it still runs. `node` is the command of Node."""
    process = await asyncio.create_subprocess_exec(
        node,
        script.name,
        *arguments,
        cwd=script.parent,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**20,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def node_line(process: asyncio.subprocess.Process) -> bytes:
    """Returns the next line that the script prints, without its line break."""
    assert process.stdout is not None
    async with asyncio.timeout(LIMIT_S):
        return (await process.stdout.readline()).removesuffix(b"\n")


class InNode:
    """A running Node process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._reports: list[list[Any]] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self._reports.append(json.loads(line))

    async def reports(self) -> list[list[Any]]:
        return list(self._reports)

    async def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")

    async def ended(self) -> int:
        """Waits for the end of the program, and returns the exit code."""
        await self._reading
        return await self.process.wait()


@asynccontextmanager
async def in_node(
    node: str, folder: Path, url: str, silence_s: float, pauses_s: Mapping[str, float], *speed: str, after: str = ""
) -> AsyncIterator[InNode]:
    """Runs a program that imports the example for Node."""
    options = json.dumps({"silenceMs": silence_s * 1000, "after": after})
    program = _program(folder, "node.mjs", "follow.mjs", pauses_s)
    async with node_program(node, program, url, options, *speed) as process:
        yield InNode(process)


@asynccontextmanager
async def in_node_with_events(
    node: str, folder: Path, url: str, silence_s: float, pauses_s: Mapping[str, float], *, after: str = ""
) -> AsyncIterator[InNode]:
    """Runs a program that imports the example for Server-Sent Events."""
    options = json.dumps({"silenceMs": silence_s * 1000, "after": after})
    program = _program(folder, "sse.js", "follow-sse.mjs", pauses_s)
    async with node_program(node, program, url, options) as process:
        yield InNode(process)


def _program(folder: Path, example: str, program: str, pauses_s: Mapping[str, float]) -> Path:
    """Copies an example and a program that imports the example, with the packages that they need.

    Returns the path of the program.
    """
    if not (folder / "node_modules").exists():
        (folder / "node_modules").symlink_to(NODE / "node_modules")
    module = Path(example).with_suffix(".mjs")  # Node treats a file with the suffix .js as CommonJS.
    (folder / module).write_text(paused((CLIENTS / example).read_text(), pauses_s))
    (folder / program).write_text((NODE / program).read_text())
    return folder / program


class InPython(logging.Handler):
    """The Python example, running as a task."""

    def __init__(self, client: ModuleType, url: str, silence_s: float, after: str) -> None:
        super().__init__(logging.INFO)
        self.levels: list[int] = []
        """The levels of the example's log lines."""
        self._client = client
        self._reports: list[list[Any]] = []
        self.task = asyncio.create_task(self._follow(url, silence_s, after))

    async def _follow(self, url: str, silence_s: float, after: str) -> None:
        callbacks = {f"on_{what}": partial(self._record, what) for what in ("connected", "missed", "heartbeat")}
        try:
            async for update in self._client.updates(url, after, **callbacks, silence_s=silence_s):
                self._reports.append(["update", update])
        except self._client.Refused as refusal:
            self._reports.append(["refused", str(refusal)])

    def _record(self, *words: Any) -> None:
        self._reports.append(list(words))

    def emit(self, record: logging.LogRecord) -> None:
        self.levels.append(record.levelno)
        self._record(
            record.msg.partition(":")[0],
            *(arg if isinstance(arg, int) else str(arg) for arg in record.args or ()),
        )

    async def reports(self) -> list[list[Any]]:
        return list(self._reports)

    async def stop(self) -> None:
        self.task.cancel()


@asynccontextmanager
async def in_python(
    url: str, silence_s: float, pauses_s: Mapping[str, float], *, after: str = ""
) -> AsyncIterator[InPython]:
    """Runs the example as a task in the loop of the test."""
    client = python_client(pauses_s)
    follower = InPython(client, url, silence_s, after)
    client.log.setLevel(logging.INFO)
    client.log.addHandler(follower)
    try:
        yield follower
    finally:
        client.log.removeHandler(follower)
        follower.task.cancel()
        with suppress(asyncio.CancelledError):
            await follower.task


def python_client(pauses_s: Mapping[str, float]) -> ModuleType:
    """Returns the example as a new module with changed pauses."""
    spec = importlib.util.spec_from_file_location("python_client", CLIENTS / "python_client.py")
    assert spec is not None
    assert spec.loader is not None
    client = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(client)
    pauses = PAUSES_S | dict(pauses_s)
    for name, pause_s in (pauses | {"PAUSE_WHEN_FULL": 8 * pauses["FIRST_PAUSE"]}).items():
        assert hasattr(client, f"{name}_S")
        setattr(client, f"{name}_S", pause_s)
    return client


class InTail:
    """A running `edk-bridge tail`."""

    def __init__(self, tail: Tailing) -> None:
        self.tail = tail
        self._reports: list[list[Any]] = []
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.tail.process.stdout is not None
        async for line in self.tail.process.stdout:
            self._reports.append(["update", orjson.loads(line)])

    async def reports(self) -> list[list[Any]]:
        """Returns the updates, then `["missed"]` for each warning of a loss, and `["refused"]` for each refusal."""
        missed = [["missed"] for line in self.tail.errors if "missing" in line]
        return [*self._reports, *missed, *(["refused"] for line in self.tail.errors if "refuses" in line)]

    async def stop(self) -> None:
        """Asks the program to end."""
        self.tail.process.terminate()


@asynccontextmanager
async def in_tail(*arguments: str, pauses: str = IMPATIENT, timing: str = "") -> AsyncIterator[InTail]:
    """Runs the command as a follower."""
    async with tailing(*arguments, pauses=pauses, timing=timing) as tail:
        follower = InTail(tail)
        yield follower
    await follower.reading


def paused(script: str, pauses_s: Mapping[str, float]) -> str:
    """Returns a copy of a script with PAUSES_S and `pauses_s` in place of the script's own pauses."""
    for name, pause_s in (PAUSES_S | dict(pauses_s)).items():
        script, count = re.subn(rf"const {name}_MS = [0-9_]+;", f"const {name}_MS = {pause_s * 1000};", script)
        assert count == 1, name
    return script


TAG = "9f86d081"
UNKNOWN = f"7-{'0' * 8}"
"""An id that the scripted bridge has never sent."""


class ScriptedLog(ABC):
    """The messages of a scripted bridge, with the ids of a bridge that has no stream.

    The log does not validate updates. Heartbeats are sent only when the test says so.
    """

    def __init__(self) -> None:
        self._number = 0
        self._log: list[bytes] = []
        """The messages that can be replayed. A message that matches no filter is empty."""

    @abstractmethod
    def send(self, text: bytes) -> None:
        """Sends a message to all clients that are connected."""

    @property
    def last_id(self) -> str:
        """The id of the newest message."""
        return f"{self._number}-{TAG}"

    def emit(self, data: object, update_type: str = "killmail") -> bytes:
        """Sends an update, and returns the text of the update."""
        self._number += 1
        return self._append(message(update_type, data, id=self.last_id))

    def send_gap(self, **data: str) -> None:
        """Reports a gap. The gap has an id of its own, as an update has."""
        self._number += 1
        self._append(message("gap", {**data, "id": self.last_id}))

    def _append(self, text: bytes) -> bytes:
        self._log.append(text)
        self.send(text)
        return text

    def beat(self, *, consuming: bool = True) -> None:
        """Sends a heartbeat."""
        self.send(message("heartbeat", {"id": self.last_id, "consuming": consuming}))

    def pass_by(self) -> None:
        """Appends an update that matches no filter: no client gets the update, but a later heartbeat has its id."""
        self._number += 1
        self._log.append(b"")

    def forget(self) -> None:
        """Drops all messages that can be replayed."""
        self._log.clear()

    def resume(self, after: str, last: str) -> list[bytes]:
        """Returns the `resume` message for the parameters of a client, and the messages that the client gets next."""
        oldest = self._number - len(self._log)
        known = [f"{number}-{TAG}" for number in range(oldest, self._number + 1)]
        is_known = after in known
        if is_known:
            begin = known.index(after)
        elif last:
            begin = max(0, len(self._log) - int(last))
        else:
            begin = 0 if after else len(self._log)
        replayed = [text for text in self._log[begin:] if text]
        data = {"complete": is_known or after in {"", "earliest"}, "replayed": len(replayed), "id": known[begin]}
        return [message("resume", data), *replayed]


class ScriptedBridge(ScriptedLog):
    """A bridge on 127.0.0.1 that a test controls, for faults that a real bridge shows only by chance.

    The scripted bridge implements the parts of `?after=` and `?last=` that a client sees: `resume`, updates with ids,
    gaps, heartbeats, close codes, refusals. A test can change the attributes of the bridge, which then apply to later
    clients.
    """

    def __init__(self, ping_interval_s: float | None = None, tls: ssl.SSLContext | None = None) -> None:
        super().__init__()
        self.port = 0
        self.asked: list[str] = []
        """The query of each handshake, as received."""
        self.asked_at: list[float] = []
        """The time of each handshake, in seconds on the clock of the event loop."""
        self.connections: list[ServerConnection] = []
        """The connections that are open, or that ended without a close frame."""
        self.ready = asyncio.Event()
        self.ready.set()
        """While the event `ready` is not set, new clients receive nothing."""
        self.refusal: tuple[HTTPStatus, str] | None = None
        """The status and the sentence with which the bridge refuses handshakes."""
        self.location = ""
        """The header Location of a refusal. If the text is empty, a refusal has no such header."""
        self.closing: int | None = None
        """The code with which each new connection is closed at once."""
        self.resumes = True
        """If false, a new connection receives nothing, not even `resume`."""
        self._muted: set[ServerConnection] = set()
        self._not_resumed: set[ServerConnection] = set()
        """Connections that have not received `resume`.

        Such connections get no updates and no gaps, because a bridge sends `resume` first.
        """
        self._ping_interval_s = ping_interval_s
        self._tls = tls
        self._server: Server | None = None

    @property
    def url(self) -> str:
        """The URL of the bridge's endpoint."""
        return f"{'wss' if self._tls else 'ws'}://127.0.0.1:{self.port}/updates"

    async def start(self) -> None:
        """Starts to listen on a free port, or on the same port as before."""
        self._server = await serve(
            self._serve,
            "127.0.0.1",
            self.port,
            ssl=self._tls,
            process_request=self._refuse,
            compression=None,
            ping_interval=self._ping_interval_s,
            ping_timeout=None,
            close_timeout=1,
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stops as a bridge does: closes each connection with 1001."""
        assert self._server is not None
        for connection in self._muted:
            # The client of a muted connection would not answer the close frame.
            connection.transport.abort()
        self._server.close()
        await self._server.wait_closed()

    def send(self, text: bytes) -> None:
        """Sends a message of the log to all clients that are not muted."""
        self._broadcast(text, self._muted | self._not_resumed)

    def say(self, text: bytes) -> None:
        """Sends a message of any kind to all clients that are not muted."""
        self._broadcast(text, self._muted)

    def _broadcast(self, text: bytes, excluded: Set[ServerConnection]) -> None:
        broadcast([connection for connection in self.connections if connection not in excluded], text.decode())

    def mute(self) -> None:
        """From now on, sends and reads nothing on the open connections, as if they were dead."""
        for connection in self.connections:
            connection.transport.pause_reading()
            if connection.keepalive_task is not None:
                connection.keepalive_task.cancel()
        self._muted.update(self.connections)

    def drop(self) -> None:
        """Ends the connections without a close frame, as a killed proxy does."""
        for connection in self.connections:
            connection.transport.abort()

    async def close(self, code: int) -> None:
        """Closes the connections with a code."""
        for connection in list(self.connections):
            await connection.close(code)

    def _refuse(self, connection: ServerConnection, request: Request) -> Response | None:
        self.asked.append(urlsplit(request.path).query)
        self.asked_at.append(asyncio.get_running_loop().time())
        if self.refusal is None:
            return None
        status, sentence = self.refusal
        body = sentence.encode() + b"\n"
        headers = Headers({"Content-Length": str(len(body)), "Content-Type": "text/plain", "Connection": "close"})
        if self.location:
            headers["Location"] = self.location
        return Response(status.value, status.phrase, headers, body)

    async def _serve(self, connection: ServerConnection) -> None:
        if self.closing is not None:
            await connection.close(self.closing)
            return
        await self.ready.wait()
        assert connection.request is not None
        if self.resumes:
            query = parse_qs(urlsplit(connection.request.path).query, keep_blank_values=True)
            [after] = query["after"]
            [last] = query.get("last", [""])
            for text in self.resume(after, last):
                broadcast([connection], text.decode())
        else:
            self._not_resumed.add(connection)
        self.connections.append(connection)
        await connection.wait_closed()
        self.connections.remove(connection)


@asynccontextmanager
async def scripted_bridge(
    ping_interval_s: float | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[ScriptedBridge]:
    """Runs a scripted bridge that listens."""
    bridge = ScriptedBridge(ping_interval_s, tls)
    await bridge.start()
    try:
        yield bridge
    finally:
        await bridge.stop()


def message(message_type: str, data: object, **more: Any) -> bytes:
    """Returns the text of a message that is sent now."""
    return orjson.dumps({"type": message_type, "data": data, "timestamp": time.time_ns() // 1_000_000, **more})
