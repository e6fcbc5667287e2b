"""What `docker/proxies` says keeps the access rules true: each proxy, with real clients from real addresses."""

import asyncio
import os
import signal
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest

from bridge.demo.child import die_with_parent, signal_group
from tests.support.broker.find import Broker
from tests.support.certificates import certificate
from tests.support.clients import RawClient, request
from tests.support.killmail import killmail
from tests.support.namespaces import Island, island
from tests.support.prepare import program
from tests.support.publishing import observer, publish
from tests.support.running import bridge_process
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

CONFIGURATIONS = Path(__file__).parents[2] / "docker/proxies"
NAME = "kills.example.org"
"""What the configurations call this host."""

PORT, BRIDGE_PORT = 443, 3000
NGINX = """
daemon off;
user root;
pid {folder}/pid;
error_log {folder}/nginx.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  include {folder}/nginx.conf;
}}
"""


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
    """The proxy on port 443, to be started inside an island; `changes` are made to its configuration before."""
    chain, key = certificate(folder, NAME)
    (folder / "certificate-and-key.pem").write_text(chain.read_text() + key.read_text())
    text = (CONFIGURATIONS / FILES[kind]).read_text().replace("/etc/ssl/kills", str(folder))
    for before, after in changes:
        assert before in text, before
        text = text.replace(before, after)
    # Not every machine lets a process have so many descriptors.
    (folder / FILES[kind]).write_text(text.replace("maxconn 10000", "maxconn 400"))
    with (folder / "words.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *die_with_parent(*_command(kind, folder)),
            stdin=asyncio.subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=folder,
            env={**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)},
        )
    try:

        async def listens() -> bool:
            if process.returncode is not None:
                raise RuntimeError(f"{kind} ended with {process.returncode}: {output_of(folder)}")
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", PORT)
            except OSError:
                return False
            writer.close()
            return True

        await eventually(f"{kind} listens", listens)
        yield
    finally:
        assert process.stdin is not None
        signal_group(process.pid, signal.SIGTERM)
        # Closing the pipe kills the process group.
        process.stdin.close()
        await process.wait()


def output_of(folder: Path) -> str:
    """What the proxy has written."""
    return (folder / "words.log").read_text()


FRIEND, STRANGER = "10.1.2.3", "203.0.113.7"
SPELLINGS = ("/metrics?", "/%6detrics", "//readyz", "/./readyz", "/x/../metrics", "/METRICS")
"""Of what is for the operator alone."""

FORGED = ("X-Forwarded-For: 127.0.0.1", "Forwarded: for=10.0.0.1", "X-Real-IP: ::1")


@asynccontextmanager
async def proxied_bridge(
    kind: str, broker: Broker, exchange: str, folder: Path, *changes: tuple[str, str]
) -> AsyncIterator[Island]:
    """A proxy before a bridge that listens on loopback alone, and a machine beyond a cable."""
    program(kind)
    variables = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", "BRIDGE_PORT": str(BRIDGE_PORT)}
    variables |= {"BRIDGE_ALLOWED_HOSTS": NAME}
    async with island(broker.url) as net, bridge_process(net.broker_url, **variables) as process:
        await process.consuming()
        async with proxied(kind, folder, *changes):
            for address in (FRIEND, STRANGER):
                await net.settle(address)
            yield net


async def connect(net: Island, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    line = await net.connect_from_afar(PORT, address)
    line.settimeout(0)
    anything = ssl.create_default_context()
    anything.check_hostname, anything.verify_mode = False, ssl.CERT_NONE
    return await asyncio.open_connection(sock=line, ssl=anything, server_hostname=NAME)


def handshake(*headers: str, host: str = NAME) -> bytes:
    """As a browser sends it, which leaves a default port out."""
    return request(PORT, host=host, headers=headers).replace(b":443\r\n", b"\r\n", 1)


async def told(net: Island, address: str, asked: bytes) -> int:
    """The status of the answer."""
    _, writer = found = await connect(net, address)
    try:
        writer.write(asked)
        async with asyncio.timeout(10):
            return int((await found[0].readline()).split()[1])
    finally:
        writer.transport.abort()


def page(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode()


@pytest.mark.parametrize("kind", FILES)
async def test_client_of_an_internal_network_gets_updates_through(
    kind: str, broker: Broker, exchange: str, tmp_path: Path
) -> None:
    """From a page of the proxy's own host too."""
    async with proxied_bridge(kind, broker, exchange, tmp_path) as net:
        reader, writer = await connect(net, FRIEND)
        writer.write(handshake(f"Origin: https://{NAME}"))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        async with observer(net.broker_url) as amqp:
            await publish(amqp, exchange, killmail(1))
        assert orjson.loads(await RawClient(reader, writer).text())["data"] == killmail(1)
        writer.transport.abort()


@pytest.mark.parametrize("kind", FILES)
async def test_client_of_another_network_is_refused_behind_a_proxy_whatever_its_headers_say(
    kind: str, broker: Broker, exchange: str, tmp_path: Path
) -> None:
    async with proxied_bridge(kind, broker, exchange, tmp_path) as net:
        for said in ((), *((header,) for header in FORGED), FORGED):
            assert await told(net, STRANGER, handshake(*said)) == 403, said
        assert await told(net, STRANGER, page("/")) == 403
        # Nor does it help to call the header that the proxy adds one that a proxy takes off (RFC 9110, section 7.6.1).
        hop = handshake().replace(b"Connection: Upgrade", b"Connection: Upgrade, X-Forwarded-For")
        assert await told(net, STRANGER, hop) == 403


@pytest.mark.parametrize("kind", FILES)
async def test_page_of_another_origin_or_host_is_refused_behind_a_proxy(
    kind: str, broker: Broker, exchange: str, tmp_path: Path
) -> None:
    async with proxied_bridge(kind, broker, exchange, tmp_path) as net:
        # Another port of this host is another origin.
        for origin in ("https://evil.example", f"https://{NAME}:8443", "null"):
            assert await told(net, FRIEND, handshake(f"Origin: {origin}")) == 403, origin
        # A name that was pointed here. Caddy answers for no site that it does not know, with 200 and nothing.
        assert await answered(net, handshake(host="evil.example")) != 101


@pytest.mark.parametrize("kind", FILES)
async def test_pages_of_the_operator_are_not_there_behind_a_proxy(
    kind: str, broker: Broker, exchange: str, tmp_path: Path
) -> None:
    async with proxied_bridge(kind, broker, exchange, tmp_path) as net:
        assert await told(net, FRIEND, page("/healthz")) == 200
        for path in ("/metrics", "/readyz", *SPELLINGS):
            assert await told(net, FRIEND, page(path)) in {301, 308, 400, 404}, path


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
async def test_handshake_that_nginx_changes_is_told_what_to_set(
    change: tuple[str, str], hint: str, broker: Broker, exchange: str, tmp_path: Path
) -> None:
    """What nginx does unless it is told otherwise."""
    async with proxied_bridge("nginx", broker, exchange, tmp_path, change) as net:
        reader, writer = await connect(net, FRIEND)
        writer.write(handshake())
        async with asyncio.timeout(10):
            answer = await reader.readuntil(b"Content-Length: ") + await reader.readuntil(b".\n")
        assert answer.startswith(b"HTTP/1.1 426 ")
        assert hint.encode() in answer
        writer.transport.abort()


async def answered(net: Island, asked: bytes) -> int:
    """The status of the answer to a friend; 0 where there is none."""
    try:
        return await told(net, FRIEND, asked)
    except (IndexError, OSError):
        return 0


LETS_IN: Sequence[tuple[str, tuple[str, str], str, bytes, int]] = [
    ("nginx", ("proxy_set_header X-Forwarded-For", "#"), STRANGER, handshake(), 101),
    ("nginx", ("proxy_set_header Host $http_host;", ""), FRIEND, handshake(host="evil.example"), 101),
    ("nginx", ("proxy_set_header Host $http_host;", ""), FRIEND, handshake(f"Origin: https://{NAME}"), 403),
    ("caddy", ("flush_interval -1", "header_up -X-Forwarded-For"), STRANGER, handshake(), 101),
    ("haproxy", ("mode http", "mode tcp"), STRANGER, handshake(), 101),
    ("haproxy", ("option forwardfor", "#"), STRANGER, handshake(), 101),
    ("haproxy", ("option forwardfor", "option forwardfor if-none"), STRANGER, handshake(FORGED[0]), 101),
]
"""What the comments warn of: a change, and what comes of it."""


@pytest.mark.parametrize(("kind", "change", "address", "asked", "status"), LETS_IN)
async def test_what_the_comments_warn_of_is_so(
    kind: str,
    change: tuple[str, str],
    address: str,
    asked: bytes,
    status: int,
    broker: Broker,
    exchange: str,
    tmp_path: Path,
) -> None:
    changes = [change]
    if change[1] == "mode tcp":
        # What HTTP alone knows.
        changes.append(("http-request return status 404 if { path /metrics /readyz }", ""))
        changes.append(("option forwardfor", ""))
    async with proxied_bridge(kind, broker, exchange, tmp_path, *changes) as net:
        assert await told(net, address, asked) == status
