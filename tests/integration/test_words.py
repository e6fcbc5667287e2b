"""Refusals and log lines are the bridge's own sentences, without unescaped text of clients or brokers."""

import asyncio
from urllib.parse import quote, urlsplit

import pytest

from tests.support.broker.find import Broker
from tests.support.clients import KEY, client_frame
from tests.support.running import bridge_process
from tests.support.waiting import eventually

ESCAPES = "\x9b2J\u202e"
"""Terminal control characters that the HTTP parser accepts in a header."""

MARK = "planted"
"""A word that marks the text that a client sends."""

HOSTILE = f"{MARK}{ESCAPES}"
LONG = MARK + "x" * 7000
PASSWORD = "hunter2"

UPGRADE = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")


def handshake(*headers: str, target: str = "/updates", method: str = "GET", host: str = "localhost") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


REFUSED = {
    "host": (handshake(host=f"{HOSTILE}.example"), 400),
    "long host": (handshake(host=f"{LONG}.example"), 400),
    "origin": (handshake(f"Origin: http://{HOSTILE}.example", *UPGRADE), 403),
    "forwarded": (handshake(f"X-Forwarded-For: {HOSTILE}"), 403),
    "target": (handshake(target=f"http://{MARK}.example/"), 403),
    "page": (handshake(target=f"/{MARK}"), 404),
    "query": (handshake(f"Sec-WebSocket-Key: {KEY}", *UPGRADE, target=f"/updates?{quote(HOSTILE)}=1"), 400),
    "query of a long name": (handshake(f"Sec-WebSocket-Key: {KEY}", *UPGRADE, target=f"/updates?{LONG}=1"), 400),
    "query of a value": (
        handshake(f"Sec-WebSocket-Key: {KEY}", *UPGRADE, target=f"/updates?systemId={quote(HOSTILE)}"),
        400,
    ),
    "query of a type": (
        handshake(f"Sec-WebSocket-Key: {KEY}", *UPGRADE, target=f"/updates?type={quote(HOSTILE)}"),
        400,
    ),
    "method": (handshake(method="POST"), 405),
    "strange method": (handshake(method=MARK.upper()), 405),
    "no upgrade": (handshake(), 426),
    "key": (handshake(f"Sec-WebSocket-Key: {HOSTILE}", *UPGRADE), 400),
    "long key": (handshake(f"Sec-WebSocket-Key: {LONG}", *UPGRADE), 400),
    "two keys": (handshake(f"Sec-WebSocket-Key: {KEY}", f"Sec-WebSocket-Key: {MARK}", *UPGRADE), 400),
    "version": (handshake(f"Sec-WebSocket-Key: {KEY}", *UPGRADE[:2], f"Sec-WebSocket-Version: {MARK}"), 426),
    "other version": (handshake(f"Sec-WebSocket-Key: {KEY}", *UPGRADE[:2], "Sec-WebSocket-Version: 8"), 426),
    "upgrade to something else": (handshake(f"Upgrade: {MARK}", *UPGRADE[1:]), 426),
    "escape": (handshake(f"X-Other: {MARK}\x1b[31m\x7f"), 400),
    "no http": (HOSTILE.encode() + b"\r\n\r\n", 400),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40 + b"\r\n\r\n", 400),
}


async def response(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    async with asyncio.timeout(10):
        answer = await reader.read(-1)
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize("style", ["json", "text"])
async def test_refusals_are_one_sentence_for_the_client_and_a_reason_in_the_log(
    broker: Broker, exchange: str, style: str
) -> None:
    """A refused client gets one printable sentence, which quotes at most the client's query.

    Log lines are printable, too.
    """
    flags = ["--log-level", "debug", "--log-format", style]
    async with bridge_process(broker.url, *flags, BRIDGE_EXCHANGES=f"{exchange}=killmail", BRIDGE_PORT="0") as process:
        if style == "json":
            port = await process.port()
        else:
            await eventually("the bridge listens", lambda: [line for line in process.texts if "listening" in line])
            [listening] = [line for line in process.texts if "listening" in line]
            port = int(listening.partition(" port=")[2].partition(" ")[0])
        for what, (request, status) in REFUSED.items():
            head, _, body = (await response(port, request)).partition(b"\r\n\r\n")
            assert head.startswith(f"HTTP/1.1 {status} ".encode()), (what, head)
            text = body.decode("ascii")
            assert text.endswith(".\n"), (what, text)
            assert text[:-1].isprintable(), what
            assert len(text) < 500, what
            assert MARK not in text or what.startswith("query"), what
            assert MARK.encode() not in head, what
            for header in (b"X-Content-Type-Options: nosniff", b"Content-Type: text/plain"):
                assert header in head, what
            assert head.count(b"\r\nConnection: ") == 1, what
            assert b"\r\nConnection: " + (b"Upgrade, close" if status == 426 else b"close") in head, what
        process.process.terminate()
        assert await process.ended() == 0
    lines = [*map(str, process.lines), *process.texts]
    assert len(lines) > len(REFUSED)
    assert [line for line in lines if not line.isprintable()] == []
    assert [line for line in lines if len(line) > 1000] == []
    # The log quotes the refused text of clients.
    assert sum(MARK in line for line in lines) >= 4


async def test_protocol_error_does_not_quote_the_client(broker: Broker, exchange: str) -> None:
    async with bridge_process(broker.url, "--log-level", "debug", BRIDGE_EXCHANGES=f"{exchange}=killmail") as process:
        broken = handshake(f"Sec-WebSocket-Key: {KEY}", *UPGRADE) + client_frame(3, HOSTILE.encode())
        assert MARK.encode() not in await response(await process.port(), broken)
        process.process.terminate()
        assert await process.ended() == 0
    assert process.logged("client evicted") is not None
    assert [line for line in [*map(str, process.lines), *process.texts] if not line.isprintable()] == []


@pytest.mark.parametrize("style", ["json", "text"])
async def test_no_log_line_has_a_password_at_any_level(broker: Broker, exchange: str, style: str) -> None:
    """One broker refuses the password, and another does not exist. The log also has the lines of all libraries."""
    parts = urlsplit(broker.url)
    wrong = parts._replace(netloc=f"guest:{PASSWORD}@{parts.hostname}:{parts.port}").geturl()
    nowhere = f"amqp://guest:{PASSWORD}@127.0.0.1:1/"
    variables = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", "BRIDGE_WAIT": "true"}
    flags = ["--log-level", "debug", "--log-format", style]
    async with bridge_process(f"{nowhere},{wrong}", *flags, **variables) as process:
        await eventually(
            "the bridge was refused",
            lambda: any("refuses the user name" in str(line) for line in [*process.lines, *process.texts]),
        )
        process.process.terminate()
        assert await process.ended() == 0
    assert process.lines or process.texts
    assert PASSWORD not in str(process.lines) + str(process.texts)


@pytest.mark.parametrize(
    ("query", "end"), [("sytemId", "by; did you mean systemId?"), ("zzz", "/asyncapi.json lists the members.")]
)
async def test_sentence_of_a_refused_query_ends_with_one_punctuation_mark(
    broker: Broker, exchange: str, query: str, end: str
) -> None:
    variables = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", "BRIDGE_PORT": "0"}
    async with bridge_process(broker.url, **variables) as process:
        request = handshake(f"Sec-WebSocket-Key: {KEY}", *UPGRADE, target=f"/updates?{query}=1")
        assert (await response(await process.port(), request)).decode().endswith(f"{end}\n")
