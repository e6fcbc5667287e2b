"""Real programs check the bridge: curl, wget and HAProxy."""

import asyncio
import csv
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from bridge.app import Bridge
from bridge.demo.child import die_with_parent
from tests.support import module_loop
from tests.support.broker.find import Broker
from tests.support.broker.session import unavailable
from tests.support.clients import get
from tests.support.prepare import found, program
from tests.support.running import port_of, running, sample, started, unique
from tests.support.waiting import LIMIT_S, eventually

pytestmark = module_loop.MARK

PAGES = (
    *("/", "/healthz", "/readyz", "/metrics", "/schemas/", "/schemas/killmail.json"),
    *("/asyncapi.json", "/openapi.json"),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(broker: Broker) -> AsyncIterator[Bridge]:
    """A bridge for all probes, which consumes its own exchange."""
    flags = {"exchanges": f"{unique('probes')}=killmail", "reject_exchange": "off"}
    async with running(broker.url, **flags) as bridge:
        yield bridge


async def run(name: str, *arguments: str) -> tuple[int, str]:
    """Returns the exit status and the output of a common program."""
    path = found(name)
    if path is None:
        unavailable(f"{name} is not installed")
    process = await asyncio.create_subprocess_exec(
        path, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(LIMIT_S):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


@pytest.mark.parametrize("path", PAGES)
async def test_each_page_answers_head_requests_of_curl_and_wget(shared: Bridge, path: str) -> None:
    url = f"http://127.0.0.1:{port_of(shared)}{path}"
    status, output = await run("curl", "--silent", "--show-error", "--fail", "--head", "--noproxy", "*", url)
    assert (status, output.startswith("HTTP/1.1 200 OK\r\n")) == (0, True), output
    _, body = await get(port_of(shared), path)
    # In two of the pages, counters and times change between requests.
    length = re.search(r"\r\nContent-Length: (\d+)\r\n", output)
    assert length is not None
    assert path in {"/metrics", "/readyz"} or int(length[1]) == len(body)
    status, output = await run("wget", "--no-proxy", "--spider", "--tries=1", url)
    assert (status, "200 OK" in output) == (0, True), output


@pytest.mark.parametrize("version", ["--http1.0", "--http1.1"])
async def test_curl_without_a_host_header_gets_only_the_pages_for_probes(shared: Bridge, version: str) -> None:
    url = f"http://127.0.0.1:{port_of(shared)}"
    flags = ["--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--noproxy", "*", "--header", "Host:"]
    for path in ("/healthz", "/readyz", "/metrics", "/", "/updates"):
        _, status = await run("curl", *flags, version, url + path)
        is_for_probes = version == "--http1.0" and path not in {"/", "/updates"}
        assert status == ("200" if is_for_probes else "400"), path


async def test_head_of_the_endpoint_is_answered_as_a_get(shared: Bridge) -> None:
    before = sample(shared, "bridge_connections_opened_total", transport="websocket")
    url = f"http://127.0.0.1:{port_of(shared)}/updates"
    for flags in ([], ["--header", "Upgrade: websocket", "--header", "Connection: Upgrade"]):
        _, output = await run("curl", "--silent", "--head", "--noproxy", "*", *flags, url)
        assert output.startswith("HTTP/1.1 426 Upgrade Required\r\n")
        assert "\r\nConnection: Upgrade, close\r\n" in output
        assert "\r\nUpgrade: websocket\r\n" in output
    assert sample(shared, "bridge_connections_opened_total", transport="websocket") == before


HAPROXY = """
global
  stats socket {folder}/stats
defaults
  mode http
  timeout connect 5s
  timeout client 5s
  timeout server 5s
backend bridge
{check}
  server bridge 127.0.0.1:{port} check inter 100ms
"""

CHECKS = {
    "HTTP/1.0 without Host": "  option httpchk GET /readyz",
    "without a method, which is OPTIONS": "  option httpchk /readyz",
    "HEAD": "  option httpchk HEAD /healthz",
    "as in the manual": "  option httpchk OPTIONS * HTTP/1.1\n  http-check send hdr Host www",
    "HTTP/1.1 with Host": "  option httpchk\n  http-check send meth GET uri /readyz ver HTTP/1.1 hdr Host localhost\n"
    "  http-check expect status 200",
}


@asynccontextmanager
async def haproxy(folder: Path, check: str, port: int) -> AsyncIterator[None]:
    """Runs HAProxy with a backend that it checks."""
    (folder / "haproxy.cfg").write_text(HAPROXY.format(folder=folder, check=check, port=port))
    process = await asyncio.create_subprocess_exec(
        *die_with_parent(program("haproxy"), "-db", "-f", str(folder / "haproxy.cfg")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdin is not None
    try:
        yield
    finally:
        # Closing the pipe kills the process group.
        process.stdin.close()
        await process.wait()


def status_of_the_check(folder: Path) -> str:
    """Returns the status of the last check as HAProxy names it, or an empty text before the first check."""
    with socket.socket(socket.AF_UNIX) as stats:
        stats.settimeout(LIMIT_S)
        try:
            stats.connect(str(folder / "stats"))
            stats.sendall(b"show stat\n")
            answer = b"".join(iter(lambda: stats.recv(65536), b""))
        except OSError:
            return ""
    rows = csv.DictReader(answer.decode().removeprefix("# ").splitlines())
    return next((f"{row['check_status']} {row['status']}" for row in rows if row["svname"] == "bridge"), "")


@pytest.mark.parametrize("check", CHECKS)
async def test_haproxy_reports_the_bridge_as_up(shared: Bridge, check: str, tmp_path: Path) -> None:
    async with haproxy(tmp_path, CHECKS[check], port_of(shared)):
        await eventually(
            "HAProxy has checked the bridge", lambda: status_of_the_check(tmp_path).startswith(("L7", "L4", "L6"))
        )
        assert status_of_the_check(tmp_path) == "L7OK UP"


@pytest.mark.parametrize("check", ["HTTP/1.0 without Host", "without a method, which is OPTIONS"])
async def test_haproxy_reports_a_bridge_without_a_broker_as_down(check: str, tmp_path: Path) -> None:
    """If a check ignored the status of the response, HAProxy would report this bridge as up."""
    async with (
        started("amqp://127.0.0.1:1/", wait="true") as bridge,
        haproxy(tmp_path, CHECKS[check], port_of(bridge)),
    ):
        await eventually("HAProxy reports the bridge as down", lambda: status_of_the_check(tmp_path) == "L7STS DOWN")
