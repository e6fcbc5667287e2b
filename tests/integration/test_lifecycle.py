"""The bridge as a process, from its start to its end: its output and its exit codes."""

import asyncio
import os
import pty
import shutil
import signal
import socket
import ssl
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import orjson
import pytest

from bridge.timing import Timing
from tests.support.broker.find import Broker
from tests.support.broker.ports import free_port
from tests.support.certificates import certificate
from tests.support.clients import CLOSE, PING, PONG, RawClient, client_frame, close_code, get, request, server_frames
from tests.support.commands import AWAY, environment, ran
from tests.support.running import bridge_process, timed_command
from tests.support.waiting import LIMIT_S, eventually

UNREACHABLE = "amqp://guest:guest@127.0.0.1:1/"
"""A broker URL for tests that end before they need a broker. No program listens on port 1."""


async def test_port_0_is_printed_and_healthz_and_readyz_answer_there(broker: Broker, exchange: str) -> None:
    async with bridge_process(broker.url, BRIDGE_EXCHANGES=f"{exchange}=killmail") as process:
        port = await process.port()
        assert port > 0
        assert (await get(port, "/healthz"))[0] == 200

        async def ready() -> bool:
            return (await get(port, "/readyz"))[0] == 200

        await eventually("the bridge is ready", ready)
        _, body = await get(port, "/readyz")
        assert orjson.loads(body)["ready"] is True


async def test_healthz_answers_while_the_broker_is_away_and_readyz_reports_it(exchange: str) -> None:
    async with bridge_process(UNREACHABLE, BRIDGE_EXCHANGES=f"{exchange}=killmail") as process:
        port = await process.port()
        assert (await get(port, "/healthz"))[0] == 200
        status, body = await get(port, "/readyz")
        assert status == 503
        assert "the bridge does not consume from the broker" in orjson.loads(body)["missing"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_ends_the_bridge_with_0(number: signal.Signals, broker: Broker, exchange: str) -> None:
    async with bridge_process(broker.url, BRIDGE_EXCHANGES=f"{exchange}=killmail") as process:
        await process.consuming()
        client = await RawClient.open(await process.port())
        process.process.send_signal(number)
        assert await client.closed() == 1001
        assert await process.ended() == 0
        assert process.texts == []
        assert process.logged("stopping") is not None
        assert process.lines[-1]["event"] == "stopped"
        await client.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_ends_a_bridge_that_never_found_its_broker_with_0(number: signal.Signals) -> None:
    async with bridge_process(UNREACHABLE) as process:
        await process.port()
        await eventually("the broker is missed", lambda: process.logged("broker not available; trying again"))
        process.process.send_signal(number)
        assert await process.ended() == 0


async def test_invalid_settings_end_with_2_and_all_problems_at_once() -> None:
    variables = {
        "BRIDGE_PREFETCH": "many",
        "BRIDGE_IDLE_TIMEOUT": "soon",
        "BRIDGE_EXCHANGE": "killmails",
    }
    async with bridge_process("http://guest:correct-horse@localhost", "--log-bytes", "1", **variables) as process:
        assert await process.ended() == 2
        assert process.lines == []
        assert all(line.startswith("edk-bridge: BRIDGE_") for line in process.texts)
        names = [line.removeprefix("edk-bridge: ").split(" ", 1)[0] for line in process.texts]
        assert sorted(names) == [
            "BRIDGE_AMQP_URL",
            "BRIDGE_EXCHANGE",
            "BRIDGE_IDLE_TIMEOUT",
            "BRIDGE_LOG_BYTES",
            "BRIDGE_PREFETCH",
        ]
        assert any("did you mean BRIDGE_EXCHANGES?" in line for line in process.texts)
        assert "correct-horse" not in "\n".join(process.texts)


async def test_settings_that_contradict_each_other_end_with_2() -> None:
    async with bridge_process(UNREACHABLE, BRIDGE_PING_INTERVAL="10s", BRIDGE_IDLE_TIMEOUT="5s") as process:
        assert await process.ended() == 2
        [line] = process.texts
        assert "BRIDGE_PING_INTERVAL" in line
        assert "BRIDGE_IDLE_TIMEOUT" in line


async def test_type_without_a_schema_ends_with_2_and_the_known_types() -> None:
    async with bridge_process(UNREACHABLE, BRIDGE_EXCHANGES="battles=battle") as process:
        assert await process.ended() == 2
        assert process.texts == [
            "edk-bridge: BRIDGE_EXCHANGES: battles=battle: there is no schema for this type; "
            "known: entity-activity, event, killmail, price-update, statistics"
        ]


TAKEN = (
    "edk-bridge: can't listen on {} port {}: Address already in use; another program uses the port (`ss -ltnp` shows "
    "which): end it, or set BRIDGE_PORT (--port) to another port"
)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("command", [["serve"], ["demo", "--without-broker"], ["demo"]], ids=" ".join)
async def test_port_that_is_taken_ends_with_2_the_address_and_what_to_do(command: list[str], address: str) -> None:
    family = socket.AF_INET6 if address == "::1" else socket.AF_INET
    with socket.create_server((address, 0), family=family) as taken:
        port = taken.getsockname()[1]
        ended = await ran(*command, "--port", str(port), BRIDGE_AMQP_URL=UNREACHABLE)
    assert (ended.code, ended.printed) == (2, ["stopped"] if command == ["demo"] and ended.printed else [])
    assert ended.errors == [TAKEN.format(address, port)]


async def test_address_that_this_machine_does_not_have_ends_with_2() -> None:
    for command in (["serve"], ["demo", "--without-broker"]):
        ended = await ran(*command, "--port", "3999", BRIDGE_AMQP_URL=UNREACHABLE, BRIDGE_HOST="192.0.2.1")
        assert ended.code == 2
        [line] = ended.errors
        assert line == (
            "edk-bridge: can't listen on 192.0.2.1 port 3999: Cannot assign requested address; this machine does not "
            "have this address: set BRIDGE_HOST to its own addresses"
        )


PORT_START = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
UNPRIVILEGED = ("setpriv", "--bounding-set", "-net_bind_service") if os.geteuid() == 0 else ()


@pytest.mark.skipif(
    bool(UNPRIVILEGED) and shutil.which("setpriv") is None, reason="root can't drop its privileges here"
)
@pytest.mark.skipif(
    not PORT_START.exists() or int(PORT_START.read_text()) <= 80, reason="port 80 needs no privileges here"
)
async def test_port_that_needs_privileges_ends_with_2() -> None:
    process = await asyncio.create_subprocess_exec(
        *(*UNPRIVILEGED, sys.executable, "-m", "bridge", "serve", "--host", "127.0.0.1", "--port", "80"),
        env=environment(BRIDGE_AMQP_URL=UNREACHABLE),
        cwd=AWAY,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(LIMIT_S):
        _, error = await process.communicate()
    assert (process.returncode, error.decode()) == (
        2,
        "edk-bridge: can't listen on 127.0.0.1 port 80: Permission denied; a port below 1024 needs privileges: set "
        "BRIDGE_PORT (--port) to a higher port\n",
    )


async def test_log_has_one_line_about_all_addresses_with_the_page_and_the_endpoint() -> None:
    async with bridge_process(UNREACHABLE, BRIDGE_HOST="localhost", BRIDGE_PORT="0") as process:
        port = await process.port()
        await eventually("the broker is missed", lambda: process.logged("broker not available; trying again"))
        [line] = [each for each in process.lines if each["event"] == "listening"]
        assert line["page"] == f"http://localhost:{port}/"
        assert line["url"] == f"ws://localhost:{port}/updates"
        assert line["addresses"] in ("127.0.0.1, ::1", "127.0.0.1")
        assert (await get(port, "/"))[0] == 200


@pytest.mark.skipif(sys.platform == "win32", reason="SO_REUSEPORT is not known there")
async def test_two_bridges_share_a_port_with_reuse_port(broker: Broker, exchange: str) -> None:
    variables = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", "BRIDGE_REUSE_PORT": "true"}
    async with bridge_process(broker.url, **variables) as first:
        port = await first.port()
        async with bridge_process(broker.url, "--port", str(port), **variables) as second:
            assert await second.port() == port


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the loopback addresses from 127.0.0.2 on")
async def test_bridges_that_share_a_port_answer_on_addresses_of_their_own() -> None:
    addresses = {"bridge-1": "127.0.0.2", "bridge-2": "127.0.0.3"}
    async with AsyncExitStack() as stack:
        port = 0
        for instance, address in addresses.items():
            process = await stack.enter_async_context(
                bridge_process(
                    UNREACHABLE,
                    BRIDGE_HOST=f"127.0.0.1,{address}",
                    BRIDGE_PORT=str(port),
                    BRIDGE_REUSE_PORT="true",
                    BRIDGE_INSTANCE=instance,
                )
            )
            port = await process.port()
        for instance, address in addresses.items():
            _, body = await get(port, "/readyz", address=address)
            assert orjson.loads(body)["instance"] == instance


async def test_sigterm_while_the_broker_is_silent_ends_with_0() -> None:
    """The broker accepts connections and sends nothing. The bridge stops at once, because it has no deliveries."""
    held: list[asyncio.StreamWriter] = []

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with bridge_process(f"amqp://guest:guest@127.0.0.1:{port}/") as process:
        await process.port()
        await eventually("the bridge has connected", lambda: held)
        process.process.send_signal(signal.SIGTERM)
        assert await process.ended() == 0
        assert process.texts == []
    for writer in held:
        await gone(writer)
    server.close()
    await server.wait_closed()


async def test_second_signal_ends_the_process_while_a_client_does_not_close(broker: Broker) -> None:
    async with bridge_process(broker.url, BRIDGE_SHUTDOWN_TIMEOUT="60s") as process:
        client = await RawClient.open(await process.port())
        await process.consuming()
        process.process.send_signal(signal.SIGTERM)
        assert (await client.frame())[0] == CLOSE
        process.process.send_signal(signal.SIGTERM)
        assert await process.ended() == 128 + signal.SIGTERM
        await client.close()


async def gone(writer: asyncio.StreamWriter) -> None:
    """Aborts a connection, and waits for its end."""
    writer.transport.abort()
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def test_sighup_without_a_certificate_changes_nothing(broker: Broker, exchange: str) -> None:
    """A reload of a service changes nothing: its clients stay, and the log reports that there is nothing to reload."""
    async with bridge_process(broker.url, BRIDGE_EXCHANGES=f"{exchange}=killmail") as process:
        await process.consuming()
        client = await RawClient.open(await process.port())
        process.process.send_signal(signal.SIGHUP)
        phrase = "no certificate to reload (BRIDGE_TLS_CERTIFICATE is not set)"
        await eventually("the line is logged", lambda: process.logged(phrase))
        client.send(client_frame(PING, b""))
        assert (await client.frame())[0] == PONG
        await client.close()


async def test_sighup_after_the_loss_of_the_terminal_stops_the_bridge_in_order(exchange: str) -> None:
    """When its terminal closes, a bridge stops in the same way as after SIGTERM."""
    ours, its = pty.openpty()
    port = free_port()
    flags = [
        "--amqp-url",
        UNREACHABLE,
        "--exchanges",
        f"{exchange}=killmail",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "bridge", "serve", *flags, stderr=its)
    try:

        async def listens() -> bool:
            with suppress(OSError):
                return (await get(port, "/healthz"))[0] == 200
            return False

        await eventually("the bridge listens", listens)
        client = await RawClient.open(port)
        process.send_signal(signal.SIGHUP)
        assert await client.closed() == 1001
        await client.close()
        async with asyncio.timeout(LIMIT_S):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)
        os.close(its)


async def test_client_with_a_tls_handshake_from_before_the_stop_is_answered_and_closed(
    broker: Broker, tmp_path: Path
) -> None:
    chain, key = certificate(tmp_path, "stopping")
    variables = {"BRIDGE_TLS_CERTIFICATE": str(chain), "BRIDGE_TLS_KEY": str(key), "BRIDGE_SHUTDOWN_TIMEOUT": "60s"}
    command = timed_command(Timing(request_grace_s=20))
    async with bridge_process(broker.url, command=command, **variables) as process:
        port = await process.port()
        await process.consuming()
        trust = ssl.create_default_context(cafile=chain)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
        writer.write(request(port))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        late = socket.create_connection(("127.0.0.1", port))
        process.process.send_signal(signal.SIGTERM)
        # The first client keeps the bridge running until the second client has connected.
        assert (await reader.readexactly(2))[0] == 0x88
        late_reader, late_writer = await asyncio.open_connection(sock=late, ssl=trust, server_hostname="127.0.0.1")
        late_writer.write(request(port))
        assert (await late_reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        [(opcode, payload)] = server_frames(await late_reader.readexactly(2) + await late_reader.read(125))
        assert (opcode, close_code(payload)) == (CLOSE, 1001)
        await gone(late_writer)
        await gone(writer)
        assert await process.ended() == 0
