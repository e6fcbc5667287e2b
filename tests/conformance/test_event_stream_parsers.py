"""Common parsers of Server-Sent Events get the bytes that a bridge sends.

The parsers are Chromium's, the package eventsource for Node, and httpx-sse and sseclient-py for Python. The README of
this folder has a table of what they deliver.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import orjson
import pytest
from aio_pika.abc import AbstractConnection

from bridge.broadcast.frames import event_block
from bridge.cli.follow.event_parser import EventParser
from bridge.contract import envelope
from tests.conformance.played_streams import (
    COMMENT,
    EVENT,
    FULL,
    FULL_RETRY_MS,
    GAP,
    HEAD,
    HEARTBEAT,
    KILLMAIL,
    MESSAGES,
    ORDINARY,
    RESPONSES,
    RETRY,
    RETRY_MS,
    START,
    STOPPING,
    Response,
    block,
    splits,
)
from tests.support.broker.find import Broker
from tests.support.broker.session import unavailable
from tests.support.browser import chromium
from tests.support.event_streams import stream_request
from tests.support.prepare import NODE, ROOT
from tests.support.publishing import publish
from tests.support.running import port_of, running
from tests.support.waiting import eventually

README = ROOT / "tests/conformance/README.md"
PYTHON = ROOT / ".venv/libraries/bin/python"
LIMIT_S = 120.0

PARSERS = ("Chromium", "eventsource", "httpx-sse", "sseclient-py")

RETRIES = {"Chromium": (), "eventsource": (), "httpx-sse": [RETRY_MS], "sseclient-py": [str(RETRY_MS)]}
"""The values of `retry:` that each parser delivers."""

NAMES = tuple(f"| {response.name} |" for response in RESPONSES)

CLOSED = 2
"""The value of `readyState` when an EventSource gives up."""


@dataclass
class Played:
    """The requests for one path."""

    response: Response
    pieces: Sequence[bytes]
    last_event_ids: list[str] = field(default_factory=list)
    """The value of `Last-Event-ID` in each request, or an empty text."""
    times_s: list[float] = field(default_factory=list)
    """The time at the end of the first response, and the time of the next request."""


class StreamServer:
    """Plays responses on 127.0.0.1. A second request for the same path gets 204, after which a client must give up."""

    def __init__(self) -> None:
        self.port = 0
        self._paths: dict[str, Played] = {}
        self._numbers = count()

    def add(self, response: Response, pieces: Sequence[bytes] | None = None) -> tuple[str, Played]:
        """Adds a path with the response, in the given pieces of its body. Returns the URL, and the later requests."""
        path = f"/{next(self._numbers)}"
        self._paths[path] = Played(response, [response.body] if pieces is None else pieces)
        return self.url(path), self._paths[path]

    def url(self, path: str) -> str:
        """Returns the URL of a path."""
        return f"http://127.0.0.1:{self.port}{path}"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            path = head.split(" ")[1]
            if path in self._paths:
                await self._play(self._paths[path], head, writer)
            else:
                script = (NODE / "event_source.mjs").read_bytes()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/javascript\r\nConnection: close\r\n\r\n" + script)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # A browser may connect in advance.
        finally:
            writer.close()

    async def _play(self, played: Played, head: str, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        found = re.search(r"^last-event-id: (.*?)\r$", head, re.MULTILINE | re.IGNORECASE)
        played.last_event_ids.append(found[1] if found else "")
        if len(played.last_event_ids) > 1:
            played.times_s.append(loop.time())
            writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            return
        writer.write(played.response.head)
        for piece in played.pieces:
            # After a pause, the client usually reads each piece alone. No test depends on that.
            await asyncio.sleep(0.001)
            writer.write(piece)
            await writer.drain()
        played.times_s.append(loop.time())


@asynccontextmanager
async def stream_server() -> AsyncIterator[StreamServer]:
    """Runs a server."""
    player = StreamServer()
    async with await asyncio.start_server(player.answer, "127.0.0.1", 0) as server:
        player.port = server.sockets[0].getsockname()[1]
        yield player


@dataclass(frozen=True)
class Record:
    """What a parser delivered."""

    events: Sequence[tuple[str, str]]
    """The data and the id of each event."""
    end: str
    retries: Sequence[object] = ()
    """The values of `retry:`, if the parser delivers them."""


async def in_chromium(server: StreamServer, urls: Sequence[str], *, once: bool) -> list[Record]:
    """Runs the browser."""
    async with chromium() as browser:
        page = await browser.new_page()
        await page.goto(server.url("/"))
        call = """async ([urls, once]) =>
            (await import("/event_source.mjs")).recordAll(EventSource, urls, once)"""
        return [_record_of_event_source(found) for found in await page.evaluate(call, [list(urls), once])]


async def in_node(node: str, urls: Sequence[str], *, once: bool) -> list[Record]:
    """Runs Node."""
    output = await _run([node, str(NODE / "sse.mjs")], {"urls": urls, "once": once})
    return [_record_of_event_source(found) for found in output]


async def in_python(library: str, urls: Sequence[str]) -> list[Record]:
    """Runs Python in the environment of the libraries."""
    if not PYTHON.exists():
        unavailable("the environment .venv/libraries is missing; `make prepare` makes it")
    output = await _run([str(PYTHON), str(ROOT / "tests/conformance/libraries/sse.py"), library], urls)
    return [
        Record(
            [(data, own or "") for kind, data, own, _ in found["events"] if kind == "message"],
            f"raises `{found['error']}`" if found["error"] else "ends",
            [retry for *_, retry in found["events"] if retry is not None],
        )
        for found in output
    ]


def _record_of_event_source(found: Mapping[str, Any]) -> Record:
    events = [(data, own) for kind, data, own in found["events"] if kind == "message"]
    assert len(events) == len(found["events"])
    return Record(events, "gives up" if found["states"][0] == CLOSED else "reconnects")


async def _run(command: Sequence[str], argument: object) -> list[Any]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    try:
        async with asyncio.timeout(LIMIT_S):
            output, _ = await process.communicate(orjson.dumps(argument))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    return list(orjson.loads(output))


async def recorded(parser: str, node: str, server: StreamServer, urls: Sequence[str], *, once: bool) -> list[Record]:
    """Returns what a parser delivers from each URL. With `once`, an EventSource does not reconnect."""
    if parser == "Chromium":
        return await in_chromium(server, urls, once=once)
    if parser == "eventsource":
        return await in_node(node, urls, once=once)
    return await in_python(parser, urls)


def _shown(events: Sequence[tuple[str, str]], response: Response) -> str:
    """Returns the cell for the delivered events: their types, and the numbers in their ids."""
    if events and [(data.encode(), own) for data, own in events] == list(response.events):
        return "all"
    found = []
    for data, own in events:
        if not data:
            kind = "no data"
        elif data.encode() in MESSAGES:
            kind = f"`{orjson.loads(data)['type']}`"
        else:
            [cut] = re.findall(r'^{"type":"([a-z]+)"', data)
            kind = f"**a part of** `{cut}`"
        found.append(f"{kind} ({own.partition('-')[0] or 'no id'})")
    return ", ".join(found) or "nothing"


def _checked(response: Response, record: Record, played: Played) -> tuple[str, str]:
    """Checks what a parser did, and returns the two last cells of its row."""
    delivered = _shown(record.events, response)
    last_id = response.last_id
    if response.is_broken:
        # A client may drop a part of what it has received. It must then ask for this part again.
        events = [(data.encode(), own) for data, own in record.events]
        assert events == list(response.events[: len(events)])
        delivered, last_id = "a part of the events", events[-1][1] if events else ""
    if record.end != "reconnects":
        assert len(played.last_event_ids) == 1
        return delivered, record.end
    first, second = played.last_event_ids
    assert first == ""
    if response.is_sent:
        assert second == last_id
    # The time is that of `retry:`, and for a full bridge longer than the default.
    retry_ms = FULL_RETRY_MS if response.name == "full bridge" else RETRY_MS
    assert played.times_s[1] - played.times_s[0] >= retry_ms / 1000
    number = "the newest of them" if response.is_broken else second.partition("-")[0] or "no id"
    return delivered, f"reconnects with {number}"


async def table(node: str) -> list[str]:
    """Returns the rows of the README, from what the parsers do. Parsers that do the same share a row."""
    async with stream_server() as server:
        added = {parser: [server.add(response) for response in RESPONSES] for parser in PARSERS}
        found = await asyncio.gather(
            *(recorded(parser, node, server, [url for url, _ in added[parser]], once=False) for parser in PARSERS)
        )
    rows = []
    for index, response in enumerate(RESPONSES):
        groups: dict[tuple[str, str], list[str]] = {}
        for parser, records in zip(PARSERS, found, strict=True):
            cells = _checked(response, records[index], added[parser][index][1])
            groups.setdefault(cells, []).append(parser)
            if response is ORDINARY:
                assert records[index].retries == RETRIES[parser]
        rows += [
            f"| {response.name} | {', '.join(parsers)} | {cells[0]} | {cells[1]} |" for cells, parsers in groups.items()
        ]
    return rows


async def test_readme_shows_what_the_parsers_deliver(node: str) -> None:
    rows = await table(node)
    found = re.findall(r"^\|.*\|$", README.read_text(), re.MULTILINE) if README.exists() else []
    assert [row for row in found if row.startswith(NAMES)] == rows, "\n".join(["the table should be:", *rows])


@pytest.mark.parametrize("parser", PARSERS)
async def test_result_does_not_depend_on_the_pieces_of_the_body(parser: str, node: str) -> None:
    async with stream_server() as server:
        urls = [server.add(ORDINARY, pieces)[0] for pieces in splits(ORDINARY.body)]
        records = await recorded(parser, node, server, urls, once=True)
    expected = [(data.decode(), own) for data, own in ORDINARY.events]
    assert [number for number, record in enumerate(records) if record.events != expected] == []


@pytest.mark.parametrize("response", [each for each in RESPONSES if not each.is_final and b"chunked" not in each.head])
def test_parser_of_tail_delivers_what_the_standard_says(response: Response) -> None:
    events = [(event.data.encode(), event.last_id) for event in EventParser().feed(response.body)]
    assert events == list(response.events)


def normalized(response: bytes) -> bytes:
    """Returns a response without what differs from run to run: times, ids and pauses."""
    response = re.sub(rb'"timestamp":[0-9]+', b'"timestamp":0', response)
    response = re.sub(rb"[0-9]+-[0-9a-f]{8}", b"ID", response)
    return re.sub(rb"(?m)^(retry|Date): .*?(\r?)$", rb"\1\2", response)


KEEP_ALIVE = re.compile(rb"(?m)^:\n")


async def read_into(received: bytearray, port: int) -> None:
    """Requests an event stream, and appends the whole response to `received`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(stream_request(port))
        while data := await reader.read(2**16):
            received += data
    finally:
        writer.close()


async def test_bridge_sends_the_bytes_that_the_parsers_get(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    received, full = bytearray(), bytearray()
    async with running(
        broker.url,
        exchanges=f"{exchange}=killmail",
        ping_interval="1s",
        heartbeat_interval="2s",
        max_connections=1,
    ) as bridge:
        reading = asyncio.create_task(read_into(received, port_of(bridge)))
        await eventually("the backlog has ended", lambda: b'"heartbeat"' in received)
        await read_into(full, port_of(bridge))
        for update_type, message in ("killmail", KILLMAIL), ("event", EVENT):
            await publish(amqp, exchange, orjson.loads(message)["data"], type=update_type)
        await eventually("a keep-alive and a heartbeat have come", lambda: received.count(b'"heartbeat"') > 1)
    await reading
    assert normalized(bytes(full)) == normalized(HEAD + COMMENT + RETRY + block(FULL))
    found = normalized(bytes(received))
    assert found.startswith(normalized(HEAD + START))
    # The number of keep-alives and heartbeats depends on time.
    rest = found.removeprefix(normalized(HEAD + START))
    assert re.findall(KEEP_ALIVE, rest)
    rest = re.sub(KEEP_ALIVE, b"", rest).replace(normalized(block(HEARTBEAT, 0)), b"")
    assert rest == normalized(block(KILLMAIL, 1) + block(EVENT, 2) + block(STOPPING))


def test_block_of_a_gap_is_that_of_a_bridge() -> None:
    data = orjson.loads(GAP)["data"]
    payload = envelope.gap(**data, timestamp_ms=orjson.loads(GAP)["timestamp"])
    assert event_block(payload, data["id"]) == block(GAP, 3)
