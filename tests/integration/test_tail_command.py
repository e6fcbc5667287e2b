"""`edk-bridge tail` as a process with pipes, and a scripted bridge with all kinds of faults."""

import asyncio
import os
import pty
import re
import shlex
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs

import orjson
import pytest

from tests.support.certificates import certificate
from tests.support.commands import tailing
from tests.support.followers import TAG, UNKNOWN, ScriptedBridge, message, scripted_bridge
from tests.support.killmail import EXAMPLE
from tests.support.waiting import LIMIT_S, eventually


@pytest.fixture
async def bridge() -> AsyncIterator[ScriptedBridge]:
    """A scripted bridge."""
    async with scripted_bridge() as running:
        yield running


async def test_updates_are_printed_unchanged_after_each_kind_of_disconnect(bridge: ScriptedBridge) -> None:
    texts = []
    async with tailing(bridge.url) as tail:
        await tail.reports(f"connected to {bridge.url}")
        for code, why in ((None, "the connection was cut"), (1011, "the bridge had an error"), (4321, "code 4321")):
            texts = [bridge.emit({"ship": "Ünïcode 🚀 \u2028"}), bridge.emit("x" * 2**20)]
            await tail.prints(*texts)
            if code is None:
                bridge.drop()
            else:
                await bridge.close(code)
            await tail.reports(f"disconnected from {bridge.url}: {why}; trying again")
            away = bridge.emit("meanwhile")
            await tail.prints(away)
        await tail.reports("reconnected after ", 3)
        assert bridge.asked[:2] == ["after=", f"after=2-{TAG}"]
        assert [line.partition(" ")[0] for line in tail.errors] == ["connected", *["disconnected", "reconnected"] * 3]


async def test_missing_bridge_is_reported_once_and_waited_for(bridge: ScriptedBridge) -> None:
    async with tailing(bridge.url) as tail:
        await tail.reports("connected to")
        before = bridge.emit(1)
        await tail.prints(before)
        await bridge.stop()
        bridge.emit(2)
        bridge.forget()
        kept = bridge.emit(3)
        away = f"can't connect to {bridge.url}: no program listens there; trying again"
        await tail.reports(away)
        await bridge.start()
        await tail.prints(kept)
        await tail.reports("updates are missing")
        assert tail.errors[1:3] == [
            f"disconnected from {bridge.url}: the bridge is stopping; trying again",
            away,
        ]
        assert tail.errors[3].startswith("reconnected after ")
        assert tail.errors[3].endswith(" s; 1 update to catch up")
        assert tail.errors[4:] == [f"updates are missing: the bridge no longer has all updates after 1-{TAG}"]


async def test_gap_is_reported_and_unknown_messages_are_ignored(bridge: ScriptedBridge) -> None:
    async with tailing(bridge.url) as tail:
        await tail.reports("connected to")
        bridge.send_gap(since="2024-10-22T10:30:00Z", until="2024-10-22T10:31:00Z", reason="lost\x1b[31m")
        bridge.send_gap(since="2024-10-22T10:30:00Z", until="2024-10-22T10:31:00Z", reason="broker-away")
        bridge.say(b'{"type":"gap","data":"of a newer bridge","timestamp":1}')
        bridge.say(b'{"type":"news","data":{},"timestamp":1}')
        await tail.prints(bridge.emit(1))
        assert tail.errors[1:] == [
            "updates may be missing: the bridge may have missed events from 2024-10-22T10:30:00Z until "
            "2024-10-22T10:31:00Z: lost\\x1b[31m",
            "updates may be missing: the bridge may have missed events from 2024-10-22T10:30:00Z until "
            "2024-10-22T10:31:00Z: it had no broker",
        ]


async def test_id_of_every_own_message_is_adopted(bridge: ScriptedBridge) -> None:
    async with tailing(bridge.url) as tail:
        await tail.reports("connected to")
        bridge.emit(1)
        bridge.send_gap(since="2024-10-22T10:30:00Z", until="2024-10-22T10:31:00Z", reason="broker-away")
        bridge.drop()
        await tail.reports("reconnected after")
        assert bridge.asked[-1] == f"after=2-{TAG}"
        bridge.pass_by()
        bridge.beat()
        bridge.drop()
        await tail.reports("reconnected after", times=2)
        assert bridge.asked[-1] == f"after=3-{TAG}"
        bridge.pass_by()
        bridge.say(message("news", {"id": bridge.last_id}))
        bridge.say(message("news", "without an id"))
        bridge.drop()
        await tail.reports("reconnected after", times=3)
        assert bridge.asked[-1] == f"after=4-{TAG}"
        assert [line for line in tail.errors if "missing" in line] == tail.errors[1:2]


async def test_bridge_without_a_broker_is_reported_until_it_has_one(bridge: ScriptedBridge) -> None:
    async with tailing(bridge.url) as tail:
        await tail.reports("connected to")
        for consuming in (True, False, False, True, True):
            bridge.beat(consuming=consuming)
        bridge.say(message("heartbeat", {"consuming": "of a newer bridge"}))
        await tail.prints(bridge.emit(1))
        assert tail.errors[1:] == [
            "the bridge has no broker: updates stop until it has one",
            "the bridge has its broker again",
        ]


async def test_backlog_begins_with_the_newest_updates(bridge: ScriptedBridge) -> None:
    texts = [bridge.emit(number) for number in range(5)]
    async with tailing(bridge.url, "--last", "3") as tail:
        await tail.prints(*texts[2:])
        bridge.drop()
        await tail.prints(bridge.emit(5))
        assert bridge.asked == ["after=&last=3", f"after=5-{TAG}&last=3"]
    async with tailing(bridge.url, "--after", UNKNOWN, "--last", "1") as tail:
        await tail.prints(bridge.emit(6))
        assert tail.errors[1:] == [f"updates are missing: the bridge no longer has all updates after {UNKNOWN}"]


async def test_options_become_the_request(bridge: ScriptedBridge) -> None:
    bridge.emit(1)
    options = ["--type", "killmail", "--type", "event", "--where", "systemId=1", "--where", "systemId=2"]
    second = bridge.emit(2)
    async with tailing(bridge.url, *options, "--after", f"1-{TAG}") as tail:
        await tail.prints(second)
        assert bridge.asked == [f"type=killmail&type=event&systemId=1&systemId=2&after=1-{TAG}"]
        assert tail.errors == [f"connected to {bridge.url}; 1 update to catch up"]


async def test_unknown_id_is_reported_and_all_kept_updates_are_printed(bridge: ScriptedBridge) -> None:
    texts = [bridge.emit(1), bridge.emit(2)]
    async with tailing(bridge.url, "--after", UNKNOWN) as tail:
        await tail.prints(*texts)
        assert tail.errors[1:] == [f"updates are missing: the bridge no longer has all updates after {UNKNOWN}"]


async def test_dead_connection_is_found(bridge: ScriptedBridge) -> None:
    async with tailing(bridge.url, pauses="0.02, 0.1, 0.0, 0.3") as tail:
        await tail.reports("connected to")
        bridge.mute()
        await tail.prints(bridge.emit(1))
        await tail.reports(f"disconnected from {bridge.url}: a ping was not answered")


@pytest.mark.parametrize("status", [HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN])
async def test_refusal_ends_tail_with_the_sentence_of_the_bridge(bridge: ScriptedBridge, status: HTTPStatus) -> None:
    bridge.refusal = status, "There is no member\x9b systemID."
    async with tailing(bridge.url, "--where", "systemID=1") as tail:
        assert await tail.ended() == 2
        assert tail.errors == [f"edk-bridge: {bridge.url} refuses ({status.value}): There is no member\\x9b systemID."]
        assert len(bridge.asked) == 1


async def test_page_is_not_the_endpoint(bridge: ScriptedBridge) -> None:
    bridge.refusal = HTTPStatus.OK, "<html>"
    async with tailing(bridge.url) as tail:
        assert await tail.ended() == 2
        assert tail.errors == [
            f"edk-bridge: {bridge.url} is a page and not the WebSocket endpoint, whose default path is /updates"
        ]


async def test_silent_bridge_is_reported_and_waited_for(bridge: ScriptedBridge) -> None:
    bridge.ready.clear()
    async with tailing(bridge.url) as tail:
        await tail.reports(f"connected to {bridge.url}, which does not send updates yet")
        bridge.ready.set()
        await tail.reports(f"connected to {bridge.url}", times=2)
        await tail.prints(bridge.emit({"killmailId": 1}))


async def test_proxy_without_a_bridge_gets_further_requests(bridge: ScriptedBridge) -> None:
    bridge.refusal = HTTPStatus.SERVICE_UNAVAILABLE, "No server."
    async with tailing(bridge.url) as tail:
        await eventually("the command has sent several requests", lambda: len(bridge.asked) > 2)
        bridge.refusal = None
        await tail.reports("connected to")
        assert tail.errors[:-1] == [f"can't connect to {bridge.url}: it answers 503: No server.; trying again"]


async def test_pauses_grow_until_a_connection_is_stable(bridge: ScriptedBridge) -> None:
    bridge.closing = 1011
    began_at = asyncio.get_running_loop().time()
    async with tailing(bridge.url, pauses="0.01, 60.0, 60.0, 60.0") as tail:
        await eventually("the command has made many attempts", lambda: len(bridge.asked) > 8)
        # The eight pauses together take at least half of 10 ms + 20 ms + 40 ms + ... + 1280 ms.
        assert asyncio.get_running_loop().time() - began_at >= 0.005 * 255
        assert tail.errors == [f"can't connect to {bridge.url}: the bridge had an error; trying again"]


async def test_full_bridge_gets_a_longer_pause(bridge: ScriptedBridge) -> None:
    bridge.closing = 1013
    async with tailing(bridge.url, pauses="0.1, 60.0, 60.0, 60.0") as tail:
        await tail.reports(f"can't connect to {bridge.url}: the bridge is full; trying again")
        bridge.closing = None
        await tail.reports("connected to")
        # The pause for a full bridge is at least four times the first pause.
        assert bridge.asked_at[1] - bridge.asked_at[0] >= 0.4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_ends_tail_and_prints_how_to_continue(bridge: ScriptedBridge, number: signal.Signals) -> None:
    async with tailing(bridge.url) as tail:
        await tail.reports("connected to")
        await tail.prints(bridge.emit(1))
        tail.process.send_signal(number)
        assert await tail.ended() == 128 + number
        assert tail.errors[1:] == [f"to continue from here: --after 1-{TAG}"]


def send_update(bridge: ScriptedBridge, own: str) -> bytes:
    """Sends the client an update with the id `own`."""
    text = orjson.dumps({"type": "event", "data": 1, "timestamp": 1, "id": own})
    bridge.say(text)
    return text


@pytest.mark.parametrize("own", ["it's $HOME `id`", "-1", "--after", "a b", "ü"])
async def test_suggested_option_works_in_a_shell(bridge: ScriptedBridge, own: str) -> None:
    async with tailing(bridge.url) as tail:
        await tail.reports("connected to")
        await tail.prints(send_update(bridge, own))
        tail.process.send_signal(signal.SIGINT)
        assert await tail.ended() == 130
        suggested = tail.errors[-1].removeprefix("to continue from here: ")
    async with tailing(bridge.url, *shlex.split(suggested)) as tail:
        await tail.reports("connected to")
        assert parse_qs(bridge.asked[-1]) == {"after": [own]}


@pytest.mark.parametrize("own", ["\x1b[31m\x1b]0;x\x07", "\n1", "\u202e", "1" * 1000])
async def test_hostile_id_does_not_reach_the_terminal(bridge: ScriptedBridge, own: str) -> None:
    async with tailing(bridge.url) as tail:
        await tail.reports("connected to")
        await tail.prints(send_update(bridge, own))
        bridge.drop()
        await tail.reports("updates are missing: the bridge no longer has all updates after ")
        assert parse_qs(bridge.asked[-1]) == {"after": [own]}
        await tail.prints(send_update(bridge, own))
        tail.process.send_signal(signal.SIGINT)
        assert await tail.ended() == 130
        # The command does not suggest an id that can't be copied.
        words = ["connected", "disconnected", "reconnected", "updates"]
        assert [line.partition(" ")[0] for line in tail.errors] == words
        assert all(line.isprintable() and len(line) < 600 for line in tail.errors)


async def test_password_in_the_url_is_not_shown(bridge: ScriptedBridge) -> None:
    url = bridge.url.replace("://", "://user:S3CRET@")
    async with tailing(url) as tail:
        await tail.reports(f"connected to {bridge.url}")
        await bridge.stop()
        await tail.reports(f"can't connect to {bridge.url}")
    assert "S3CRET" not in "".join(tail.errors)


async def test_redirect_to_a_page_is_reported(bridge: ScriptedBridge) -> None:
    bridge.refusal = HTTPStatus.FOUND, ""
    bridge.location = "http://user:S3CRET@localhost/\x9b"
    async with tailing(bridge.url) as tail:
        await tail.reports(f"can't connect to {bridge.url}: it redirects to an address that is not a WebSocket URL")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_ends_tail_while_its_output_is_blocked(bridge: ScriptedBridge, number: signal.Signals) -> None:
    ours, theirs = os.pipe()
    async with tailing(bridge.url, stdout=theirs) as tail:
        os.close(theirs)
        await tail.reports("connected to")
        for _ in range(500):
            bridge.emit("x" * 2**16)
        await eventually(
            "the output is blocked", lambda: bridge.connections[0].transport.get_write_buffer_size() > 2**20
        )
        tail.process.send_signal(number)
        # The suggested id belongs to the last update that was printed completely.
        assert await tail.ended() == 128 + number
        assert tail.errors[1:] == [f"to continue from here: --after {await _whole_lines(ours)}-{TAG}"]


async def _whole_lines(descriptor: int) -> int:
    with os.fdopen(descriptor, "rb") as pipe:
        return (await asyncio.to_thread(pipe.read)).count(b"\n")


@pytest.mark.parametrize("update_follows", [True, False])
async def test_closed_pipe_ends_tail_quietly(bridge: ScriptedBridge, *, update_follows: bool) -> None:
    ours, theirs = os.pipe()
    async with tailing(bridge.url, stdout=theirs) as tail:
        os.close(theirs)
        await tail.reports("connected to")
        text = bridge.emit(1)
        assert await asyncio.to_thread(os.read, ours, 2**16) == text + b"\n"
        os.close(ours)
        if update_follows:
            bridge.emit(2)
        assert await tail.ended() == 0
        assert tail.errors == [f"connected to {bridge.url}"]


async def test_file_gets_all_updates(bridge: ScriptedBridge, tmp_path: Path) -> None:
    with (tmp_path / "updates.ndjson").open("wb") as file:
        async with tailing(bridge.url, stdout=file.fileno()) as tail:
            await tail.reports("connected to")
            texts = [bridge.emit("x" * 2**16) for _ in range(50)]
            await eventually(
                "the file has all updates", lambda: file.seek(0, os.SEEK_END) == sum(len(text) + 1 for text in texts)
            )
    assert (tmp_path / "updates.ndjson").read_bytes().splitlines() == texts


async def test_failed_write_is_reported(bridge: ScriptedBridge) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        async with tailing(bridge.url, stdout=full) as tail:
            await tail.reports("connected to")
            bridge.emit(1)
            assert await tail.ended() == 1
            assert tail.errors[1:] == ["edk-bridge: standard output: No space left on device"]
    finally:
        os.close(full)


@pytest.mark.parametrize("output_format", ["line", "json"])
async def test_terminal_gets_no_control_characters(bridge: ScriptedBridge, output_format: str) -> None:
    ours, theirs = pty.openpty()
    async with tailing(bridge.url, "--format", output_format, stdout=theirs) as tail:
        os.close(theirs)
        await tail.reports("connected to")
        bridge.emit("\x9b2J\u202e ü 🚀")
        shown = b""
        while b"\n" not in shown:
            shown += await asyncio.to_thread(os.read, ours, 2**12)
        assert '"\\u009b2J\\u202e ü 🚀"'.encode() in shown
    os.close(ours)


@pytest.mark.parametrize("arguments", [[], ["--format", "json"]])
async def test_pipe_gets_json(bridge: ScriptedBridge, arguments: list[str]) -> None:
    async with tailing(bridge.url, *arguments) as tail:
        await tail.reports("connected to")
        await tail.prints(bridge.emit(EXAMPLE))


async def test_pipe_gets_lines_of_any_length_on_request(bridge: ScriptedBridge) -> None:
    async with tailing(bridge.url, "--format", "line") as tail:
        await tail.reports("connected to")
        bridge.emit(EXAMPLE)
        bridge.emit({"note": "x" * 500 + "\x1b[2J"})
        assert tail.process.stdout is not None
        first, second = [(await tail.process.stdout.readline()).decode() for _ in range(2)]
    assert re.fullmatch(r"\d\d:\d\d:\d\d  killmail  ship 587    system 30000142    15 att\.  123456789\n", first)
    assert second.endswith(f'  killmail  {{"note":"{"x" * 500}\\u001b[2J"}}\n')


async def test_certificate_is_trusted_if_cafile_names_its_authority(tmp_path: Path) -> None:
    own, key = certificate(tmp_path, "bridge")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(own, key)
    async with scripted_bridge(tls=tls) as bridge:
        async with tailing(bridge.url, "--cafile", str(own)) as tail:
            await tail.reports(f"connected to {bridge.url}")
            await tail.prints(bridge.emit(1))
        async with tailing(bridge.url) as tail:
            assert await tail.ended() == 2
            [line] = tail.errors
            assert line.startswith(f"edk-bridge: {bridge.url}: the certificate can't be trusted: ")
            assert line.endswith("; see --cafile")


async def test_wrong_scheme_ends_tail(tmp_path: Path) -> None:
    def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    own, key = certificate(tmp_path, "bridge")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(own, key)
    async with scripted_bridge(tls=tls) as secure, await asyncio.start_server(refuse, "127.0.0.1", 0) as plain:
        for url, hint in (
            (secure.url.replace("wss:", "ws:"), "the bridge uses TLS: use wss://"),
            (f"wss://127.0.0.1:{port_of(plain)}/updates", "the bridge does not use TLS: use ws://"),
        ):
            async with tailing(url) as tail:
                assert await tail.ended() == 2
                assert tail.errors == [f"edk-bridge: {url}: {hint}"]


async def test_server_that_ends_each_connection_gets_further_requests() -> None:
    requests = 0

    def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        requests += 1
        writer.close()

    async with (
        await asyncio.start_server(close, "127.0.0.1", 0) as server,
        tailing(f"ws://127.0.0.1:{port_of(server)}/updates") as tail,
    ):
        await tail.reports("can't connect to")
        await eventually("the server gets further requests", lambda: requests > 3)


def port_of(server: asyncio.Server) -> int:
    port: int = server.sockets[0].getsockname()[1]
    return port


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"hello", "its message is not an update"),
        (b"[]", "its message is not an update"),
        (b'{"type":"killmail","data":{},"timestamp":1}', "no `resume` came first"),
    ],
)
async def test_other_server_is_reported(bridge: ScriptedBridge, text: bytes, words: str) -> None:
    bridge.resumes = False
    async with tailing(bridge.url) as tail:
        await eventually("the command is connected", lambda: bridge.connections)
        bridge.say(text)
        assert await tail.ended() == 1
        [line] = tail.errors
        assert line.startswith(f"edk-bridge: {bridge.url}: this server is not an edk-bridge")
        assert line.endswith(words)


async def test_closed_standard_output_is_reported(bridge: ScriptedBridge) -> None:
    process = await asyncio.create_subprocess_shell(
        f"exec {sys.executable} -m bridge tail {bridge.url} >&-", stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(LIMIT_S):
        _, error_output = await process.communicate()
    assert (process.returncode, error_output) == (2, b"edk-bridge: standard output is closed\n")
