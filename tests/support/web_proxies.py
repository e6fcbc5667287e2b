"""Web proxies in front of a bridge: nginx and HAProxy, as they run on a developer's machine, without root."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bridge.demo.child import die_with_parent, signal_group
from tests.support.broker.ports import LOOPBACK
from tests.support.prepare import program
from tests.support.waiting import eventually

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


@asynccontextmanager
async def program_running(command: list[str], folder: Path, port: int) -> AsyncIterator[None]:
    """Runs a program, and yields as soon as the program listens on `port`."""
    with (folder / "output.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *die_with_parent(*command),
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
                raise RuntimeError(f"{command[0]} ended with {process.returncode}: {output_of(folder)}")
            try:
                _, writer = await asyncio.open_connection(LOOPBACK, port)
            except OSError:
                return False
            writer.close()
            return True

        await eventually(f"{command[0]} listens", listens)
        yield
    finally:
        assert process.stdin is not None
        signal_group(process.pid, signal.SIGTERM)
        # Closing the pipe kills the process group.
        process.stdin.close()
        await process.wait()


def output_of(folder: Path) -> str:
    """Returns the output of a program in this folder."""
    return (folder / "output.log").read_text()


_NGINX_SERVER = """
map $http_upgrade $connection_for_bridge {{ default upgrade; '' ''; }}
server {{
  listen {address}:{port};
  location / {{
    proxy_pass http://{address}:{bridge_port};
    proxy_http_version 1.1;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $connection_for_bridge;
    proxy_set_header Host $http_host;
    proxy_read_timeout {timeout_ms}ms;
    proxy_send_timeout {timeout_ms}ms;
    proxy_buffering off;
  }}
}}
"""

# Without retries, a client gets its 503 at once.
_HAPROXY = """
global
  maxconn 400
defaults
  mode http
  retries 0
  timeout connect 1s
  timeout client {timeout_ms}ms
  timeout server {timeout_ms}ms
  timeout tunnel {timeout_ms}ms
frontend clients
  bind {address}:{port}
  default_backend bridge
backend bridge
  server bridge {address}:{bridge_port}
"""


@asynccontextmanager
async def nginx(folder: Path, port: int, bridge_port: int, timeout_ms: int) -> AsyncIterator[None]:
    """Runs nginx, which cuts a connection after `timeout_ms` milliseconds without a byte from the bridge."""
    command = [program("nginx"), "-c", f"{folder}/main.conf"]
    (folder / "main.conf").write_text(NGINX.format(folder=folder))
    (folder / "nginx.conf").write_text(
        _NGINX_SERVER.format(address=LOOPBACK, port=port, bridge_port=bridge_port, timeout_ms=timeout_ms)
    )
    async with program_running(command, folder, port):
        yield


@asynccontextmanager
async def haproxy(folder: Path, port: int, bridge_port: int, timeout_ms: int) -> AsyncIterator[None]:
    """Runs HAProxy, which cuts a connection after `timeout_ms` milliseconds without a byte."""
    command = [program("haproxy"), "-db", "-f", f"{folder}/haproxy.cfg"]
    (folder / "haproxy.cfg").write_text(
        _HAPROXY.format(address=LOOPBACK, port=port, bridge_port=bridge_port, timeout_ms=timeout_ms)
    )
    async with program_running(command, folder, port):
        yield
