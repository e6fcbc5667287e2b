"""The access rules hold behind each proxy of `docker/proxies`, for real clients with real addresses."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest

from tests.support.broker.find import Broker
from tests.support.broker.ports import LOOPBACK, free_port
from tests.support.certificates import certificate
from tests.support.clients import RawClient, get, request
from tests.support.documentation import adapted, code_block, shell
from tests.support.event_streams import StreamClient, stream_request
from tests.support.killmail import killmail
from tests.support.namespaces import NEAR, Island, island
from tests.support.prepare import program
from tests.support.publishing import observer, publish
from tests.support.running import bridge_process, port_of, running, sample, unique
from tests.support.waiting import eventually
from tests.support.web_proxies import NGINX, output_of, program_running

pytestmark = pytest.mark.slow

CONFIGURATIONS = Path(__file__).parents[2] / "docker/proxies"
NAME = "kills.example.org"
"""The host name in the proxies' configurations."""

PORT, BRIDGE_PORT = 443, 3000


def _command(kind: str, folder: Path) -> list[str]:
    if kind == "nginx":
        (folder / "main.conf").write_text(NGINX.format(folder=folder))
        return [program("nginx"), "-c", f"{folder}/main.conf"]
    if kind == "caddy":
        return [program("caddy"), "run", "--config", f"{folder}/Caddyfile", "--adapter", "caddyfile"]
    return [program("haproxy"), "-db", "-f", f"{folder}/haproxy.cfg"]


FILES = {"nginx": "nginx.conf", "caddy": "Caddyfile", "haproxy": "haproxy.cfg"}


@asynccontextmanager
async def proxied(kind: str, folder: Path, *changes: tuple[str, str]) -> AsyncIterator[None]:
    """Runs the proxy on port 443 of a simulated network.

    `changes` are texts to replace in the configuration, each with its replacement.
    """
    chain, key = certificate(folder, NAME)
    (folder / "certificate-and-key.pem").write_text(chain.read_text() + key.read_text())
    text = (CONFIGURATIONS / FILES[kind]).read_text().replace("/etc/ssl/kills", str(folder))
    for before, after in changes:
        assert before in text, before
        text = text.replace(before, after)
    # On some machines, a process can't have as many file descriptors as 10,000 connections need.
    (folder / FILES[kind]).write_text(text.replace("maxconn 10000", "maxconn 400"))
    async with program_running(_command(kind, folder), folder, PORT):
        yield


INTERNAL, EXTERNAL = "10.1.2.3", "203.0.113.7"
SPELLINGS = ("/metrics?", "/%6detrics", "//readyz", "/./readyz", "/x/../metrics", "/METRICS")
"""Other spellings of the paths that only the operator may request."""

FORGED = ("X-Forwarded-For: 127.0.0.1", "Forwarded: for=10.0.0.1", "X-Real-IP: ::1")


@asynccontextmanager
async def proxied_bridge(
    kind: str, broker: Broker, exchange: str, folder: Path, *changes: tuple[str, str]
) -> AsyncIterator[Island]:
    """A proxy in front of a bridge that listens on loopback only, and a second machine at the other end of a cable."""
    program(kind)
    variables = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", "BRIDGE_PORT": str(BRIDGE_PORT)}
    variables |= {"BRIDGE_ALLOWED_HOSTS": NAME}
    async with island(broker.url) as net, bridge_process(net.broker_url, **variables) as process:
        await process.consuming()
        async with proxied(kind, folder, *changes):
            for address in (INTERNAL, EXTERNAL):
                await net.settle(address)
            yield net


async def connect(net: Island, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    client_socket = await net.connect_from_outside(PORT, address)
    client_socket.settimeout(0)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return await asyncio.open_connection(sock=client_socket, ssl=context, server_hostname=NAME)


def handshake(*headers: str, host: str = NAME) -> bytes:
    """A handshake whose Host header omits the default port, as in browsers."""
    return request(PORT, host=host, headers=headers).replace(b":443\r\n", b"\r\n", 1)


async def status_of(net: Island, address: str, request_bytes: bytes) -> int:
    """Returns the status of the response to a client with this address."""
    reader, writer = await connect(net, address)
    try:
        writer.write(request_bytes)
        async with asyncio.timeout(10):
            return int((await reader.readline()).split()[1])
    finally:
        writer.transport.abort()


def page(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode()


@pytest.mark.parametrize("kind", FILES)
async def test_client_of_an_internal_network_gets_updates_through_a_proxy(
    kind: str, broker: Broker, exchange: str, tmp_path: Path
) -> None:
    """The client is a page whose origin is the proxy's host."""
    async with proxied_bridge(kind, broker, exchange, tmp_path) as net:
        reader, writer = await connect(net, INTERNAL)
        writer.write(handshake(f"Origin: https://{NAME}"))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        async with observer(net.broker_url) as amqp:
            await publish(amqp, exchange, killmail(1))
        assert orjson.loads(await RawClient(reader, writer).text())["data"] == killmail(1)
        writer.transport.abort()


@pytest.mark.parametrize("kind", FILES)
async def test_event_stream_gets_each_update_at_once_through_a_proxy(
    kind: str, broker: Broker, exchange: str, tmp_path: Path
) -> None:
    """The client is a page whose origin is the proxy's host."""
    async with proxied_bridge(kind, broker, exchange, tmp_path) as net:
        line = stream_request(PORT, headers=[f"Origin: https://{NAME}"], host=NAME).replace(b":443\r\n", b"\r\n", 1)
        client = await StreamClient.over(*await connect(net, INTERNAL), line)
        assert (client.status, client.header("Access-Control-Allow-Origin")) == (200, f"https://{NAME}")
        await gets_each_update_at_once(client, net.broker_url, exchange)


NGINX_DEFAULTS = "server {{ listen {address}:{port}; location / {{ proxy_pass http://{address}:{bridge_port}; }} }}"


async def test_event_stream_gets_each_update_at_once_through_nginx_with_its_defaults(
    broker: Broker, exchange: str, tmp_path: Path
) -> None:
    port = free_port()
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        (tmp_path / "nginx.conf").write_text(
            NGINX_DEFAULTS.format(address=LOOPBACK, port=port, bridge_port=port_of(bridge))
        )
        async with program_running(_command("nginx", tmp_path), tmp_path, port):
            client = await StreamClient.open(port)
            assert (client.status, client.header("Content-Type")) == (200, "text/event-stream")
            await gets_each_update_at_once(client, broker.url, exchange)


async def gets_each_update_at_once(client: StreamClient, broker_url: str, exchange: str) -> None:
    """Checks that nothing collects the body: each part arrives before the next one is sent."""
    assert await client.line() == b":"
    assert (await client.event()).message["type"] == "resume"
    async with observer(broker_url) as amqp:
        for number in range(3):
            await publish(amqp, exchange, killmail(number))
            assert (await client.update()).message["data"] == killmail(number)
    client.abort()


@pytest.mark.parametrize("kind", FILES)
async def test_client_of_another_network_is_refused_behind_a_proxy_with_any_headers(
    kind: str, broker: Broker, exchange: str, tmp_path: Path
) -> None:
    async with proxied_bridge(kind, broker, exchange, tmp_path) as net:
        for headers in ((), *((header,) for header in FORGED), FORGED):
            assert await status_of(net, EXTERNAL, handshake(*headers)) == 403, headers
        assert await status_of(net, EXTERNAL, page("/")) == 403
        # A proxy removes the headers that Connection names (RFC 9110, section 7.6.1), but not the X-Forwarded-For
        # header that the proxy itself adds.
        hop_by_hop = handshake().replace(b"Connection: Upgrade", b"Connection: Upgrade, X-Forwarded-For")
        assert await status_of(net, EXTERNAL, hop_by_hop) == 403


@pytest.mark.parametrize("kind", FILES)
async def test_page_of_another_origin_or_host_is_refused_behind_a_proxy(
    kind: str, broker: Broker, exchange: str, tmp_path: Path
) -> None:
    async with proxied_bridge(kind, broker, exchange, tmp_path) as net:
        # Another port of this host is another origin.
        for origin in ("https://evil.example", f"https://{NAME}:8443", "null"):
            assert await status_of(net, INTERNAL, handshake(f"Origin: {origin}")) == 403, origin
        # DNS rebinding: a foreign name resolves to the address of this host. Caddy answers a foreign name with an empty
        # 200.
        assert await status_or_zero(net, INTERNAL, handshake(host="evil.example")) != 101


@pytest.mark.parametrize("kind", FILES)
async def test_pages_of_the_operator_are_not_found_behind_a_proxy(
    kind: str, broker: Broker, exchange: str, tmp_path: Path
) -> None:
    async with proxied_bridge(kind, broker, exchange, tmp_path) as net:
        assert await status_of(net, INTERNAL, page("/healthz")) == 200
        for path in ("/metrics", "/readyz", *SPELLINGS):
            assert await status_of(net, INTERNAL, page(path)) in {301, 308, 400, 404}, path


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (("proxy_http_version 1.1;", ""), "HTTP/1.0: in nginx, proxy_http_version 1.1."),
        (
            ("proxy_set_header Upgrade $http_upgrade;", ""),
            "A proxy removed the headers Upgrade and Connection from this handshake: in nginx, set proxy_set_header",
        ),
    ],
    ids=["HTTP/1.0", "no upgrade"],
)
async def test_refusal_of_a_handshake_that_nginx_changed_has_a_hint(
    change: tuple[str, str], hint: str, broker: Broker, exchange: str, tmp_path: Path
) -> None:
    """The proxy sends the headers that nginx sends by default."""
    async with proxied_bridge("nginx", broker, exchange, tmp_path, change) as net:
        reader, writer = await connect(net, INTERNAL)
        writer.write(handshake())
        async with asyncio.timeout(10):
            answer = await reader.readuntil(b"Content-Length: ") + await reader.readuntil(b".\n")
        assert answer.startswith(b"HTTP/1.1 426 ")
        assert hint.encode() in answer
        writer.transport.abort()


async def status_or_zero(net: Island, address: str, request_bytes: bytes) -> int:
    """Returns the status of the response to a client with this address, or 0 if there is no response."""
    try:
        return await status_of(net, address, request_bytes)
    except (IndexError, OSError):
        return 0


CHANGED: Sequence[tuple[str, tuple[str, str], str, bytes, int]] = [
    ("nginx", ("proxy_set_header X-Forwarded-For", "#"), EXTERNAL, handshake(), 101),
    ("nginx", ("proxy_set_header Host $http_host;", ""), INTERNAL, handshake(host="evil.example"), 101),
    ("nginx", ("proxy_set_header Host $http_host;", ""), INTERNAL, handshake(f"Origin: https://{NAME}"), 403),
    ("caddy", ("flush_interval -1", "header_up -X-Forwarded-For"), EXTERNAL, handshake(), 101),
    ("haproxy", ("mode http", "mode tcp"), EXTERNAL, handshake(), 101),
    ("haproxy", ("option forwardfor", "#"), EXTERNAL, handshake(), 101),
    ("haproxy", ("option forwardfor", "option forwardfor if-none"), EXTERNAL, handshake(FORGED[0]), 101),
]
"""The changes that comments in the configurations warn about, each with a request and the status of the response."""


@pytest.mark.parametrize(("kind", "change", "address", "request_bytes", "status"), CHANGED)
async def test_warnings_in_the_configurations_are_true(
    kind: str,
    change: tuple[str, str],
    address: str,
    request_bytes: bytes,
    status: int,
    broker: Broker,
    exchange: str,
    tmp_path: Path,
) -> None:
    changes = [change]
    if change[1] == "mode tcp":
        # The two lines that are removed here work only in `mode http`.
        changes.append(("http-request return status 404 if { path /metrics /readyz }", ""))
        changes.append(("option forwardfor", ""))
    async with proxied_bridge(kind, broker, exchange, tmp_path, *changes) as net:
        assert await status_of(net, address, request_bytes) == status


async def test_command_of_the_readme_checks_a_proxy(broker: Broker, exchange: str, tmp_path: Path) -> None:
    async with proxied_bridge("nginx", broker, exchange, tmp_path):
        check = adapted(
            code_block("docker/README.md", "Proxies"), ("curl", f"curl --insecure --resolve {NAME}:443:{LOOPBACK}")
        )
        assert await shell(check, tmp_path) == b"alive\n"
        check = adapted(check, ("curl", "curl --header 'X-Forwarded-For: 8.8.8.8'"))
        assert b"alive" not in await shell(check, tmp_path)


async def test_settings_of_the_readme_serve_one_network(broker: Broker, exchange: str, tmp_path: Path) -> None:
    certificate(tmp_path, NAME)
    settings = adapted(
        code_block("docker/README.md", "Serve a network"),
        ("10.0.0.5", NEAR),
        ("10.0.0.0/24", "10.1.2.0/24"),
        ("/etc/ssl/kills", str(tmp_path)),
    )
    variables = dict(line.split("=") for line in settings.splitlines())
    variables |= {"BRIDGE_EXCHANGES": f"{exchange}=killmail", "BRIDGE_PORT": str(PORT)}
    async with island(broker.url) as net, bridge_process(net.broker_url, **variables) as process:
        await process.consuming()
        # The bridge resets a connection from another network before the TLS handshake.
        for address, status in ((INTERNAL, 101), ("10.2.2.3", 0), (EXTERNAL, 0)):
            await net.settle(address)
            assert await status_or_zero(net, address, handshake(host=f"{NAME}:{PORT}")) == status, address


async def test_load_balancer_of_the_readme_can_check_bridges_with_certificates(
    broker: Broker, exchange: str, tmp_path: Path
) -> None:
    own, key = certificate(tmp_path, NAME)
    context = ssl.create_default_context(cafile=own)
    context.check_hostname = False
    port, bridge_port = free_port(), free_port()
    settings = {"tls_certificate": str(own), "tls_key": str(key), "port": str(bridge_port)}
    configuration = adapted(
        code_block("docker/README.md", "Several bridges"),
        ("bind 10.0.0.5:3000", f"bind {LOOPBACK}:{port}"),
        ("127.0.0.1:3001 check", f"127.0.0.1:{bridge_port} check check-ssl verify none inter 100ms"),
        ("  server bridge-2 127.0.0.1:3002 check\n", ""),
    )
    (tmp_path / "haproxy.cfg").write_text(configuration)

    async with program_running([program("haproxy"), "-db", "-f", "haproxy.cfg"], tmp_path, port):
        # HAProxy assumes that a server is up until the first checks of the server have failed.
        await eventually("HAProxy has no bridge", lambda: "bridge-1 is DOWN" in output_of(tmp_path))
        async with running(broker.url, exchanges=f"{exchange}=killmail", **settings):
            await eventually("the check over TLS finds the bridge", lambda: "bridge-1 is UP" in output_of(tmp_path))
            assert (await get(port, "/readyz", context=context))[0] == 200


async def test_load_balancer_of_the_readme_selects_the_bridges_that_are_ready(
    broker: Broker, exchange: str, tmp_path: Path
) -> None:
    lines = code_block("docker/README.md", "Several bridges", 1).splitlines()
    settings = {
        name.removeprefix("BRIDGE_").lower(): value for name, _, value in (line.partition("=") for line in lines)
    }
    stream = settings | {"exchanges": f"{exchange}=killmail", "history_stream": unique("stream"), "port": "0"}
    port = free_port()
    async with running(broker.url, **stream) as first, running(broker.url, **stream) as second:
        assert first.readiness.report()[1]["instance"] == "bridge-1"
        configuration = adapted(
            code_block("docker/README.md", "Several bridges"),
            ("bind 10.0.0.5:3000", f"bind {LOOPBACK}:{port}"),
            ("127.0.0.1:3001 check", f"127.0.0.1:{port_of(first)} check inter 100ms"),
            ("127.0.0.1:3002 check", f"127.0.0.1:{port_of(second)} check inter 100ms"),
        )
        (tmp_path / "haproxy.cfg").write_text(configuration)
        async with program_running([program("haproxy"), "-db", "-f", "haproxy.cfg"], tmp_path, port):
            # To check whether HAProxy listens, the test opens a connection. HAProxy may assign this connection to a
            # bridge, so the first two clients may get the same bridge.
            clients = list[RawClient]()
            while any(sample(bridge, "bridge_connections", transport="websocket") == 0 for bridge in (first, second)):
                assert len(clients) < 10
                clients.append(await RawClient.open(port))
            async with observer(broker.url) as amqp:
                await publish(amqp, exchange, killmail(1))
            for client in clients:
                assert orjson.loads(await client.text())["data"] == killmail(1)
                await client.close()
            first.readiness.stop()

            async def reaches_the_second() -> bool:
                instances = {(await get(port, "/readyz"))[0] for _ in range(4)}
                return instances == {200}

            await eventually("every request reaches the bridge that is ready", reaches_the_second)
