"""`edk-bridge tail --sse` with a scripted bridge, and with servers that answer as faulty proxies do."""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from bridge.cli.common.endpoint import tls_context
from bridge.cli.follow.event_stream import EventStreamTransport
from bridge.cli.follow.transport import Disconnected, FollowTiming, Refused
from bridge.errors import BridgeError, ConfigurationError
from tests.support.broker.ports import free_port
from tests.support.certificates import certificate
from tests.support.commands import tailing
from tests.support.documentation import adapted, code_block, shell
from tests.support.followers import TAG, message
from tests.support.played import End, playing
from tests.support.prepare import program
from tests.support.scripted_events import scripted_events
from tests.support.waiting import LIMIT_S, eventually
from tests.support.web_proxies import NGINX, program_running

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
RESUME = message("resume", {"complete": True, "replayed": 0, "id": f"0-{TAG}"})
UPDATE = message("killmail", {"ship": "Ünïcode 🚀 \u2028"}, id=f"1-{TAG}")


def block(text: bytes, own: str = "") -> bytes:
    return (f"id: {own}\n".encode() if own else b"") + b"data: " + text + b"\n\n"


BODY = b":\nretry: 20\n" + block(RESUME, f"0-{TAG}") + b":\n" + block(UPDATE, f"1-{TAG}")
STREAM = HEAD + b"Connection: close\r\n\r\n" + BODY


def chunked(body: bytes) -> bytes:
    """Returns the response with a body in chunks of 7 bytes, without its last chunk."""
    pieces = (body[at : at + 7] for at in range(0, len(body), 7))
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces)


async def test_output_is_the_same_as_over_websocket() -> None:
    async with scripted_events() as bridge, tailing("--sse", bridge.url) as tail:
        await tail.reports(f"connected to {bridge.url}")
        await tail.prints(bridge.emit({"ship": "Ünïcode 🚀 \u2028"}), bridge.emit("x" * 2**20))
        bridge.drop()
        await tail.reports(f"disconnected from {bridge.url}: the response ended; trying again")
        await tail.prints(bridge.emit("meanwhile"))
        await tail.reports("reconnected after ")
        assert [asked.query for asked in bridge.asked] == ["after=", f"after=2-{TAG}"]
        assert tail.errors[:2] == [f"response of {bridge.url}: HTTP/1.1 200", f"connected to {bridge.url}"]
        # The headers of the second response are the same, so they are not printed again.
        assert [line.partition(" ")[0] for line in tail.errors[2:]] == ["disconnected", "reconnected"]


async def test_example_of_the_readme_prints_the_newest_updates(tmp_path: Path) -> None:
    async with scripted_events() as bridge:
        texts = [bridge.emit(number) for number in range(12)]
        example = code_block("bridge/cli/README.md", "Try a proxy")
        command = adapted(example, ("http://localhost:3000/updates", f"{bridge.url} | head -n 10"))
        output = await shell(command, tmp_path)
        assert [line for line in output.splitlines() if line.startswith(b"{")] == texts[2:]


async def test_options_become_the_request_and_websocket_urls_become_http() -> None:
    async with scripted_events() as bridge:
        texts = [bridge.emit(number) for number in range(5)]
        options = ["--type", "killmail", "--where", "systemId=1", "--last", "2"]
        async with tailing("--sse", bridge.url.replace("http:", "ws:"), *options) as tail:
            await tail.prints(*texts[3:])
            assert bridge.asked[0].query == "type=killmail&systemId=1&after=&last=2"
            await tail.reports(f"connected to {bridge.url}; 2 updates to catch up")


async def test_full_bridge_is_reported_and_asked_again_after_its_pause() -> None:
    full = block(message("close", {"code": 1013, "reason": "too many clients"}))
    # The bridge asks for 1.1 s. The client's own pause after a full bridge is at most 0.16 s in this test.
    answer = [HEAD + b"\r\n:\nretry: 1100\n" + full]
    async with playing((answer, "end"), ([STREAM], "open")) as server, tailing("--sse", server.url) as tail:
        await tail.reports(f"can't connect to {server.url}: the bridge is full; trying again")
        await tail.prints(UPDATE)
        assert server.asked_at[1] - server.asked_at[0] >= 1.1


async def test_close_message_is_the_reason_of_the_end() -> None:
    closing = block(message("close", {"code": 1001, "reason": "stopping"}))
    async with playing(([STREAM + closing], "end"), ([STREAM], "open")) as server, tailing("--sse", server.url) as tail:
        await tail.reports(f"disconnected from {server.url}: the bridge is stopping; trying again")
        assert f"after=1-{TAG}" in server.requests[-1] or len(server.requests) == 1
        await tail.reports("reconnected after")


@pytest.mark.parametrize(
    ("response", "end", "why"),
    [
        (STREAM, "end", "the response ended"),
        (STREAM, "reset", "the connection was cut"),
        (STREAM + b"id: 2\ndata: {", "end", "the response ended in the middle of an event"),
        (STREAM + b":", "end", "the response ended"),
        (chunked(BODY) + b"0\r\n\r\n", "open", "the response ended"),
        (chunked(BODY), "end", "the connection was cut"),
        (chunked(BODY + b"data: 1\n"), "end", "the connection was cut in the middle of an event"),
        (chunked(BODY) + b"x\r\n", "open", "its answer is not HTTP"),
        (HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY, "open", "the response ended"),
    ],
)
async def test_end_of_the_body_is_reported(response: bytes, end: End, why: str) -> None:
    async with (
        playing(([response, b""], end), ([STREAM], "open")) as server,
        tailing("--sse", server.url) as tail,
    ):
        await tail.prints(UPDATE)
        # A reset would otherwise discard the update in the kernel.
        server.released.set()
        await tail.reports(f"disconnected from {server.url}: {why}; trying again")
        await eventually("the command asks for what follows", lambda: f"after=1-{TAG}" in server.requests[-1])


async def test_silent_connection_is_dead() -> None:
    async with (
        playing(([STREAM], "open")) as server,
        tailing("--sse", server.url, timing="silence_s=0.3") as tail,
    ):
        await tail.reports(f"disconnected from {server.url}: nothing was received for 0.3 s; trying again")
        await eventually("the command asks for what follows", lambda: f"after=1-{TAG}" in server.requests[-1])


TIMING = FollowTiming(handshake_timeout_s=LIMIT_S, notice_s=LIMIT_S, silence_s=LIMIT_S)


async def opened(url: str, said: list[str], timing: FollowTiming = TIMING, *, was_connected: bool = False) -> list[str]:
    """Opens a response, and returns the types of its first two messages."""
    connection = await EventStreamTransport(tls_context(url, None), timing, said.append).open(
        url, was_connected=was_connected
    )
    try:
        return [orjson.loads(await connection.receive())["type"] for _ in range(2)]
    finally:
        await connection.close()


@pytest.mark.parametrize("response", [STREAM, chunked(BODY)], ids=["plain", "chunked"])
async def test_response_may_arrive_in_any_pieces(response: bytes) -> None:
    pieces = [response[at : at + 1] for at in range(len(response))]
    async with playing((pieces, "open")) as server:
        assert await opened(server.url, []) == ["resume", "killmail"]


async def test_headers_of_proxies_are_reported() -> None:
    head = HEAD + b"Server: nginx/1.22.1\r\nVia: 1.1 varnish\x9b\r\nTransfer-Encoding: chunked\r\n\r\n"
    response = head + chunked(BODY).partition(b"\r\n\r\n")[2]
    said: list[str] = []
    async with playing(([response], "open")) as server:
        await opened(server.url, said)
        assert said == [
            f"response of {server.url}: HTTP/1.1 200; Server: nginx/1.22.1; Via: 1.1 varnish\\x9b; "
            "Transfer-Encoding: chunked"
        ]


@pytest.mark.parametrize(
    ("held_after", "notice"),
    [
        (0, "no response from {} yet: the bridge answers at once, so a proxy may buffer the response"),
        (
            STREAM.index(b":\nretry"),
            "no first line from {} yet: the bridge sends one at once, so a proxy may buffer it",
        ),
    ],
)
async def test_response_that_a_proxy_holds_back_is_reported(held_after: int, notice: str) -> None:
    said: list[str] = []
    pieces = STREAM[:held_after], b"", STREAM[held_after:]
    async with playing((pieces[1:] if not held_after else pieces, "open")) as server:
        opening = asyncio.create_task(opened(server.url, said, replace(TIMING, notice_s=0.01)))
        await eventually("the notice is printed", lambda: notice.format(server.url) in said)
        server.released.set()
        assert await opening == ["resume", "killmail"]


@pytest.mark.parametrize("buffering", ["on", "off"])
async def test_nginx_that_buffers_is_reported(buffering: str, tmp_path: Path) -> None:
    """The scripted bridge does not send the header with which a bridge turns buffering off."""
    port = free_port()
    async with scripted_events() as bridge:
        location = f"proxy_pass http://127.0.0.1:{bridge.port}; proxy_buffering {buffering};"
        server = f"server {{ listen 127.0.0.1:{port}; location / {{ {location} }} }}"
        (tmp_path / "nginx.conf").write_text(server)
        (tmp_path / "main.conf").write_text(NGINX.format(folder=tmp_path))
        nginx = [program("nginx"), "-c", f"{tmp_path}/main.conf"]
        url = f"http://127.0.0.1:{port}/updates"
        async with program_running(nginx, tmp_path, port), tailing("--sse", url, timing="notice_s=1") as tail:
            if buffering == "on":
                await tail.reports(f"no response from {url} yet: ")
            else:
                await tail.reports(f"connected to {url}")
                await tail.reports(f"response of {url}: HTTP/1.1 200; Server: nginx/")
                await tail.prints(bridge.emit(1))


async def test_response_that_never_comes_is_a_failure() -> None:
    async with playing(([], "open")) as server:
        with pytest.raises(Disconnected) as failed:
            await opened(server.url, [], FollowTiming(handshake_timeout_s=0.1))
        assert failed.value.why == "no answer within 0.1 s"


async def test_first_line_that_never_comes_is_a_failure() -> None:
    async with playing(([HEAD + b"\r\n"], "open")) as server:
        with pytest.raises(Disconnected) as failed:
            await opened(server.url, [], FollowTiming(silence_s=0.1))
        assert failed.value.why == "nothing was received for 0.1 s"


async def test_bridge_that_only_keeps_alive_is_reported() -> None:
    async with (
        playing(([HEAD + b"\r\n:\n", b"", b":\n:\n" + BODY], "open")) as server,
        tailing("--sse", server.url, timing="notice_s=0.01") as tail,
    ):
        await tail.reports(f"connected to {server.url}, which does not send updates yet; see its /readyz")
        server.released.set()
        await tail.prints(UPDATE)


PLAIN = b"HTTP/1.1 %b\r\nContent-Type: text/html\r\nContent-Length: 5\r\n%b\r\nWords"


@pytest.mark.parametrize(
    ("response", "error", "words"),
    [
        (PLAIN % (b"400 Bad", b""), Refused, "{} refuses (400): Words"),
        (PLAIN % (b"403 Forbidden", b""), Refused, "{} refuses (403): Words"),
        (PLAIN % (b"429 Slow", b""), Disconnected, "it answers 429: Words"),
        (PLAIN % (b"502 Bad Gateway", b""), Disconnected, "it answers 502: Words"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", Disconnected, "it answers 204: no reason given"),
        (b"HTTP/1.1 503 No\r\nContent-Length: 90\r\n\r\nWor", Disconnected, "it answers 503: Wor"),
        (
            PLAIN % (b"302 Found", b"Location: http://u:S3CRET@h/\x9b\r\n"),
            Refused,
            "{} redirects to ***@h/\\x9b (302): give the URL of the bridge itself",
        ),
        (PLAIN % (b"304 Not Modified", b""), Disconnected, "it answers 304: no reason given"),
        (
            PLAIN % (b"200 OK", b""),
            Refused,
            "{} answers with text/html instead of text/event-stream: it is not the endpoint, whose default path is "
            "/updates, or the bridge is too old",
        ),
        (
            b"HTTP/1.1 200 OK\r\n\r\n",
            Refused,
            "{} answers with no content type instead of text/event-stream: it is not the endpoint, whose default path "
            "is /updates, or the bridge is too old",
        ),
        (
            HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(BODY),
            Refused,
            "{}: a proxy on the way compresses the response (gzip): disable this",
        ),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", Disconnected, "its answer is not HTTP"),
        (b"", Disconnected, "the connection was cut"),
    ],
)
async def test_other_response_is_an_error(response: bytes, error: type[Exception], words: str) -> None:
    async with playing(([response] if response else [], "end")) as server:
        with pytest.raises(error) as failed:
            await opened(server.url, [])
        assert str(failed.value) == words.format(server.url)


@pytest.mark.parametrize(
    ("response", "why"),
    [
        (PLAIN % (b"404 No", b""), "it answers 404: Words"),
        (PLAIN % (b"302 Found", b"Location: /x\r\n"), "it redirects to /x (302): give the URL of the bridge itself"),
    ],
)
async def test_proxy_that_is_being_changed_gets_further_requests(response: bytes, why: str) -> None:
    async with playing(([response], "end")) as server:
        with pytest.raises(Disconnected) as failed:
            await opened(server.url, [], was_connected=True)
        assert failed.value.why == why


async def test_body_of_a_refusal_has_a_limit() -> None:
    endless: Iterable[bytes] = [b"HTTP/1.1 500 No\r\n\r\n", *[b"x" * 2**16] * 64]
    async with playing((endless, "open")) as server:
        with pytest.raises(Disconnected, match="it answers 500: xxx"):
            await opened(server.url, [])


async def test_event_without_an_end_is_an_error() -> None:
    async with playing(([HEAD + b"\r\n", b"data: ", *[b"x" * 2**10] * 64], "open")) as server:
        transport = EventStreamTransport(None, TIMING, lambda _: None, max_block_bytes=2**15)
        connection = await transport.open(server.url, was_connected=False)
        with pytest.raises(BridgeError, match="this server is not an edk-bridge: its event has no end"):
            await connection.receive()
        await connection.close()


async def test_event_of_another_type_is_ignored() -> None:
    async with playing(([HEAD + b"\r\nevent: x\ndata: 1\n\n" + BODY], "open")) as server:
        assert await opened(server.url, []) == ["resume", "killmail"]


async def test_certificate_is_trusted_if_cafile_names_its_authority(tmp_path: Path) -> None:
    own, tls = server_tls(tmp_path)
    async with playing(([chunked(BODY)], "open"), tls=tls) as server:
        async with tailing("--sse", server.url, "--cafile", str(own)) as tail:
            await tail.prints(UPDATE)
        with pytest.raises(ConfigurationError, match="the certificate can't be trusted: "):
            await opened(server.url, [])


async def test_wrong_scheme_is_reported(tmp_path: Path) -> None:
    _, tls = server_tls(tmp_path)
    async with playing(([STREAM], "open"), tls=tls) as secure, playing(([STREAM], "open")) as plain:
        with pytest.raises(Refused, match="the bridge uses TLS: use https://"):
            await opened(secure.url.replace("https:", "http:"), [])
        with pytest.raises(Refused, match="the bridge does not use TLS: use http://"):
            await opened(plain.url.replace("http:", "https:"), [])


def server_tls(folder: Path) -> tuple[Path, ssl.SSLContext]:
    own, key = certificate(folder, "bridge")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(own, key)
    return own, tls
